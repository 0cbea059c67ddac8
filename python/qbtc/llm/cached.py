"""An engine that remembers its answers at temperature 0.

There an answer depends on the model's file and the request alone, so it is the same whoever
computes it and when. Kept are the events of answers that came to their end; a change of any
parameter, message or file is another answer. Answers are shared by all who ask this engine.
"""

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from qbtc.cache import Cache
from qbtc.llm.engine import Engine, EngineStats, model_named
from qbtc.llm.kept import Recording, told_again
from qbtc.messages.language import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Embeddings,
    Event,
    ModelInfo,
    ResponseFormat,
    Tool,
)

__all__ = ["CachedEngine", "answer_key"]

_LOGGER = logging.getLogger(__name__)

ANSWER_TTL_S: Final = 3_600.0
MODELS_S_MAX: Final = 1.0
"""How long the list of models is believed, and how long it is waited for."""
MODELS_OLD_S_MAX: Final = 30.0
"""How long it serves while a new one is on its way: workers may be busy with answers."""
PUTS_MAX: Final = 64
"""Answers on their way to the cache; more are not kept."""

_encode = msgspec.json.Encoder().encode


class CachedEngine:
    """Implements :class:`~qbtc.llm.engine.Engine`; what it does not keep, the engine behind does.

    The first event of an answer that could have been kept is a :class:`~qbtc.llm.kept.CacheHit` or
    :class:`~qbtc.llm.kept.CacheMiss`. A kept answer reports its whole prompt as cached and takes no
    time; the ids of its tool calls are new, as they are for an answer that is computed again.

    Parameters
    ----------
    engine
        Who computes.
    cache
        Where answers are kept; it is closed by whoever made it.
    ttl_s
        How long.
    """

    def __init__(self, engine: Engine, cache: Cache, *, ttl_s: float = ANSWER_TTL_S) -> None:
        self._engine = engine
        self._cache = cache
        self._ttl_s = ttl_s
        self._models: Sequence[ModelInfo] = ()
        self._models_s = -math.inf
        self._asking: asyncio.Task[None] | None = None
        self._puts: set[asyncio.Task[None]] = set()

    async def models(self) -> Sequence[ModelInfo]:
        """Models served."""
        return await self._engine.models()

    def chat(self, request: ChatRequest) -> AsyncGenerator[Event]:
        """Continue a conversation."""
        return self._answer(request, lambda: self._engine.chat(request))

    def complete(self, request: CompletionRequest) -> AsyncGenerator[Event]:
        """Continue a text."""
        return self._answer(request, lambda: self._engine.complete(request))

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Embed texts."""
        return await self._engine.embed(request)

    async def tokenize(self, model: str, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text."""
        return await self._engine.tokenize(model, text, special=special)

    async def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        return await self._engine.detokenize(model, tokens)

    async def tokenize_chat(
        self,
        model: str,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        response_format: ResponseFormat | None = None,
    ) -> list[int]:
        """Token ids of a conversation."""
        return await self._engine.tokenize_chat(model, messages, tools, response_format)

    def stats(self) -> EngineStats:
        """Counters and gauges of the engine that computes."""
        return self._engine.stats()

    async def close(self) -> None:
        """Let go of answers on their way to the cache, then close the engine."""
        tasks = [*self._puts] if self._asking is None else [*self._puts, self._asking]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._engine.close()

    async def _answer(
        self, request: ChatRequest | CompletionRequest, ask: Callable[[], AsyncIterator[Event]]
    ) -> AsyncGenerator[Event]:
        key = await self._key(request)
        value = await self._cache.get(key) if key is not None else None
        kept = told_again(value, request.n, new_ids=True) if value is not None else None
        if kept is not None:
            for event in kept:
                yield event
            return
        events = ask()
        recording = Recording(request.n) if key is not None else None
        try:
            async for event in events:
                yield event if recording is None else recording.take(event)
        finally:
            close: Callable[[], Any] | None = getattr(events, "aclose", None)
            if close is not None:
                await close()
        if key is None or recording is None:
            return
        value = recording.value()
        if value is not None:
            self._keep(key, value)

    async def _key(self, request: ChatRequest | CompletionRequest) -> str | None:
        """Name the answer to a request; None: it may not be the same every time."""
        if request.sampling.temperature != 0:
            return None
        info = model_named(request.model, await self._served())
        if info is None or not info.sha256:
            return None
        return answer_key(replace(request, model=info.id), info.sha256)

    async def _served(self) -> Sequence[ModelInfo]:
        """Return the models of a moment ago; none where the engine does not say in time."""
        age_s = time.monotonic() - self._models_s
        if age_s >= MODELS_S_MAX and self._asking is None:
            self._asking = asyncio.ensure_future(self._ask_models())
        if age_s >= MODELS_OLD_S_MAX and self._asking is not None:
            await asyncio.wait([self._asking], timeout=MODELS_S_MAX)
            age_s = time.monotonic() - self._models_s
        return self._models if age_s < MODELS_OLD_S_MAX else ()

    async def _ask_models(self) -> None:
        try:
            self._models = await self._engine.models()
            self._models_s = time.monotonic()
        except Exception as error:
            # The engine itself says what is wrong, to the request.
            _LOGGER.debug("answers are not kept: %s", error)
        finally:
            self._asking = None

    def _keep(self, key: str, value: bytes) -> None:
        """Keep an answer; who asked does not wait for it."""
        if len(self._puts) < PUTS_MAX:
            task = asyncio.ensure_future(self._cache.put(key, value, ttl_s=self._ttl_s))
            self._puts.add(task)
            task.add_done_callback(self._puts.discard)


def answer_key(request: ChatRequest | CompletionRequest, model_sha256: str) -> str:
    """Return the name of an answer: a hash of the model's file and of the whole request.

    The keys of schemas keep their order in it: answers follow that order.
    """
    text = _encode(("answer.v2", type(request).__name__, model_sha256, request))
    return f"answer:{hashlib.sha256(text).hexdigest()}"
