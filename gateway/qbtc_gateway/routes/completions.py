"""``POST /v1/completions``: texts continued without a chat template."""

import codecs
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from qbtc.llm.engine import Engine
from qbtc.llm.interleave import Interleaved
from qbtc.messages.language import (
    Alternative,
    CompletionRequest,
    Event,
    Finished,
    Prefill,
    TextDelta,
    TokenLogprob,
)
from qbtc_gateway.answers import FINGERPRINT, Answer, new_id, now_s, serve
from qbtc_gateway.body import read_body
from qbtc_gateway.errors import BadRequest
from qbtc_gateway.openai_types import CompletionBody
from qbtc_gateway.routes.chat import error_frame
from qbtc_gateway.sse import DONE, frame
from qbtc_gateway.state import gateway_of
from qbtc_gateway.translate import sampling, stops

__all__ = ["router"]

PROMPTS_MAX = 64
"""Prompts of one request."""
ANSWERS_MAX = 128
"""Prompts times ``n``."""
MAX_TOKENS_DEFAULT = 16
"""OpenAI's, for this endpoint."""

_Decoder = codecs.getincrementaldecoder("utf-8")

router = APIRouter()


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    """Continue one or several texts."""
    body = await read_body(request, CompletionBody)
    asked = _requests(body)
    writer = _Writer(body, len(asked))
    return await serve(
        request,
        lambda: _events(gateway_of(request).engine, asked),
        answers=sum(each.n for each in asked),
        prompts=len(asked),
        whole=writer.whole,
        frames=writer.frames if body.stream else None,
        error_frame=error_frame,
    )


def _requests(body: CompletionBody) -> list[CompletionRequest]:
    choices = body.n or 1
    if body.best_of is not None and body.best_of != choices:
        raise BadRequest(
            "Unsupported value: 'best_of' must equal 'n'; answers are not ranked here.",
            param="best_of",
            code="unsupported_value",
        )
    if body.echo and body.logprobs is not None:
        raise BadRequest(
            "Unsupported value: 'echo' with 'logprobs'; log-probabilities of the prompt are not "
            "computed here.",
            param="echo",
            code="unsupported_value",
        )
    prompts = _prompts(body.prompt)
    if len(prompts) > PROMPTS_MAX or len(prompts) * choices > ANSWERS_MAX:
        raise BadRequest(
            f"Invalid 'prompt': array too long. Expected at most {PROMPTS_MAX} prompts and "
            f"{ANSWERS_MAX} answers.",
            param="prompt",
            code="array_above_max_length",
        )
    return [
        CompletionRequest(
            model=body.model,
            prompt=prompt,
            suffix=body.suffix or None,
            sampling=sampling(body),
            max_tokens=MAX_TOKENS_DEFAULT if body.max_tokens is None else body.max_tokens,
            stop=stops(body.stop),
            n=choices,
            echo=bool(body.echo),
            logprobs=body.logprobs is not None,
            top_logprobs=body.logprobs or 0,
        )
        for prompt in prompts
    ]


def _prompts(given: str | list[str | int | list[int]]) -> list[str | tuple[int, ...]]:
    """Return the prompts: a text, texts, the tokens of one, or those of several."""
    if isinstance(given, str):
        return [given]
    kinds = {type(each) for each in given}
    if len(kinds) != 1:
        raise BadRequest(
            "Invalid type for 'prompt': expected a string, or an array of strings, of tokens, or "
            "of arrays of tokens, but got a mixture.",
            param="prompt",
            code="invalid_type",
        )
    if kinds == {int}:
        return [tuple(each for each in given if isinstance(each, int))]
    return [tuple(each) if isinstance(each, list) else str(each) for each in given]


