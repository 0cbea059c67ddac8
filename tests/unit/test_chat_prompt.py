"""Messages and tools become a prompt that the model's template takes and no client can forge."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from qbtc.errors import InputError
from qbtc.llm.chat import Prompt, PromptWriter, reads_tool_calls
from qbtc.messages.language import ChatMessage, ResponseFormat, Tool, ToolCall

LOOK = Tool(name="look", description="Looks.", parameters={"type": "object"})


async def chatml(messages: Any, tools: Any = None, *, add_generation_prompt: bool = True) -> str:
    """A template that knows no tools, like SmolLM2's."""
    del tools
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


async def with_tools(
    messages: Any, tools: Any = None, *, add_generation_prompt: bool = True
) -> str:
    """A template that knows tools, like Qwen's."""
    head = f"<tools>{json.dumps(tools)}</tools> <tool_call>\n" if tools else ""
    return head + json.dumps(messages) + ("\n" if add_generation_prompt else "")


async def strict(messages: Any, tools: Any = None, *, add_generation_prompt: bool = True) -> str:
    """A template without system messages, in which user and assistant take turns."""
    for index, message in enumerate(messages):
        if message["role"] != ("user", "assistant")[index % 2]:
            raise InputError("Conversation roles must alternate user/assistant/user/assistant/...")
    return await chatml(messages, tools, add_generation_prompt=add_generation_prompt)


def write(
    messages: Sequence[ChatMessage],
    tools: Sequence[Tool] = (),
    response_format: ResponseFormat | None = None,
    *,
    render: Any = chatml,
    native: bool = False,
) -> Prompt:
    writer = PromptWriter(render, native_tools=native)
    return asyncio.run(writer.write(messages, tools, response_format))


def user(content: str) -> ChatMessage:
    return ChatMessage(role="user", content=content)


def system(content: str) -> ChatMessage:
    return ChatMessage(role="system", content=content)


CALLED = ChatMessage(
    role="assistant",
    content="Let me look.",
    tool_calls=(ToolCall(id="c1", name="look", arguments='{"at": "<b>"}'),),
)
RESULT = ChatMessage(role="tool", content="a cat", tool_call_id="c1")


def test_a_plain_chat_is_what_the_template_makes_of_it() -> None:
    prompt = write([system("Be brief."), user("Hi")])
    assert prompt.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.pinned == "<|im_start|>system\nBe brief.<|im_end|>\n"


def test_tools_go_into_the_system_message_of_a_template_that_knows_none() -> None:
    prompt = write([system("Be brief."), user("Hi")], [LOOK])
    begin, _, rest = prompt.text.partition("<tools>\n")
    assert begin.startswith("<|im_start|>system\nBe brief.\n\n# Tools")
    assert json.loads(rest.split("\n</tools>")[0])["function"]["name"] == "look"
    assert "<tool_call>" in rest
    assert prompt.pinned in prompt.text
    assert "<tools>" in prompt.pinned
    assert write([user("Hi")], [LOOK]).text.startswith("<|im_start|>system\n# Tools")


def test_calls_and_results_are_written_back_as_the_model_knows_them() -> None:
    prompt = write([user("Look!"), CALLED, RESULT, RESULT, user("And?")], [LOOK])
    assert (
        "<|im_start|>assistant\nLet me look.\n"
        '<tool_call>\n{"name":"look","arguments":{"at":"<b>"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\na cat\n</tool_response>\n"
        "<tool_response>\na cat\n</tool_response><|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n"
    ) in prompt.text


def test_a_template_that_knows_tools_gets_them_with_arguments_as_objects() -> None:
    prompt = write([user("Look!"), CALLED, RESULT], [LOOK], render=with_tools, native=True)
    turns = json.loads(prompt.text.split("<tool_call>\n")[1])
    assert turns[1]["tool_calls"][0]["function"] == {"name": "look", "arguments": {"at": "<b>"}}
    assert turns[2] == {"role": "tool", "content": "a cat", "tool_call_id": "c1"}


@pytest.mark.parametrize(("render", "knows"), [(chatml, False), (with_tools, True)])
def test_a_template_is_asked_whether_it_knows_tools(render: Any, knows: bool) -> None:
    assert asyncio.run(reads_tool_calls(render)) is knows


def test_turns_are_merged_only_where_the_template_needs_it() -> None:
    messages = [
        system("S"),
        user("a"),
        user("b"),
        ChatMessage(role="assistant", content="c"),
        user("d"),
    ]
    assert write(messages).text.count("<|im_start|>user") == 3
    assert write(messages, render=strict).text == (
        "<|im_start|>user\nS\n\na\n\nb<|im_end|>\n<|im_start|>assistant\nc<|im_end|>\n"
        "<|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\n"
    )


def test_what_no_arrangement_mends_is_refused_in_the_template_s_words() -> None:
    async def never(*_: Any, **__: Any) -> str:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        write([user("x")], render=never)


def test_a_schema_is_shown_to_the_model() -> None:
    wanted = ResponseFormat(type="json_schema", schema={"type": "object"})
    assert '{"type":"object"}' in write([user("x")], (), wanted).text
