"""The body of ``POST /v1/responses``, and how it becomes an engine request.

Stateless: a conversation is sent whole, in ``input``. What needs a memory or tools of the server's
own is refused by name.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from qbtc.messages.language import ChatMessage, ChatRequest, ToolCall
from qbtc_gateway import openai_types as t
from qbtc_gateway.errors import BadRequest
from qbtc_gateway.translate import choose_tool, functions, response_format, sampling

__all__ = ["ResponsesBody", "responses_field", "responses_request"]


LOGPROBS = "message.output_text.logprobs"
"""Asks for log-probabilities in ``include``; all else there is nothing that we have."""


class InputText(t.Body, frozen=True, kw_only=True, tag_field="type", tag="input_text"):
    """A piece of text from the user."""

    text: str


class OutputText(t.Body, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    """A piece of text from the assistant, given back."""

    text: str


class OutputRefusal(t.Body, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """A refusal of the assistant, given back."""

    refusal: str


class InputImage(t.Body, frozen=True, kw_only=True, tag_field="type", tag="input_image"):
    """An image; refused by models that cannot see."""


class InputFile(t.Body, frozen=True, kw_only=True, tag_field="type", tag="input_file"):
    """A file; refused."""


class InputAudio(t.Body, frozen=True, kw_only=True, tag_field="type", tag="input_audio"):
    """Sound; refused."""


_KINDS: dict[type, str] = {
    InputImage: "input_image",
    InputFile: "input_file",
    InputAudio: "input_audio",
}

type InputPart = InputText | OutputText | OutputRefusal | InputImage | InputFile | InputAudio


class InputItem(t.Body, frozen=True, kw_only=True):
    """One item; which fields it needs depends on ``type``, which a plain message may leave out."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None