def _events(engine: Engine, asked: list[CompletionRequest]) -> AsyncIterator[Event]:
    """Ask the engine for all prompts at once; answer ``i`` of prompt ``p`` is ``p * n + i``."""
    if len(asked) == 1:
        return engine.complete(asked[0])
    read = [Prefill(done=0, total=0, cached=0)] * len(asked)
    return Interleaved(
        [
            _numbered(engine.complete(request), index, request.n, read)
            for index, request in enumerate(asked)
        ]
    )


async def _numbered(
    events: AsyncIterator[Event], prompt: int, answers: int, read: list[Prefill]
) -> AsyncGenerator[Event]:
    """Yield events of one of several prompts, numbered; ``read`` is how far each prompt is."""
    first = prompt * answers
    try:
        async for event in events:
            if isinstance(event, Prefill):
                read[prompt] = event
                yield msgspec.structs.replace(
                    event,
                    done=sum(each.done for each in read),
                    total=sum(each.total for each in read),
                    cached=sum(each.cached for each in read),
                )
            else:
                yield msgspec.structs.replace(event, choice=first + event.choice)
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


class _Writer:
    """Writes answers, in one piece or in chunks."""

    def __init__(self, body: CompletionBody, prompts: int) -> None:
        self._choices = prompts * (body.n or 1)
        self._logprobs = body.logprobs is not None
        self._usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        # Of each answer: characters that its tokens make up, as a token may end inside of one.
        self._offsets = [0] * self._choices
        self._decoders = [_Decoder(errors="replace") for _ in range(self._choices)]
        self._head: dict[str, Any] = {
            "id": new_id("cmpl-"),
            "object": "text_completion",
            "created": now_s(),
            "model": body.model,
            "system_fingerprint": FINGERPRINT,
        }

    async def whole(self, answer: Answer) -> dict[str, Any]:
        """Collect the answers."""
        texts: list[list[str]] = [[] for _ in range(self._choices)]
        logprobs: list[list[TokenLogprob]] = [[] for _ in range(self._choices)]
        reasons = ["stop"] * self._choices
        async for event in answer.events():
            match event:
                case TextDelta():
                    texts[event.choice].append(event.text)
                    logprobs[event.choice].extend(event.logprobs)
                case Finished():
                    reasons[event.choice] = event.reason
        return {
            **self._head,
            "choices": [
                self._choice(index, "".join(texts[index]), logprobs[index], reasons[index])
                for index in range(self._choices)
            ],
            "usage": answer.totals.usage(),
        }

    async def frames(self, answer: Answer) -> AsyncGenerator[bytes]:
        """Yield chunks, usage if asked for, ``[DONE]``."""
        async for event in answer.events():
            match event:
                case TextDelta():
                    yield self._chunk(
                        self._choice(event.choice, event.text, list(event.logprobs), None)
                    )
                case Finished():
                    yield self._chunk(self._choice(event.choice, "", [], event.reason))
        if self._usage:
            yield frame({**self._head, "choices": [], "usage": answer.totals.usage()})
        yield DONE

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        chunk = {**self._head, "choices": [choice]}
        if self._usage:
            chunk["usage"] = None
        return frame(chunk)

    def _choice(
        self, index: int, text: str, logprobs: list[TokenLogprob], reason: str | None
    ) -> dict[str, Any]:
        return {
            "text": text,
            "index": index,
            "logprobs": self._legacy(index, logprobs) if self._logprobs else None,
            "finish_reason": reason,
        }

    def _legacy(self, index: int, entries: list[TokenLogprob]) -> dict[str, Any]:
        """Return log-probabilities as lists side by side, as this endpoint has them."""
        offsets = []
        for entry in entries:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(self._decoders[index].decode(bytes(entry.bytes)))
        return {
            "tokens": [_name(entry) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [
                {_name(other): other.logprob for other in entry.top} for entry in entries
            ],
            "text_offset": offsets,
        }


def _name(entry: TokenLogprob | Alternative) -> str:
    """Return a token's text; of one that is no text, as a part of a character, its bytes."""
    data = bytes(entry.bytes)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(
            chr(byte) if 0x20 <= byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}" for byte in data
        )
