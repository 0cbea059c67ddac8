"""The Responses API on the wire, driven by OpenAI's own client."""

from typing import Any

import pytest
from openai import AsyncOpenAI
from tests.support.gateway_client import send, with_sdk
from tests.support.scripted_engine import MODEL, ScriptedEngine, call, end, text

from qbtc.llm.errors import ContextLengthExceeded, RequestError
from qbtc.messages.language import ChatRequest

pytestmark = pytest.mark.usefixtures("every_way")

LOOK: Any = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}


def test_a_response_has_text_and_usage() -> None:
    engine = ScriptedEngine([*text("Hel", "lo"), end()])
    response = with_sdk(
        engine, lambda sdk: sdk.responses.create(model=MODEL, input="Hi", instructions="Be brief.")
    )
    assert response.output_text == "Hello"
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens == 4
    asked = engine.asked[0]
    assert isinstance(asked, ChatRequest)
    assert [(m.role, m.content) for m in asked.messages] == [
        ("system", "Be brief."),
        ("user", "Hi"),
    ]


def test_a_stream_has_the_events_in_the_order_that_the_sdk_accumulates() -> None:
    engine = ScriptedEngine(
        [*text("Let me ", "look."), *call("look", '{"a":', "1}"), end("tool_calls")]
    )

    async def use(sdk: AsyncOpenAI) -> tuple[list[Any], Any]:
        async with sdk.responses.stream(model=MODEL, input="Hi", tools=[LOOK]) as stream:
            events = [event async for event in stream]
            return events, await stream.get_final_response()

    events, final = with_sdk(engine, use)
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert final.output_text == "Let me look."
    assert (final.output[1].name, final.output[1].arguments) == ("look", '{"a":1}')


def test_items_become_turns_and_results_go_to_their_calls() -> None:
    engine = ScriptedEngine()
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Look!"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I do.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "a cat"},
    ]
    response = send(engine, "/v1/responses", {"model": MODEL, "input": items})
    assert response.status_code == 200, response.text
    asked = engine.asked[0]
    assert isinstance(asked, ChatRequest)
    assert [(m.role, m.content, len(m.tool_calls)) for m in asked.messages] == [
        ("user", "Look!", 0),
        ("assistant", "I do.", 1),
        ("tool", "a cat", 0),
    ]


def test_an_answer_that_was_cut_is_incomplete() -> None:
    response = send(
        ScriptedEngine([*text("Hel"), end("length")]),
        "/v1/responses",
        {"model": MODEL, "input": "x"},
    ).json()
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"include": "message.output_text.logprobs"}, "include"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
        ),
    ],
)
def test_what_is_not_served_is_named(body: dict[str, Any], param: str) -> None:
    response = send(ScriptedEngine(), "/v1/responses", {"model": MODEL, "input": "x"} | body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("param", "named"),
    [
        ("messages", "input"),
        ("response_format", "text.format"),
        ("response_format.json_schema.schema", "text.format.schema"),
        ("tools[1].function.parameters", "tools[1].parameters"),
        ("tools", "tools"),
        ("max_tokens", "max_output_tokens"),
        ("model", "model"),
        (None, None),
    ],
)
def test_what_the_engine_refuses_is_named_as_this_endpoint_calls_it(
    param: str | None, named: str | None, stream: bool
) -> None:
    engine = ScriptedEngine([RequestError(f"Invalid '{param}'.", param=param, code="x")])
    body = {"model": MODEL, "input": "x", "stream": stream}
    response = send(engine, "/v1/responses", body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (named, "x")
    assert error["message"] == f"Invalid '{named}'."


def test_a_refusal_in_the_middle_of_a_stream_is_named_so_too() -> None:
    refusal = ContextLengthExceeded("Invalid 'messages'.", param="messages")
    engine = ScriptedEngine([*text("Hel"), refusal])
    body = {"model": MODEL, "input": "x", "stream": True}
    assert "Invalid 'input'." in send(engine, "/v1/responses", body).text


def test_a_schema_that_is_too_large_is_named() -> None:
    schema = {"description": "x" * 300_000}
    format = {"type": "json_schema", "name": "x", "schema": schema}
    body = {"model": MODEL, "input": "x", "text": {"format": format}}
    error = send(ScriptedEngine(), "/v1/responses", body).json()["error"]
    assert error["param"] == "text.format.schema"


@pytest.mark.parametrize("strict", [True, False])
def test_tools_are_told_again_as_they_were_given(strict: bool) -> None:
    body = {"model": MODEL, "input": "x", "tools": [LOOK | {"strict": strict}]}
    told = send(ScriptedEngine(), "/v1/responses", body).json()["tools"]
    assert told[0]["strict"] is strict


@pytest.mark.parametrize(
    ("more", "asked"),
    [
        ({}, (False, 0)),
        ({"include": None}, (False, 0)),
        ({"include": ["reasoning.encrypted_content"]}, (False, 0)),
        ({"include": ["message.output_text.logprobs"]}, (True, 0)),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, (True, 2)),
        ({"top_logprobs": 2}, (True, 2)),
    ],
)
def test_log_probabilities_are_included_where_they_are_asked_for(
    more: dict[str, Any], asked: tuple[bool, int]
) -> None:
    engine = ScriptedEngine()
    response = send(engine, "/v1/responses", {"model": MODEL, "input": "x"} | more)
    assert response.status_code == 200, response.text
    request = engine.asked[0]
    assert isinstance(request, ChatRequest)
    assert (request.logprobs, request.top_logprobs) == asked


def test_an_error_in_the_middle_ends_the_stream_as_failed() -> None:
    response = send(
        ScriptedEngine([*text("Hel"), RuntimeError("secret")]),
        "/v1/responses",
        {"model": MODEL, "input": "x", "stream": True},
    )
    assert response.status_code == 200
    assert "event: response.failed" in response.text
    assert "secret" not in response.text
