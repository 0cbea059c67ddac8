"""What Roo-style editors send and expect, byte for byte on a connection.

The first request of such a client: 52 kB, a long system prompt, 21 strict tools, content as arrays
of parts, and its own headers. Then what it relies on: the order of a stream's chunks, and which
error means what. The requests are made here; nothing of a client's own text is kept.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from tests.clients.scripts import Talk
from tests.clients.served import serving
from tests.support.scripted_engine import MODEL, Script, ScriptedEngine, call, end, text

from qbtc.messages.language import ChatRequest

HEADERS = {
    "Authorization": "Bearer unused",
    "HTTP-Referer": "https://example.com/editor",
    "X-Title": "An editor",
    "User-Agent": "Editor/3.52.1",
    "X-Stainless-Lang": "js",
    "X-Stainless-Retry-Count": "0",
}
TOOLS = 21
REQUEST_BYTES = 52_000
WORDS = (
    "The assistant works step by step in the open folder, reads a file before it changes it, and "
    "says what it did. "
)


def tool(number: int) -> dict[str, Any]:
    """Return a tool as strict clients write them: every property required, none besides."""
    name = "attempt_completion" if number == 0 else f"use_tool_{number}"
    properties: dict[str, Any] = {
        "path": {"type": "string", "description": WORDS * 2},
        "lines": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "start": {"type": ["integer", "null"], "description": WORDS},
                    "text": {"type": "string"},
                    "mode": {"type": "string", "enum": ["insert", "replace", "delete"]},
                },
                "required": ["start", "text", "mode"],
                "additionalProperties": False,
            },
        },
        "result": {"type": "string", "description": WORDS * 3},
    }
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Tool number {number}. {WORDS * 4}",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            },
        },
    }


def first_request(words: str = "Add a test for the parser.") -> dict[str, Any]:
    """Return the body of a first turn, as large as the real one."""
    body: dict[str, Any] = {
        "model": MODEL,
        "temperature": 0,
        "messages": [
            {"role": "system", "content": ""},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": f"<task>\n{words}\n</task>"},
                    {
                        "type": "text",
                        "text": "<environment_details>\nfiles\n</environment_details>",
                    },
                ],
            },
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [tool(number) for number in range(TOOLS)],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
    }
    room = REQUEST_BYTES - len(json.dumps(body))
    assert room > 14_000
    body["messages"][0]["content"] = (WORDS * (room // len(WORDS) + 1))[:room]
    return body


class Client(msgspec.Struct, frozen=True):
    http: httpx.Client
    engine: ScriptedEngine

    def stream(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the chunks of a stream that ends as it must."""
        with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in response.iter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def scripted(folder: Path, script: Any) -> Iterator[Client]:
    engine = ScriptedEngine(script)
    with (
        serving(engine, folder) as url,
        httpx.Client(base_url=url, headers=HEADERS, timeout=60) as http,
    ):
        yield Client(http, engine)


@pytest.fixture
def finishing(tmp_path: Path) -> Iterator[Client]:
    """A model that says a word, then calls two tools."""

    def script(request: ChatRequest) -> Script:
        return [
            *text("Done"),
            *call("use_tool_1", '{"path":', ' "a.py"}', number=0, id="call_a"),
            *call("attempt_completion", '{"result": "x"}', number=1, id="call_b"),
            end("tool_calls", prompt=9_000, completion=30, cached=8_000),
        ]

    yield from scripted(tmp_path, script)


@pytest.fixture
def talking(tmp_path: Path) -> Iterator[Client]:
    yield from scripted(tmp_path, Talk())


def test_the_request_has_the_size_of_the_real_one() -> None:
    body = first_request()
    assert abs(len(json.dumps(body)) - REQUEST_BYTES) < 100
    assert len(body["tools"]) == TOOLS


