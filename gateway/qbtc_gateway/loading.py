"""An engine that is still being loaded: requests wait for it instead of failing.

The port is open while the model loads, so that a client that starts with the server gets its answer
from the first request on.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import cast

from qbtc.llm.engine import Engine, EngineStats
from qbtc.llm.errors import EngineBusy
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
from qbtc_gateway.errors import overloaded

__all__ = ["LoadingEngine"]

RETRY_S = 2.0


class LoadingEngine:
    """Answers as soon as the engine behind it can."""

    def __init__(self, load: Callable[[], Awaitable[Engine]], *, wait_s_max: float) -> None:
        self._load = load
        self._wait_s_max = wait_s_max
        self._task: asyncio.Task[Engine] | None = None
        self.closing = False

    def start(self) -> asyncio.Task[Engine]:
        """Begin to load; the task ends with the engine or with what went wrong."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())
        return self._task

    def problem(self) -> str | None:
        """Why no request can be answered now."""
        if self.closing:
            return "the server is shutting down"
        if self._task is None or not self._task.done():
            return "the model is being loaded"
        if self._task.cancelled() or self._task.exception() is not None:
            return "the model could not be loaded"
        try:
            self._task.result().stats()
        except Exception as error:
            return f"the engine does not answer: {error}"
        return None

    async def models(self) -> Sequence[ModelInfo]:
        """Models served."""
        return await (await self._engine()).models()

    async def chat(self, request: ChatRequest) -> AsyncIterator[Event]:
        """Continue a conversation."""
        engine = await self._engine()
        async with aclosing(_closable(engine.chat(request))) as events:
            async for event in events:
                yield event

    async def complete(self, request: CompletionRequest) -> AsyncIterator[Event]:
        """Continue a text."""
        engine = await self._engine()
        async with aclosing(_closable(engine.complete(request))) as events:
            async for event in events:
                yield event

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Embed texts."""
        return await (await self._engine()).embed(request)

    async def tokenize(self, model: str, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text."""
        return await (await self._engine()).tokenize(model, text, special=special)

    async def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        return await (await self._engine()).detokenize(model, tokens)

    async def tokenize_chat(
        self,
        model: str,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        response_format: ResponseFormat | None = None,
    ) -> list[int]:
        """Token ids of a conversation."""
        engine = await self._engine()
        return await engine.tokenize_chat(model, messages, tools, response_format)

    def loaded(self) -> Engine | None:
        """Return the engine, if it is there."""
        task = self._task
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        return task.result()

    def serving(self) -> bool:
        """Whether the engine is there, and the server not about to end."""
        return self.loaded() is not None and not self.closing

    def stats(self) -> EngineStats:
        """Counters and gauges now."""
        engine = self.loaded()
        if engine is None:
            raise EngineBusy("The model is being loaded.", retry_after_s=RETRY_S)
        return engine.stats()

    async def close(self) -> None:
        """Stop loading, or close the engine."""
        self.closing = True
        engine = self.loaded()
        if engine is not None:
            await engine.close()
        elif self._task is not None:
            self._task.cancel()

    async def _run(self) -> Engine:
        return await self._load()

    async def _engine(self) -> Engine:
        task = self.start()
        if not task.done():
            await asyncio.wait([task], timeout=self._wait_s_max)
        engine = self.loaded()
        if engine is None:
            raise overloaded("The model is not loaded. Please try again later.")
        return engine


class _Closable(AsyncIterator[Event]):
    async def aclose(self) -> None:
        """Cancel the work."""


def _closable(events: AsyncIterator[Event]) -> _Closable:
    """Every engine's iterator can be closed; the protocol's type does not say so."""
    return cast("_Closable", events)
