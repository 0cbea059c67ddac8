"""From messages and tools to the text that a model's own template makes of them.

A template may know tools in the ``<tool_call>`` way, in another way, or not at all: in the last two
cases the tools go into the system message, calls into the assistant's text, and results into a
user's turn. A template may insist that user and assistant alternate, or know no system message:
then turns are merged, and the system message goes into the first turn.

Text that a client wrote never becomes a control token: the core's templates see to that.
"""

from collections.abc import Awaitable, Sequence
from itertools import groupby
from typing import Any, Protocol

import msgspec

from qbtc.errors import InputError
from qbtc.llm.chat.parser import CLOSE_TAG, OPEN_TAG
from qbtc.messages.language import ChatMessage, ResponseFormat, Tool, ToolCall

__all__ = ["Prompt", "PromptWriter", "reads_tool_calls"]

BEGINNINGS_MAX = 64
"""System messages, with their tools, whose prompts are remembered."""


_TOOLS_BEGIN = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_TOOLS_END = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    f"within {OPEN_TAG}{CLOSE_TAG} XML tags:\n{OPEN_TAG}\n"
    f'{{"name": <function-name>, "arguments": <args-json-object>}}\n{CLOSE_TAG}'
)
_SCHEMA = "Answer with JSON that fits this JSON Schema, and with nothing else:\n"


class Render(Protocol):
    """Writes a conversation with a template; raises ``InputError`` where the template refuses."""

    def __call__(
        self, messages: object, tools: object | None = None, *, add_generation_prompt: bool = True
    ) -> Awaitable[str]: ...


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation as the model reads it."""

    text: str
    pinned: str
    """Its beginning that other conversations of the same application share, maybe empty."""


class PromptWriter:
    """Writes prompts with one model's template.

    Parameters
    ----------
    render
        The template.
    native_tools
        Whether the template shows tools and calls in the ``<tool_call>`` way; see
        :func:`reads_tool_calls`.
    """

    def __init__(self, render: Render, *, native_tools: bool) -> None:
        self._render = render
        self._native_tools = native_tools
        self._begun: dict[bytes, str] = {}

    async def write(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        response_format: ResponseFormat | None = None,
    ) -> Prompt:
        """Write a prompt that ends where the assistant's answer begins.

        Raises
        ------
        InputError
            The template refuses the conversation however it is arranged.
        """
        turns = self._turns(messages, tools, response_format)
        shown = [_shown(tool) for tool in tools] if tools and self._native_tools else None
        refusal: InputError | None = None
        for arrange in (_as_it_is, _alternating, _without_system):
            arranged = arrange(turns)
            try:
                text = await self._render(arranged, shown)
            except InputError as error:
                # The first refusal speaks of the conversation as it was sent.
                refusal = refusal or error
                continue
            return Prompt(text=text, pinned=await self._pinned(arranged, shown, text))
        assert refusal is not None
        raise refusal

    async def _pinned(self, turns: list[dict[str, Any]], tools: object | None, text: str) -> str:
        leading = turns[:1]
        if leading[0]["role"] != "system":
            return ""
        key = msgspec.json.encode((leading, tools))
        begun = self._begun.pop(key, None)
        if begun is None:
            try:
                begun = await self._render(leading, tools, add_generation_prompt=False)
            except InputError:
                begun = ""
        # The last used stand last; the first goes where there are too many.
        self._begun[key] = begun
        if len(self._begun) > BEGINNINGS_MAX:
            del self._begun[next(iter(self._begun))]
        return begun if text.startswith(begun) else ""

    def _turns(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool],
        response_format: ResponseFormat | None,
    ) -> list[dict[str, Any]]:
        turns: list[dict[str, Any]] = []
        for message in messages:
            if self._native_tools:
                turns.append(_native(message))
            elif message.role == "tool" and turns and turns[-1].get("results"):
                turns[-1]["content"] += "\n" + _result(message)
            else:
                turns.append(_plain(message))
        for turn in turns:
            turn.pop("results", None)
        extra = []
        if response_format is not None and response_format.type == "json_schema":
            extra.append(_SCHEMA + _json(response_format.schema))
        if tools and not self._native_tools:
            signatures = "\n".join(_json(_shown(tool)) for tool in tools)
            extra.append(_TOOLS_BEGIN + signatures + _TOOLS_END)
        if extra:
            if turns[0]["role"] != "system":
                turns.insert(0, {"role": "system", "content": ""})
            turns[0]["content"] = "\n\n".join(filter(None, [turns[0]["content"], *extra]))
        return turns


async def reads_tool_calls(render: Render) -> bool:
    """Ask a template whether it shows tools, and asks for calls within ``<tool_call>``."""
    tool = {
        "type": "function",
        "function": {"name": "probe_tool", "description": "", "parameters": {"type": "object"}},
    }
    try:
        text = await render([{"role": "user", "content": "Hi"}], [tool])
    except InputError:
        return False
    return "probe_tool" in text and OPEN_TAG in text


def _native(message: ChatMessage) -> dict[str, Any]:
    """Return a turn for a template that knows calls and results."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": _arguments(call),
                },
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _plain(message: ChatMessage) -> dict[str, Any]:
    """Return a turn for a template that knows none."""
    if message.role == "tool":
        return {"role": "user", "content": _result(message), "results": True}
    content = message.content
    for call in message.tool_calls:
        inside = _json({"name": call.name, "arguments": _arguments(call)})
        content += f"{'\n' if content else ''}{OPEN_TAG}\n{inside}\n{CLOSE_TAG}"
    return {"role": message.role, "content": content}


def _result(message: ChatMessage) -> str:
    return f"<tool_response>\n{message.content}\n</tool_response>"


def _shown(tool: Tool) -> dict[str, Any]:
    nothing = {"type": "object", "properties": {}}
    parameters = nothing if tool.parameters is None else tool.parameters
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": parameters,
    }
    return {"type": "function", "function": function}


def _as_it_is(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return turns


def _alternating(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge turns of the same role, and put the system's first."""
    first = [turn for turn in turns if turn["role"] == "system"]
    rest = [turn for turn in turns if turn["role"] != "system"]
    merged: list[dict[str, Any]] = []
    for role, group in groupby([*first, *rest], key=lambda turn: turn["role"]):
        run = list(group)
        if role == "tool":
            merged.extend(run)
            continue
        turn = {**run[0], "content": "\n\n".join(filter(None, (t["content"] for t in run)))}
        calls = [call for each in run for call in each.get("tool_calls", ())]
        merged.append({**turn, "tool_calls": calls} if calls else turn)
    return merged


def _without_system(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the system's words into the first turn, which is the user's."""
    merged = _alternating(turns)
    words = merged.pop(0)["content"] if merged[0]["role"] == "system" else ""
    if not merged or merged[0]["role"] != "user":
        merged.insert(0, {"role": "user", "content": ""})
    content = "\n\n".join(filter(None, [words, merged[0]["content"]]))
    return [{**merged[0], "content": content}, *merged[1:]]


def _arguments(call: ToolCall) -> Any:
    """Return arguments as an object where they are one; a template would quote the text again."""
    try:
        return msgspec.json.decode(call.arguments)
    except (msgspec.DecodeError, RecursionError):
        return call.arguments


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