def test_chunks_come_in_the_order_that_clients_concatenate(finishing: Client) -> None:
    chunks = finishing.stream(first_request())
    *steps, last = chunks
    assert last["choices"] == []
    usage = last["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 8_000
    assert usage["cache_read_input_tokens"] == 8_000
    assert len({chunk["id"] for chunk in chunks}) == 1
    choices = [chunk["choices"][0] for chunk in steps if chunk["choices"]]
    assert choices[0]["delta"]["role"] == "assistant"
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "Done"
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    assert reasons == ["tool_calls"]

    calls: dict[int, dict[str, str]] = {}
    for choice in choices:
        for delta in choice["delta"].get("tool_calls") or ():
            assert isinstance(delta["index"], int)
            function = delta["function"]
            if delta["index"] not in calls:
                calls[delta["index"]] = {"id": delta["id"], "name": function["name"], "text": ""}
            else:
                assert not delta.get("id"), "an id that is sent twice is written twice"
                assert not function.get("name")
            calls[delta["index"]]["text"] += function.get("arguments") or ""
    assert calls == {
        0: {"id": "call_a", "name": "use_tool_1", "text": '{"path": "a.py"}'},
        1: {"id": "call_b", "name": "attempt_completion", "text": '{"result": "x"}'},
    }


def test_the_engine_gets_every_tool_and_part(finishing: Client) -> None:
    body = first_request()
    finishing.stream(body)
    asked = finishing.engine.asked[0]
    assert isinstance(asked, ChatRequest)
    assert [tool.name for tool in asked.tools] == [t["function"]["name"] for t in body["tools"]]
    assert asked.tools[3].parameters == body["tools"][3]["function"]["parameters"]
    assert asked.sampling.temperature == 0
    assert asked.messages[0].content == body["messages"][0]["content"]
    for part in body["messages"][1]["content"]:
        assert part["text"] in asked.messages[1].content


def test_a_second_turn_brings_empty_texts_results_and_two_user_messages(finishing: Client) -> None:
    body = first_request()
    calls = [
        {
            "id": f"call_{i}",
            "type": "function",
            "function": {"name": "use_tool_1", "arguments": "{}"},
        }
        for i in "ab"
    ]
    body["messages"] += [
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_a", "content": "(empty)"},
        {"role": "tool", "tool_call_id": "call_b", "content": [{"type": "text", "text": "ok"}]},
        {"role": "user", "content": [{"type": "text", "text": "go on"}]},
        {"role": "user", "content": [{"type": "text", "text": "please"}]},
    ]
    body["max_completion_tokens"] = 512
    body["reasoning_effort"] = "low"
    body["messages"][0]["content"] = [
        {"type": "text", "text": "Be good.", "cache_control": {"type": "ephemeral"}}
    ]
    finishing.stream(body)
    asked = finishing.engine.asked[0]
    assert isinstance(asked, ChatRequest)
    roles = [message.role for message in asked.messages]
    assert roles == ["system", "user", "assistant", "tool", "tool", "user", "user"]
    assert asked.messages[3].content == "(empty)"
    assert asked.max_tokens == 512


def test_the_list_of_models_has_ids_without_traps(talking: Client) -> None:
    entries = talking.http.get("/v1/models").json()["data"]
    assert entries
    for entry in entries:
        assert not any(trap in entry["id"] for trap in ("o1", "o3", "o4", "deepseek-reasoner"))


def test_a_long_history_is_refused_in_the_words_that_make_clients_shorten_it(
    talking: Client,
) -> None:
    answer = talking.http.post("/v1/chat/completions", json=first_request("too long"))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert "context length" in error["message"]
    assert error["code"] == "context_length_exceeded"
    assert error["type"] == "invalid_request_error"


def test_a_full_server_says_when_to_come_back_before_the_stream_begins(talking: Client) -> None:
    answer = talking.http.post("/v1/chat/completions", json=first_request("busy"))
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["retry-after-ms"] == "300"


def test_an_error_in_a_stream_is_an_event_of_its_own(talking: Client) -> None:
    body = first_request("breaks")
    with talking.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        data = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    found = [json.loads(line) for line in data if line != "[DONE]"]
    error = found[-1]["error"]
    assert set(error) >= {"message", "type", "code"}
    assert "inside" not in json.dumps(found)


def test_leaving_ends_the_work(talking: Client) -> None:
    body = first_request("for ever")
    with talking.http.stream("POST", "/v1/chat/completions", json=body) as response:
        next(line for line in response.iter_lines() if "I begin" in line)
    deadline = time.monotonic() + 30
    while talking.engine.cancelled == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert talking.engine.cancelled == 1
