"""``POST /v1/responses``, stateless: one answer as an object, or as the SDK's typed events."""

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from qbtc.messages.language import ChatRequest, Finished, TextDelta, TokenLogprob, ToolCallDelta
from qbtc_gateway.answers import Answer, json_response, new_id, now_s, serve
from qbtc_gateway.body import read_body
from qbtc_gateway.chunks import Call, chat_logprobs
from qbtc_gateway.errors import ApiError, named
from qbtc_gateway.responses_types import ResponsesBody, responses_field, responses_request
from qbtc_gateway.sse import named_frame
from qbtc_gateway.state import gateway_of

__all__ = ["router"]

router = APIRouter()


@router.post("/v1/responses")
async def responses(request: Request) -> Response:
    """Answer; nothing is stored, so the whole conversation comes with the request."""
    body = await read_body(request, ResponsesBody)
    asked = responses_request(body)
    writer = _Writer(body, asked)
    return await serve(
        request,
        lambda: gateway_of(request).engine.chat(asked),
        answers=asked.n,
        whole=writer.whole,
        frames=writer.frames if body.stream else None,
        error_frame=writer.failed,
        field=responses_field,
    )


@router.post("/v1/responses/input_tokens")
async def input_tokens(request: Request) -> Response:
    """Count the tokens of a prompt as the model reads it."""
    asked = responses_request(await read_body(request, ResponsesBody))
    tools = asked.tools if asked.tool_choice.mode != "none" else ()
    with named(responses_field):
        tokens = await gateway_of(request).engine.tokenize_chat(
            asked.model, asked.messages, tools, asked.response_format
        )
    return json_response({"object": "response.input_tokens", "input_tokens": len(tokens)})


type _Event = dict[str, Any]


class _Text:
    """The message of an answer, as it comes in."""

    def __init__(self) -> None:
        self.id = new_id("msg_")
        self.pieces: list[str] = []
        self.logprobs: list[TokenLogprob] = []

    def part(self) -> _Event:
        """Return its one part of content."""
        return {
            "type": "output_text",
            "text": "".join(self.pieces),
            "annotations": [],
            "logprobs": _logprobs(self.logprobs),
        }

    def item(self, status: str) -> _Event:
        """Return the output item."""
        content = [] if status == "in_progress" else [self.part()]
        return {
            "id": self.id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }


