"""Chat completions on the wire: what clients rely on, byte by byte where they do."""

from typing import Any

import jsonschema_rs
import pytest
from openai import AsyncOpenAI
from tests.support.gateway_client import HELLO, ask, frames, send, with_sdk
from tests.support.scripted_engine import EMBEDDING_MODEL, MODEL, ScriptedEngine, call, end, text

from qbtc.llm.errors import RequestError
from qbtc.messages.language import (
    Alternative,
    ChatRequest,
    ResponseFormat,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolChoice,
)
from qbtc_gateway.app import create_app
from qbtc_gateway.settings import Settings

pytestmark = pytest.mark.usefixtures("every_way")

LOOK: Any = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object"},
        "strict": True,
    },
}


def asked(**body: Any) -> ChatRequest:
    """Return what the engine is asked for a chat."""
    engine = ScriptedEngine()
    response = ask(engine, **body)
    assert response.status_code == 200, response.text
    request = engine.asked[0]
    assert isinstance(request, ChatRequest)
    return request


# Requests


def test_roles_parts_names_and_refusals_become_plain_turns() -> None:
    request = asked(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "name": "Ann",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": None, "refusal": "No."},
            {"role": "user", "content": "c"},
            {"role": "user", "content": ""},
        ]
    )
    assert [(m.role, m.content, m.name) for m in request.messages] == [
        ("system", "Be brief.", None),
        ("user", "a\nb", "Ann"),
        ("assistant", "No.", None),
        ("user", "c", None),
        ("user", "", None),
    ]


def test_calls_and_results_reach_the_engine() -> None:
    called = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    request = asked(
        messages=[
            *HELLO,
            {"role": "assistant", "content": "", "tool_calls": [called]},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "a cat"}]},
        ],
        tools=[LOOK],
    )
    assert request.messages[1].tool_calls == (ToolCall(id="c1", name="look", arguments="{}"),)
    assert request.messages[2].content == "a cat"
    assert request.messages[2].tool_call_id == "c1"
    assert request.tools[0].strict


@pytest.mark.parametrize(
    ("body", "choice"),
    [
        ({}, ToolChoice(mode="none")),
        ({"tools": []}, ToolChoice(mode="none")),
        ({"tool_choice": "auto"}, ToolChoice(mode="none")),
        ({"tools": [LOOK]}, ToolChoice(mode="auto")),
        ({"tools": [LOOK], "tool_choice": None}, ToolChoice(mode="auto")),
        ({"tools": [LOOK], "tool_choice": "none"}, ToolChoice(mode="none")),
        ({"tools": [LOOK], "tool_choice": "required"}, ToolChoice(mode="required")),
        (
            {"tools": [LOOK], "tool_choice": {"type": "function", "function": {"name": "look"}}},
            ToolChoice(mode="named", name="look"),
        ),
        (
            {"functions": [{"name": "look"}], "function_call": {"name": "look"}},
            ToolChoice(mode="named", name="look"),
        ),
    ],
)
def test_a_choice_of_tools_is_understood(body: dict[str, Any], choice: ToolChoice) -> None:
    assert asked(**body).tool_choice == choice


def test_formats_limits_and_sampling_are_understood() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    request = asked(
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": schema, "strict": True},
        },
        max_tokens=5,
        max_completion_tokens=6,
        stop="END",
        n=2,
        seed=3,
        temperature=0,
        top_p=0.5,
        logit_bias={"5": -100},
        presence_penalty=None,
        parallel_tool_calls=False,
        logprobs=True,
        top_logprobs=2,
        top_k=-1,
    )
    assert request.response_format == ResponseFormat(type="json_schema", schema=schema, strict=True)
    assert (request.max_tokens, request.stop, request.n) == (6, ("END",), 2)
    assert (request.sampling.seed, request.sampling.temperature) == (3, 0)
    assert request.sampling.logit_bias == {5: -100}
    assert (request.sampling.presence_penalty, request.sampling.top_k) == (0, 0)
    assert not request.parallel_tool_calls
    assert (request.logprobs, request.top_logprobs) == (True, 2)
    assert asked(response_format={"type": "json_object"}).response_format.type == "json_object"
    assert asked(max_tokens=5).max_tokens == 5
    assert asked().max_tokens is None


# Answers


def test_a_chat_is_answered_with_usage() -> None:
    response = ask(ScriptedEngine([*text("Hel", "lo"), end()]))
    answer = response.json()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["system_fingerprint"]
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"]["prompt_tokens"] == 7
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 4
    assert answer["usage"]["cache_read_input_tokens"] == 4


def test_several_answers_count_their_prompt_once() -> None:
    engine = ScriptedEngine(
        [*text("b", choice=1), *text("a"), end("length", choice=1, cached=7), end()]
    )
    answer = ask(engine, n=2).json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["a", "b"]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "length"]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (7, 6)
    assert answer["usage"]["cache_read_input_tokens"] == 4


def test_a_tool_call_is_part_of_the_message() -> None:
    engine = ScriptedEngine([*call("look", '{"a"', ": 1}"), end("tool_calls")])
    choice = ask(engine, tools=[LOOK]).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    ]


