"""What is wrong with a request is said in OpenAI's words, with the parameter named."""

import asyncio
import json
from typing import Any

import pytest
from tests.support.gateway_client import HELLO, ask, http_client, send
from tests.support.scripted_engine import MODEL, ScriptedEngine, end, text

from qbtc.llm.errors import ContextLengthExceeded, EngineBusy
from qbtc_gateway.translate import SCHEMA_BYTES_MAX

pytestmark = pytest.mark.usefixtures("every_way")

TOOL: Any = {"type": "function", "function": {"name": "look"}}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": "Hi"}, "messages", "invalid_type"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "smell", "smell": "x"}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "tool", "content": "x", "tool_call_id": "c1"}]},
            "messages[0].tool_call_id",
            "invalid_value",
        ),
        ({"model": 5}, "model", "invalid_type"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": -0.1}, "temperature", "decimal_below_min_value"),
        ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
        ({"top_p": 1.1}, "top_p", "decimal_above_max_value"),
        ({"presence_penalty": 3}, "presence_penalty", "decimal_above_max_value"),
        ({"max_tokens": -1}, "max_tokens", "integer_below_min_value"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"max_completion_tokens": "5"}, "max_completion_tokens", "invalid_type"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": 17}, "n", "integer_above_max_value"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "array_above_max_length"),
        ({"stop": [""]}, "stop[0]", "empty_string"),
        ({"stop": 5}, "stop", "invalid_type"),
        ({"seed": 2**63}, "seed", "integer_above_max_value"),
        ({"logprobs": 1}, "logprobs", "invalid_type"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_type"),
        ({"logit_bias": {"5": 101}}, "logit_bias[...]", "decimal_above_max_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"tools": [{"type": "magic"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [TOOL, TOOL]}, "tools[1]", "invalid_value"),
        ({"tools": [TOOL] * 129}, "tools", "array_above_max_length"),
        (
            {"tools": [{"type": "function", "function": {"name": "look here"}}]},
            "tools[0].function.name",
            "invalid_value",
        ),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice", "invalid_value"),
        (
            {
                "tools": [TOOL],
                "tool_choice": {"type": "function", "function": {"name": "unknown"}},
            },
            "tool_choice",
            "invalid_value",
        ),
        ({"tools": [TOOL], "functions": [{"name": "f"}]}, "functions", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_required_parameter",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"const": "x" * SCHEMA_BYTES_MAX}},
                }
            },
            "response_format",
            "invalid_schema",
        ),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(body: dict[str, Any], param: str, code: str) -> None:
    engine = ScriptedEngine()
    response = ask(engine, **body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert engine.asked == []


def test_words_are_those_that_clients_know() -> None:
    def message(**body: Any) -> str:
        return str(ask(ScriptedEngine(), **body).json()["error"]["message"])

    assert message(max_tokens="5") == (
        "Invalid type for 'max_tokens': expected an integer, but got a string instead."
    )
    assert message(temperature=3) == (
        "Invalid 'temperature': decimal above maximum value. Expected a value <= 2."
    )
    assert message(messages=[]) == (
        "Invalid 'messages': empty array. Expected an array with minimum length 1."
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b'{"model": "scripted"}',
        b'{"messages": [{"role": "user", "content": "Hi"}]}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "x": "\xc3"}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "top_p": NaN}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "top_p": Infinity}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "top_p": 1e999}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "seed": 1e999}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "scripted", "tools": ' + b'[{"a":' * 50_000,
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/embeddings"])
def test_what_is_not_json_of_a_request_is_a_400(body: bytes, path: str) -> None:
    response = send(ScriptedEngine(), path, body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("depth", [80, 300, 900])
@pytest.mark.parametrize("where", ["tools", "response_format"])
def test_nested_schemas_never_break_the_server(depth: int, where: str) -> None:
    schema: Any = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"tools": [tool]} if where == "tools" else {"response_format": wanted}
    assert ask(ScriptedEngine(), **body).status_code in (200, 400)


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,!!"}}, "image_url"),
        ({"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}, "input_audio"),
        ({"type": "file", "file": {"file_id": "x"}}, "file"),
    ],
)
def test_images_sounds_and_files_are_refused_clearly(part: Any, kind: str) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}
    error = ask(ScriptedEngine(), messages=[message]).json()["error"]
    assert error["param"] == "messages[0].content[1].type"
    assert kind in error["message"]
    assert "reads text only" in error["message"]


def test_unknown_fields_are_ignored() -> None:
    response = ask(ScriptedEngine(), reasoning_effort="low", thinking={"x": 1}, user="me", zzz=[1])
    assert response.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_says_context_length(stream: bool) -> None:
    refusal = ContextLengthExceeded("This model's maximum context length is 8192 tokens.")
    response = ask(ScriptedEngine([refusal]), stream=stream)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"
    assert "maximum context length" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_a_429_that_says_when_to_come_back(stream: bool) -> None:
    response = ask(ScriptedEngine([EngineBusy("full", retry_after_s=1.25)]), stream=stream)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "2"
    assert response.headers["retry-after-ms"] == "1250"
    assert response.json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_inside_says_nothing_of_the_inside(stream: bool) -> None:
    response = ask(ScriptedEngine([RuntimeError("secret path")]), stream=stream)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["type"] == "server_error"


def test_an_error_in_the_middle_of_a_stream_is_a_frame_of_it() -> None:
    engine = ScriptedEngine([*text("Hel"), RuntimeError("secret"), *text("lo"), end()])
    response = ask(engine, stream=True)
    assert response.status_code == 200
    found = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
    assert found[-1]["error"]["type"] == "server_error"
    assert set(found[-1]["error"]) == {"message", "type", "param", "code"}
    assert response.text.endswith("data: [DONE]\n\n")
    assert "secret" not in response.text


def test_a_path_with_odd_bytes_is_a_404() -> None:
    for path in ("/v1/models/%ff%00", "/v1/models/" + "x" * 5_000, "/%2e%2e/etc"):
        assert send(ScriptedEngine(), path, method="GET").status_code == 404


def test_thousands_of_streams_are_answered() -> None:
    engine = ScriptedEngine([*text("a"), 0.05, *text("b"), end()])

    async def go() -> list[int]:
        body = {"model": MODEL, "messages": HELLO, "stream": True}
        async with http_client(engine) as http:
            found = await asyncio.gather(
                *(http.post("/v1/chat/completions", json=body) for _ in range(1_000))
            )
        assert all(response.text.endswith("data: [DONE]\n\n") for response in found)
        return [response.status_code for response in found]

    assert set(asyncio.run(go())) == {200}
    assert engine.finished == 1_000
