"""Requests to language models, from the bus to an engine and back.

A worker takes ``concurrency`` requests at a time, so that the others stay in the queue for whoever
is free. Events of an answer travel in chunks; the response comes last. ``guard`` says what becomes
of a request that is refused or breaks the engine. Answering a copy of a request costs the work once
more and has no other effect.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from msgspec.structs import replace

from qbtc.bus import Bus, Delivery, Subscription, WorkQueue
from qbtc.bus.topology import LLM_REQUESTS
from qbtc.errors import MessageError
from qbtc.llm.engine import Engine
from qbtc.messages.envelope import message
from qbtc.messages.events import Embedded, Failure, LlmChunk, LlmRequest, LlmResponse
from qbtc.messages.language import Embeddings, Event, Prefill
from qbtc.worker.batches import batches
from qbtc.worker.collect import collect
from qbtc.worker.guard import guarded

__all__ = ["serve_language"]

CHUNK_INTERVAL_S = 0.02
"""Events that come closer than this travel together: a chunk costs 0.3 ms of both sides' time."""
CHUNK_EVENTS_MAX = 256


async def serve_language(
    bus: Bus, engine: Engine, *, source: str, concurrency: int = 8
) -> Subscription:
    """Answer requests until the subscription is stopped.

    Parameters
    ----------
    bus, engine
        Where they come from, and who answers.
    source
        Who this is: ``qbtc/worker/<instance>``.
    concurrency
        How many at the same time.
    """
    worker = _Worker(engine, source)
    return await bus.subscribe(WorkQueue(LLM_REQUESTS), worker.handle, prefetch=concurrency)


class _Worker:
    def __init__(self, engine: Engine, source: str) -> None:
        self._engine = engine
        self._source = source

    async def handle(self, delivery: Delivery) -> None:
        """Answer one request."""
        await guarded(delivery, self._serve, self._refuse)

    async def _serve(self, delivery: Delivery) -> None:
        await self._reply(delivery, await self._answer(delivery))

    async def _refuse(self, delivery: Delivery, failure: Failure) -> None:
        done = self._response(delivery)
        await self._reply(delivery, replace(done, status="error", failure=failure))

    async def _answer(self, delivery: Delivery) -> LlmResponse:
        engine, request, done = self._engine, delivery.message.data, self._response(delivery)
        match request:
            case LlmRequest(operation="chat", chat=asked) if asked is not None:
                return await self._generate(delivery, engine.chat(asked), stream=request.stream)
            case LlmRequest(operation="completion", completion=asked) if asked is not None:
                return await self._generate(delivery, engine.complete(asked), stream=request.stream)
            case LlmRequest(operation="embedding", embedding=asked) if asked is not None:
                return replace(done, embedded=_embedded(await engine.embed(asked)))
            case LlmRequest(operation="tokenize", tokenize=asked) if asked is not None:
                tokens = await engine.tokenize(asked.model, asked.text, special=asked.special)
                return replace(done, tokens=tuple(tokens))
            case LlmRequest(operation="tokenize_chat", tokenize_chat=asked) if asked is not None:
                tokens = await engine.tokenize_chat(
                    asked.model, asked.messages, asked.tools, asked.response_format
                )
                return replace(done, tokens=tuple(tokens))
            case LlmRequest(operation="detokenize", detokenize=asked) if asked is not None:
                return replace(done, text=await engine.detokenize(asked.model, asked.tokens))
            case LlmRequest(operation="models"):
                return replace(done, models=tuple(await engine.models()))
            case LlmRequest(operation=operation):
                raise MessageError(f"{delivery.message.type}: the field '{operation}' is missing")
            case _:
                raise MessageError(f"{delivery.message.type} is not for a language worker")

    async def _generate(
        self, delivery: Delivery, events: AsyncIterator[Event], *, stream: bool
    ) -> LlmResponse:
        done, chunks = self._response(delivery), 0
        if not stream:
            async with aclosing(_closable(events)):
                return replace(done, choices=await collect(events))
        cut = batches(
            events, interval_s=CHUNK_INTERVAL_S, items_max=CHUNK_EVENTS_MAX, patient=_is_answer
        )
        async with aclosing(cut):
            async for batch in cut:
                chunk = LlmChunk(
                    request_id=done.request_id,
                    attempt=delivery.attempt,
                    sequence=chunks,
                    events=batch,
                )
                await self._reply(delivery, chunk)
                chunks += 1
        return replace(done, chunks=chunks)

    async def _reply(self, delivery: Delivery, data: LlmChunk | LlmResponse) -> None:
        asked = delivery.message
        answer = message(
            data,
            source=self._source,
            subject=asked.subject,
            correlationid=asked.correlationid,
        )
        await delivery.reply(answer, last=isinstance(data, LlmResponse))

    def _response(self, delivery: Delivery) -> LlmResponse:
        asked = delivery.message
        return LlmResponse(
            request_id=asked.correlationid,
            attempt=delivery.attempt,
            status="success",
            model=asked.subject,
            worker=self._source.rpartition("/")[2],
        )


def _embedded(found: Embeddings) -> Embedded:
    return Embedded(
        vectors=found.vectors, dimensions=found.dimensions, prompt_tokens=found.prompt_tokens
    )


def _is_answer(event: Event) -> bool:
    """Whether more of the same follows soon; the first text after a prompt should not wait."""
    return not isinstance(event, Prefill)


def _closable(events: AsyncIterator[Event]) -> Any:
    """Every engine's iterator can be closed; the protocol's type does not say so."""
    return cast(Any, events)
