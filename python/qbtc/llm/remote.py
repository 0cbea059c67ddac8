"""An engine whose answers come from workers over the bus.

Requests wait in a queue until a worker is free. The seed is drawn here, so the answer is the same
whichever worker gives it and however often one dies over it; :class:`~qbtc.llm.attempts.Attempts`
lets each part of it out once. What a worker refuses is raised here as the engine there raised it.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from qbtc.bus import Bus, Delivery, Subscription, Topic
from qbtc.bus.topology import EVENTS
from qbtc.errors import MessageError, QbtcError
from qbtc.llm.attempts import Attempts
from qbtc.llm.engine import Stats
from qbtc.llm.errors import EngineFailed, RequestError
from qbtc.llm.failures import error_of
from qbtc.messages.envelope import Message, message, new_id
from qbtc.messages.events import (
    DetokenizeRequest,
    Health,
    LlmChunk,
    LlmRequest,
    LlmResponse,
    TokenizeChatRequest,
    TokenizeRequest,
)
from qbtc.messages.language import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Embeddings,
    Event,
    ModelInfo,
    ResponseFormat,
    Sampling,
    Tool,
)

__all__ = ["STATS_PREFIX", "BusEngine"]

_LOGGER = logging.getLogger(__name__)

MODELS_AGE_S_MAX = 10.0
"""How long the list of models is good for."""
MODELS_WAIT_S_MAX = 10.0
"""How long to wait for a worker to list them."""
HEARTBEATS_MISSED_MAX = 3
"""A worker that was silent for longer is not counted any more."""
STATS_PREFIX = "engine_"
"""What the engine's counters begin with in a worker's heartbeat."""


class BusEngine:
    """Implements :class:`~qbtc.llm.engine.Engine`. The bus stays open when this is closed.

    Parameters
    ----------
    bus
        Carries the requests.
    source
        Who asks: ``qbtc/<service>/<instance>``.
    timeout_s
        For a whole answer, with the time in the queue.
    """

    def __init__(self, bus: Bus, *, source: str, timeout_s: float = 600.0) -> None:
        self._bus = bus
        self._source = source
        self._timeout_s = timeout_s
        self._models: tuple[float, Sequence[ModelInfo]] | None = None
        self._workers: dict[str, tuple[float, Health]] = {}
        self._listening: asyncio.Task[Subscription] | None = None

    async def models(self) -> Sequence[ModelInfo]:
        """Models the workers serve, as one of them said a moment ago; the default first."""
        now = time.monotonic()
        if self._models is None or now - self._models[0] > MODELS_AGE_S_MAX:
            timeout_s = min(self._timeout_s, MODELS_WAIT_S_MAX)
            response = await self._ask(
                LlmRequest(request_id=new_id(), operation="models"), timeout_s=timeout_s
            )
            self._models = (now, response.models)
        return self._models[1]

    def chat(self, request: ChatRequest) -> AsyncGenerator[Event]:
        """Continue a conversation; see :class:`~qbtc.llm.engine.Engine`."""
        seeded = msgspec.structs.replace(request, sampling=_seeded(request.sampling))
        asked = LlmRequest(request_id=new_id(), operation="chat", stream=True, chat=seeded)
        return self._answer(asked)

    def complete(self, request: CompletionRequest) -> AsyncGenerator[Event]:
        """Continue a text; see :class:`~qbtc.llm.engine.Engine`."""
        seeded = msgspec.structs.replace(request, sampling=_seeded(request.sampling))
        asked = LlmRequest(
            request_id=new_id(), operation="completion", stream=True, completion=seeded
        )
        return self._answer(asked)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Embed texts."""
        response = await self._ask(
            LlmRequest(request_id=new_id(), operation="embedding", embedding=request)
        )
        found = response.embedded
        if found is None:
            raise _unusable(response)
        return Embeddings(
            vectors=found.vectors,
            dimensions=found.dimensions,
            prompt_tokens=found.prompt_tokens,
        )

    async def tokenize(self, model: str, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text."""
        asked = TokenizeRequest(model=model, text=text, special=special)
        return _tokens(
            await self._ask(LlmRequest(request_id=new_id(), operation="tokenize", tokenize=asked))
        )

    async def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        asked = DetokenizeRequest(model=model, tokens=tuple(tokens))
        response = await self._ask(
            LlmRequest(request_id=new_id(), operation="detokenize", detokenize=asked)
        )
        if response.text is None:
            raise _unusable(response)
        return response.text

    async def tokenize_chat(
        self,
        model: str,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        response_format: ResponseFormat | None = None,
    ) -> list[int]:
        """Token ids of a conversation as the model will read it."""
        asked = TokenizeChatRequest(
            model=model,
            messages=tuple(messages),
            tools=tuple(tools),
            response_format=response_format or ResponseFormat(),
        )
        return _tokens(
            await self._ask(
                LlmRequest(request_id=new_id(), operation="tokenize_chat", tokenize_chat=asked)
            )
        )

    def stats(self) -> Stats:
        """Sum over the workers' last heartbeats; zeros before the first one and without workers."""
        now = time.monotonic()
        self._workers = {
            instance: (heard, health)
            for instance, (heard, health) in self._workers.items()
            if now - heard <= HEARTBEATS_MISSED_MAX * health.interval_s
        }
        totals = {
            name: sum(
                int(health.counters.get(STATS_PREFIX + name, 0))
                for _, health in self._workers.values()
            )
            for name in Stats.__struct_fields__
        }
        return msgspec.convert(totals, Stats)

    async def close(self) -> None:
        """Stop listening to heartbeats."""
        task, self._listening = self._listening, None
        if task is None:
            return
        if not task.done():
            task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            await task.result().stop()

    # Requests

    async def _answer(self, request: LlmRequest) -> AsyncGenerator[Event]:
        answer = Attempts()
        self._listen()
        asked = self._message(request, self._timeout_s)
        async with aclosing(self._bus.stream(asked, timeout_s=self._timeout_s)) as replies:
            while (reply := await _next(replies)) is not None:
                match reply.data:
                    case LlmChunk() as chunk:
                        for event in answer.take(chunk):
                            yield event
                    case LlmResponse() as response:
                        _check(response)
                        answer.end(response.attempt, chunks=response.chunks)
                        return
                    case _:
                        raise _unusable(reply)
        raise EngineFailed("the answer ended without its end; ask again")

    async def _ask(self, request: LlmRequest, *, timeout_s: float | None = None) -> LlmResponse:
        self._listen()
        timeout_s = timeout_s or self._timeout_s
        try:
            reply = await self._bus.request(self._message(request, timeout_s), timeout_s=timeout_s)
        except MessageError as error:
            raise _refused(error) from None
        if not isinstance(reply.data, LlmResponse):
            raise _unusable(reply)
        _check(reply.data)
        return reply.data

    def _message(self, request: LlmRequest, timeout_s: float) -> Message:
        return message(
            request,
            id=request.request_id,
            source=self._source,
            subject=_subject(request),
            expires_s=timeout_s,
        )

    # Heartbeats

    def _listen(self) -> None:
        """Hear the workers' heartbeats from the first request on; try again if that failed."""
        task = self._listening
        if task is not None and (not task.done() or _worked(task)):
            return
        workers = Topic(exchange=EVENTS, pattern="health.worker")
        self._listening = asyncio.ensure_future(self._bus.subscribe(workers, self._hear))

    async def _hear(self, delivery: Delivery) -> None:
        health = delivery.message.data
        if isinstance(health, Health):
            self._workers[health.instance] = (time.monotonic(), health)
            if health.status == "stopping":
                del self._workers[health.instance]


def _worked(task: asyncio.Task[Subscription]) -> bool:
    if task.cancelled():
        return False
    error = task.exception()
    if error is not None:
        _LOGGER.warning("the workers' heartbeats are not heard: %s", error)
    return error is None


async def _next(replies: AsyncGenerator[Message]) -> Message | None:
    try:
        return await anext(replies, None)
    except MessageError as error:
        raise _refused(error) from None


def _subject(request: LlmRequest) -> str:
    """Model that is asked."""
    asked = getattr(request, request.operation, None)
    return str(getattr(asked, "model", "")) or "models"


def _seeded(sampling: Sampling) -> Sampling:
    """Draw the seed, so that every attempt gives the same answer."""
    if sampling.seed is not None:
        return sampling
    return msgspec.structs.replace(sampling, seed=secrets.randbits(63))


def _check(response: LlmResponse) -> None:
    if response.status == "error":
        raise _unusable(response) if response.failure is None else error_of(response.failure)


def _tokens(response: LlmResponse) -> list[int]:
    if response.tokens is None:
        raise _unusable(response)
    return list(response.tokens)


def _refused(error: MessageError) -> RequestError:
    """Say what of a request cannot travel: it is too large, or not what the schema says."""
    return RequestError(f"The request cannot be sent to a worker: {error}", code="invalid_value")


def _unusable(reply: Message | LlmResponse) -> QbtcError:
    what = reply.type if isinstance(reply, Message) else "an empty response"
    return EngineFailed(
        f"a worker answered with {what}; workers and gateways must be of one version"
    )
