"""``POST /v1/chat/completions``."""

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from qbtc.messages.language import ChatRequest, Finished, TextDelta, ToolCallDelta
from qbtc_gateway.answers import FINGERPRINT, Answer, new_id, now_s, serve
from qbtc_gateway.body import read_body
from qbtc_gateway.chunks import Call, chat_logprobs, collect_call
from qbtc_gateway.errors import ApiError
from qbtc_gateway.openai_types import ChatBody
from qbtc_gateway.sse import DONE, encode, frame
from qbtc_gateway.state import gateway_of
from qbtc_gateway.translate import chat_field, chat_request

__all__ = ["router"]

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    """Continue a conversation."""
    body = await read_body(request, ChatBody)
    asked = chat_request(body)
    writer = _Writer(body, asked)
    functions = body.functions is not None
    return await serve(
        request,
        lambda: gateway_of(request).engine.chat(asked),
        answers=asked.n,
        whole=writer.whole,
        frames=writer.frames if body.stream else None,
        error_frame=error_frame,
        field=lambda param: chat_field(param, functions=functions),
    )


def error_frame(error: ApiError) -> bytes:
    """Return what ends a stream that went wrong."""
    return frame({"error": error.fields()}) + DONE


class _Choice:
    """One answer of ``n`` as it comes in."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.logprobs: list[Any] = []
        self.calls: dict[int, Call] = {}
        self.reason = "stop"


class _Writer:
    """Writes an answer, in one piece or in chunks.

    Clients that gave ``functions`` get a ``function_call`` where others get ``tool_calls``.
    """

    def __init__(self, body: ChatBody, asked: ChatRequest) -> None:
        self._old_calls = body.functions is not None
        self._logprobs = asked.logprobs
        self._choices = asked.n
        self._usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        self._head: dict[str, Any] = {
            "id": new_id("chatcmpl-"),
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": now_s(),
            "model": body.model,
            "system_fingerprint": FINGERPRINT,
        }
        # Most of a stream is text; all but the text of its chunks is written once.
        chunk = self._chunk(0, {"content": "text"}).replace(b"%", b"%%")
        before, after = chunk.split(b'"index":0,"delta":{"content":"text"}')
        self._text = before + b'"index":%d,"delta":{"content":%b}' + after

    async def whole(self, answer: Answer) -> dict[str, Any]:
        """Collect the answer."""
        choices = [_Choice() for _ in range(self._choices)]
        async for event in answer.events():
            choice = choices[event.choice]
            match event:
                case TextDelta():
                    choice.texts.append(event.text)
                    choice.logprobs.extend(event.logprobs)
                case ToolCallDelta():
                    collect_call(choice.calls, event)
                case Finished():
                    choice.reason = self._reason(event)
        return {
            **self._head,
            "choices": [self._choice(index, choice) for index, choice in enumerate(choices)],
            "usage": answer.totals.usage(),
        }

    def _choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        text = "".join(choice.texts)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if choice.calls:
            message["content"] = text or None
            calls = [choice.calls[number] for number in sorted(choice.calls)]
            if self._old_calls:
                message["function_call"] = calls[0].function()
            else:
                message["tool_calls"] = [
                    {"id": call.id, "type": "function", "function": call.function()}
                    for call in calls
                ]
        return {
            "index": index,
            "message": message,
            "logprobs": chat_logprobs(choice.logprobs) if self._logprobs else None,
            "finish_reason": choice.reason,
        }

    async def frames(self, answer: Answer) -> AsyncGenerator[bytes]:
        """Yield chunks: roles, deltas, finish reasons, usage if asked for, ``[DONE]``."""
        for index in range(self._choices):
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})
        async for event in answer.events():
            match event:
                case TextDelta() if not self._logprobs:
                    yield self._text % (event.choice, encode(event.text))
                case TextDelta():
                    logprobs = chat_logprobs(event.logprobs)
                    yield self._chunk(event.choice, {"content": event.text}, logprobs=logprobs)
                case ToolCallDelta():
                    yield self._chunk(event.choice, self._call_delta(event))
                case Finished():
                    yield self._chunk(event.choice, {}, reason=self._reason(event))
        if self._usage:
            yield frame({**self._head, "choices": [], "usage": answer.totals.usage()})
        yield DONE

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._head, "choices": [choice]}
        if self._usage:
            chunk["usage"] = None
        return frame(chunk)

    def _call_delta(self, event: ToolCallDelta) -> dict[str, Any]:
        """Return a delta; id and name stand in a call's first one only, as clients join them."""
        function: dict[str, str] = {"arguments": event.arguments}
        if event.name is not None:
            function = {"name": event.name, **function}
        if self._old_calls:
            return {"function_call": function}
        call: dict[str, Any] = {"index": event.call, "function": function}
        if event.id is not None:
            call = {"index": event.call, "id": event.id, "type": "function", "function": function}
        return {"tool_calls": [call]}

    def _reason(self, event: Finished) -> str:
        if event.reason == "tool_calls" and self._old_calls:
            return "function_call"
        return event.reason