class _FunctionCall(Call):
    """A function call of an answer, as it comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.item_id = new_id("fc_")

    def item(self, status: str) -> _Event:
        """Return the output item."""
        return {
            "id": self.item_id,
            "type": "function_call",
            "status": status,
            "call_id": self.id,
            **self.function(),
        }


class _Writer:
    """Builds the response object; each change of it is an event."""

    def __init__(self, body: ResponsesBody, asked: ChatRequest) -> None:
        self._body = body
        self._asked = asked
        self._id = new_id("resp_")
        self._created = now_s()
        self._number = 0
        self._items: list[_Text | _FunctionCall] = []
        self._open: _Text | _FunctionCall | None = None
        self._status = "in_progress"
        self._usage: dict[str, Any] | None = None

    async def whole(self, answer: Answer) -> _Event:
        """Collect the answer."""
        async for _ in self._events(answer):
            pass
        return self._response()

    async def frames(self, answer: Answer) -> AsyncGenerator[bytes]:
        """Yield the events in the order that the SDK's accumulator wants."""
        for kind in ("response.created", "response.in_progress"):
            yield self._frame({"type": kind, "response": self._response()})
        async for event in self._events(answer):
            yield self._frame(event)
        yield self._frame({"type": f"response.{self._status}", "response": self._response()})

    def failed(self, error: ApiError) -> bytes:
        """Return what ends a stream that went wrong."""
        self._status = "failed"
        response = self._response()
        response["error"] = {
            "code": error.detail.code or error.detail.type,
            "message": error.detail.message,
        }
        return self._frame({"type": "response.failed", "response": response})

    def _frame(self, event: _Event) -> bytes:
        event["sequence_number"] = self._number
        self._number += 1
        return named_frame(event["type"], event)

    async def _events(self, answer: Answer) -> AsyncGenerator[_Event]:
        async for event in answer.events():
            match event:
                case TextDelta():
                    for each in self._text(event):
                        yield each
                case ToolCallDelta():
                    for each in self._call(event):
                        yield each
                case Finished():
                    done = "incomplete" if event.reason == "length" else "completed"
                    if not self._items:
                        # An answer without a word is still an answer.
                        for each in self._begin(_Text()):
                            yield each
                    for each in self._close(done):
                        yield each
                    self._status = done
                    self._usage = _usage(answer)

    def _text(self, event: TextDelta) -> list[_Event]:
        events: list[_Event] = []
        text = self._open
        if not isinstance(text, _Text):
            events += self._close("completed")
            text = _Text()
            events += self._begin(text)
        text.pieces.append(event.text)
        text.logprobs.extend(event.logprobs)
        return [
            *events,
            {
                "type": "response.output_text.delta",
                "item_id": text.id,
                "output_index": len(self._items) - 1,
                "content_index": 0,
                "delta": event.text,
                "logprobs": _logprobs(event.logprobs),
            },
        ]

    def _call(self, event: ToolCallDelta) -> list[_Event]:
        events: list[_Event] = []
        call = self._open
        if event.id is not None or not isinstance(call, _FunctionCall):
            events += self._close("completed")
            call = _FunctionCall()
            call.id, call.name = event.id or "", event.name or ""
            events += self._begin(call)
        if event.arguments:
            call.arguments.append(event.arguments)
            events.append(
                {
                    "type": "response.function_call_arguments.delta",
                    "item_id": call.item_id,
                    "output_index": len(self._items) - 1,
                    "delta": event.arguments,
                }
            )
        return events

    def _begin(self, item: _Text | _FunctionCall) -> list[_Event]:
        self._items.append(item)
        self._open = item
        index = len(self._items) - 1
        events: list[_Event] = [
            {
                "type": "response.output_item.added",
                "output_index": index,
                "item": item.item("in_progress"),
            }
        ]
        if isinstance(item, _Text):
            events.append(
                {
                    "type": "response.content_part.added",
                    "item_id": item.id,
                    "output_index": index,
                    "content_index": 0,
                    "part": item.part(),
                }
            )
        return events

    def _close(self, status: str) -> list[_Event]:
        item, self._open = self._open, None
        index = len(self._items) - 1
        if item is None:
            return []
        events: list[_Event] = []
        if isinstance(item, _Text):
            part = item.part()
            at = {"item_id": item.id, "output_index": index, "content_index": 0}
            events += [
                {
                    "type": "response.output_text.done",
                    **at,
                    "text": part["text"],
                    "logprobs": part["logprobs"],
                },
                {"type": "response.content_part.done", **at, "part": part},
            ]
        else:
            events.append(
                {
                    "type": "response.function_call_arguments.done",
                    "item_id": item.item_id,
                    "output_index": index,
                    "name": item.name,
                    "arguments": item.function()["arguments"],
                }
            )
        return [
            *events,
            {
                "type": "response.output_item.done",
                "output_index": index,
                "item": item.item(status),
            },
        ]

    def _response(self) -> _Event:
        body, asked = self._body, self._asked
        status = self._status
        last = len(self._items) - 1
        output = [
            item.item(status if index == last and status == "incomplete" else "completed")
            for index, item in enumerate(self._items)
        ]
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": (
                {"reason": "max_output_tokens"} if status == "incomplete" else None
            ),
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": body.model,
            "output": [] if status == "in_progress" else output,
            "parallel_tool_calls": asked.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": asked.sampling.temperature,
            "text": {"format": self._format()},
            "tool_choice": body.tool_choice or "auto",
            "tools": [
                {
                    "type": "function",
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                    "strict": tool.strict,
                }
                for tool in asked.tools
            ],
            "top_logprobs": asked.top_logprobs,
            "top_p": asked.sampling.top_p,
            "truncation": "disabled",
            "usage": self._usage,
            "user": body.user,
        }

    def _format(self) -> Any:
        given = self._body.text.format if self._body.text is not None else None
        return given if given is not None else {"type": "text"}


def _logprobs(entries: tuple[TokenLogprob, ...] | list[TokenLogprob]) -> list[Any]:
    content: list[Any] = chat_logprobs(entries)["content"]
    return content


def _usage(answer: Answer) -> dict[str, Any]:
    totals = answer.totals
    return {
        "input_tokens": totals.prompt_tokens,
        "input_tokens_details": {"cached_tokens": totals.cached_tokens},
        "output_tokens": totals.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": totals.prompt_tokens + totals.completion_tokens,
    }