class FunctionTool(t.FunctionSpec, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """A function that the model may call; other kinds of tools are not served."""


class NamedFunction(t.Body, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """The one function that must be called."""

    name: str


class TextSchema(t.SchemaSpec, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    """JSON that fits a schema."""


class TextSpec(t.Body, frozen=True, kw_only=True):
    """What the text must be."""

    format: t.TextFormat | t.JsonObjectFormat | TextSchema | None = None
    verbosity: str | None = None


class ResponsesBody(t.SamplingFields, frozen=True, kw_only=True):
    """``POST /v1/responses``."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            "max_tool_calls",
            "prompt_cache_key",
            "prompt_cache_retention",
            "reasoning",
            "safety_identifier",
            "service_tier",
            "store",
            "stream_options",
        }
    )

    model: str
    input: str | Annotated[list[InputItem], Meta(min_length=1, max_length=t.MESSAGES_MAX)]
    instructions: str | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=t.TOOLS_MAX)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    text: TextSpec | None = None
    max_output_tokens: t.Count | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=t.TOP_LOGPROBS_MAX)] | None = None
    include: list[str] | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    truncation: Literal["disabled", "auto"] | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None
    prompt: dict[str, Any] | None = None


def responses_request(body: ResponsesBody) -> ChatRequest:
    """Return what the engine is asked."""
    for name, reason in (
        (
            "previous_response_id",
            "responses are not stored; send the whole conversation in 'input'",
        ),
        ("conversation", "conversations are not stored; send the whole one in 'input'"),
        ("background", "a response is computed while the client waits or streams"),
        ("prompt", "prompts are not stored; send 'instructions' and 'input'"),
    ):
        if getattr(body, name):
            raise BadRequest(
                f"Unsupported parameter: '{name}' is not supported: {reason}.",
                param=name,
                code="unsupported_parameter",
            )
    if body.truncation == "auto":
        raise BadRequest(
            "Unsupported value: 'truncation' does not support 'auto' here; nothing is left out.",
            param="truncation",
            code="unsupported_value",
        )
    tools = functions(body.tools or (), "tools")
    choice = body.tool_choice
    return ChatRequest(
        model=body.model,
        messages=_messages(body),
        tools=tools,
        tool_choice=choose_tool(
            t.FunctionRef(name=choice.name) if isinstance(choice, NamedFunction) else choice,
            tools,
            where="tool_choice",
        ),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        response_format=response_format(_format(body.text), "text.format.schema"),
        sampling=sampling(body),
        max_tokens=body.max_output_tokens,
        logprobs=bool(body.top_logprobs) or LOGPROBS in (body.include or ()),
        top_logprobs=body.top_logprobs or 0,
    )


_FIELDS = {
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "response_format": "text.format",
    "response_format.json_schema.schema": "text.format.schema",
}


def responses_field(param: str) -> str:
    """Return the name of a field of the engine's request as a client of this endpoint wrote it."""
    return _FIELDS.get(param) or re.sub(r"^(tools\[\d+\])\.function", r"\1", param)


def _format(text: TextSpec | None) -> t.Format | None:
    given = text.format if text is not None else None
    if isinstance(given, TextSchema):
        return t.JsonSchemaFormat(json_schema=given)
    return given


def _messages(body: ResponsesBody) -> tuple[ChatMessage, ...]:
    out: list[ChatMessage] = []
    if body.instructions:
        out.append(ChatMessage(role="system", content=body.instructions))
    if isinstance(body.input, str):
        out.append(ChatMessage(role="user", content=body.input))
        return tuple(out)
    called: set[str] = set()
    for index, item in enumerate(body.input):
        at = f"input[{index}]"
        match item.type:
            case "message":
                role = _given(item.role, f"{at}.role")
                out.append(
                    ChatMessage(
                        role="system" if role == "developer" else role,  # type: ignore[arg-type]
                        content=_text(_given(item.content, f"{at}.content"), f"{at}.content"),
                    )
                )
            case "function_call":
                call = ToolCall(
                    id=_given(item.call_id, f"{at}.call_id"),
                    name=_given(item.name, f"{at}.name"),
                    arguments=_given(item.arguments, f"{at}.arguments"),
                )
                called.add(call.id)
                _add_call(out, call)
            case "function_call_output":
                call_id = _given(item.call_id, f"{at}.call_id")
                if call_id not in called:
                    raise BadRequest(
                        f"No tool call found for function call output with call_id {call_id}.",
                        param=at,
                    )
                output = _text(_given(item.output, f"{at}.output"), f"{at}.output")
                out.append(ChatMessage(role="tool", content=output, tool_call_id=call_id))
            case "reasoning":
                pass  # Other models' notes to themselves.
    if not out:
        raise BadRequest("Invalid 'input': it holds no message.", param="input", code="empty_array")
    return tuple(out)


def _add_call(out: list[ChatMessage], call: ToolCall) -> None:
    """Put a call into the assistant's turn that it belongs to, or begin one."""
    last = out[-1] if out else None
    if last is not None and last.role == "assistant":
        out[-1] = ChatMessage(
            role="assistant", content=last.content, tool_calls=(*last.tool_calls, call)
        )
    else:
        out.append(ChatMessage(role="assistant", tool_calls=(call,)))


def _given[T](value: T | None, param: str) -> T:
    if value is None:
        raise BadRequest(
            f"Missing required parameter: '{param}'.",
            param=param,
            code="missing_required_parameter",
        )
    return value


def _text(content: str | Sequence[InputPart | str], at: str) -> str:
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for index, part in enumerate(content):
        match part:
            case InputText() | OutputText():
                texts.append(part.text)
            case OutputRefusal():
                texts.append(part.refusal)
            case _:
                kind = _KINDS.get(type(part), "unknown")
                raise BadRequest(
                    f"Invalid content type: '{kind}'. This model reads text only; send the content "
                    "as parts of type 'input_text'.",
                    param=f"{at}[{index}].type",
                    code="unsupported_content_type",
                )
    return "\n".join(texts)