def test_old_clients_get_function_calls() -> None:
    script = [*call("look", "{}"), end("tool_calls")]
    body = {"functions": [{"name": "look"}]}
    choice = ask(ScriptedEngine(script), **body).json()["choices"][0]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "look", "arguments": "{}"}
    got = frames(ask(ScriptedEngine(script), stream=True, **body))
    assert got[1]["choices"][0]["delta"] == {"function_call": {"name": "look", "arguments": ""}}
    assert got[-1]["choices"][0]["finish_reason"] == "function_call"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("param", "named"),
    [
        ("tools[3].function.parameters", "functions[3].parameters"),
        ("tools", "functions"),
        ("messages", "messages"),
    ],
)
def test_old_clients_hear_of_their_functions(param: str, named: str, stream: bool) -> None:
    tool = {"type": "function", "function": {"name": "look"}}
    for body, expected in (({"functions": [tool["function"]]}, named), ({"tools": [tool]}, param)):
        engine = ScriptedEngine([RequestError("no", param=param)])
        response = ask(engine, **body, stream=stream)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == expected
    engine = ScriptedEngine([*text("Hel"), RequestError("no", param=param)])
    response = ask(engine, functions=[tool["function"]], stream=True)
    assert frames(response)[-1]["error"]["param"] == named


def test_log_probabilities_come_with_their_alternatives() -> None:
    entry = TokenLogprob(
        token="Hi",
        bytes=(72, 105),
        logprob=-0.5,
        top=(Alternative(token="Ho", bytes=(72, 111), logprob=-1.5),),
    )
    script = [TextDelta(choice=0, text="Hi", logprobs=(entry,)), end()]
    expected = {
        "content": [
            {
                "token": "Hi",
                "logprob": -0.5,
                "bytes": [72, 105],
                "top_logprobs": [{"token": "Ho", "logprob": -1.5, "bytes": [72, 111]}],
            }
        ],
        "refusal": None,
    }
    body = {"logprobs": True, "top_logprobs": 1}
    assert ask(ScriptedEngine(script), **body).json()["choices"][0]["logprobs"] == expected
    got = frames(ask(ScriptedEngine(script), stream=True, **body))
    assert got[1]["choices"][0]["logprobs"] == expected


# Streams


def test_a_stream_begins_with_the_role_and_ends_with_usage_and_done() -> None:
    engine = ScriptedEngine([*text("Hel", "lo"), end()])
    response = ask(engine, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    got = frames(response)
    assert [chunk["choices"][0]["delta"].get("role") for chunk in got[:-1]] == [
        "assistant",
        None,
        None,
        None,
    ]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in got[:-1]) == "Hello"
    assert got[-2]["choices"][0]["finish_reason"] == "stop"
    assert got[-1]["choices"] == []
    assert got[-1]["usage"]["total_tokens"] == 10
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in got}) == 1
    assert {chunk["object"] for chunk in got} == {"chat.completion.chunk"}
    assert all(chunk["usage"] is None for chunk in got[:-1])
    assert engine.finished == 1


def test_usage_is_streamed_only_to_those_who_ask() -> None:
    got = frames(ask(ScriptedEngine(), stream=True))
    assert all("usage" not in chunk for chunk in got)
    assert got[-1]["choices"][0]["finish_reason"] == "stop"


def test_tool_calls_stream_their_names_once_and_then_fragments() -> None:
    engine = ScriptedEngine(
        [
            *call("look", '{"a"', ": 1}"),
            *call("look", "{}", number=1, id="call_2"),
            end("tool_calls"),
        ]
    )
    got = frames(ask(engine, stream=True, tools=[LOOK]))
    deltas = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in got[1:-1]]
    assert deltas[0] == {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "function": {"name": "look", "arguments": ""},
    }
    assert [delta["index"] for delta in deltas] == [0, 0, 0, 1, 1]
    assert [delta["function"]["arguments"] for delta in deltas[1:3]] == ['{"a"', ": 1}"]
    assert [delta.get("id") for delta in deltas] == ["call_1", None, None, "call_2", None]
    assert all(
        "name" not in delta["function"] and "type" not in delta
        for delta in deltas
        if "id" not in delta
    )
    assert got[-1]["choices"][0]["delta"] == {}
    assert got[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_the_sdk_accumulates_a_stream() -> None:
    engine = ScriptedEngine(
        [*text("Let me look."), *call("look", '{"a"', ": 1}"), end("tool_calls")]
    )

    async def use(sdk: AsyncOpenAI) -> Any:
        async with sdk.chat.completions.stream(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], tools=[LOOK]
        ) as stream:
            async for _ in stream:
                pass
            return await stream.get_final_completion()

    message = with_sdk(engine, use).choices[0].message
    assert message.content == "Let me look."
    assert message.tool_calls[0].function.arguments == '{"a": 1}'


# The document


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/chat/completions/input_tokens", {"messages": HELLO}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/embeddings", {"input": "x", "model": EMBEDDING_MODEL}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/responses/input_tokens", {"input": "x"}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [65]}),
        ("/v1/models", None),
        ("/v1/models/{model}", None),
    ],
)
def test_requests_and_answers_are_as_the_document_says(path: str, body: Any) -> None:
    document = create_app(Settings(), ScriptedEngine()).openapi()
    method = "GET" if body is None else "POST"
    operation = document["paths"][path][method.lower()]

    def check(schema: dict[str, Any], value: Any) -> None:
        jsonschema_rs.validate(schema | {"components": document["components"]}, value)

    sent = None if body is None else {"model": MODEL} | body
    if sent is not None:
        check(operation["requestBody"]["content"]["application/json"]["schema"], sent)
    answer = send(ScriptedEngine(), path.format(model=MODEL), sent, method=method)
    assert answer.status_code == 200, answer.text
    check(operation["responses"]["200"]["content"]["application/json"]["schema"], answer.json())
    wrong = send(
        ScriptedEngine(), path.format(model="x"), None if body is None else b"{", method=method
    )
    if wrong.status_code != 200:
        check(
            operation["responses"]["default"]["content"]["application/json"]["schema"], wrong.json()
        )
