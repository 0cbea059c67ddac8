"""The engine ``amqp``: workers (``qbtc worker``) behind RabbitMQ answer, no model is loaded here.

Heartbeats say whether there are workers; until the first one a list of models does. While the
broker is away requests are told at once to come back; without workers they wait a while for one.
Both are found again without a restart.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Final, cast

from qbtc.bus import open_bus
from qbtc.bus.protocol import Bus, Delivery, Topic
from qbtc.bus.topology import EVENTS
from qbtc.errors import BusUnavailable, QbtcError
from qbtc.llm.engine import Engine, EngineStats
from qbtc.llm.remote import BusEngine
from qbtc.messages.envelope import new_id
from qbtc.messages.events import Health
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
from qbtc_gateway.settings import Settings

__all__ = ["WorkersEngine", "connect_workers"]

HEARTBEATS_MISSED_MAX: Final = 3
CONNECT_S_MAX: Final = 10.0
"""How long a broker is waited for at the start; without it the server starts too."""
POLL_S: Final = 0.01
RETRY_S: Final = 0.5
"""Between two looks for a broker or a worker that is not there."""


async def connect_workers(settings: Settings) -> "WorkersEngine":
    """Return the engine; the broker and the workers may come later.

    Raises
    ------
    InputError
        The address is malformed.
    """
    source = f"qbtc/gateway/{new_id()}"
    bus = await open_bus(
        settings.amqp_url, prefix=settings.bus_prefix, source=source, must_connect=False
    )
    engine = BusEngine(bus, source=source, timeout_s=settings.answer_s_max)
    # The first connection takes a moment; requests that come early wait for it.
    with suppress(TimeoutError):
        async with asyncio.timeout(CONNECT_S_MAX):
            while bus.problem() is not None:  # noqa: ASYNC110 - a bus offers nothing to wait for
                await asyncio.sleep(POLL_S)
    return WorkersEngine(bus, engine, wait_s_max=settings.load_wait_s_max)


class WorkersEngine:
    """Implements :class:`~qbtc.llm.engine.Engine`.

    Parameters
    ----------
    bus
        Carries the requests; it is closed with this.
    engine
        Asks workers over it.
    wait_s_max
        How long a request waits for a worker to be heard.
    """

    def __init__(
        self,
        bus: Bus,
        engine: Engine,
        *,
        wait_s_max: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bus = bus
        self._engine = engine
        self._wait_s_max = wait_s_max
        self._clock = clock
        self._until: dict[str, float] = {}
        """Until when each worker is believed to be there."""
        self._answered = False
        self._heard = False
        self._news = asyncio.Event()
        self._listening = asyncio.ensure_future(self._listen())

    def problem(self) -> str | None:
        """Why no request is answered now."""
        if self.bus.problem() is not None:
            return "the message bus is away"
        if self._answered and not self._heard:
            return None
        now = self._clock()
        if any(now < until for until in self._until.values()):
            return None
        return "no worker is there"

    async def models(self) -> Sequence[ModelInfo]:
        """Models that the workers serve."""
        await self._ready()
        return await self._engine.models()

    async def chat(self, request: ChatRequest) -> AsyncGenerator[Event]:
        """Continue a conversation."""
        await self._ready()
        async with aclosing(cast("AsyncGenerator[Event]", self._engine.chat(request))) as events:
            async for event in events:
                yield event

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[Event]:
        """Continue a text."""
        await self._ready()
        asked = cast("AsyncGenerator[Event]", self._engine.complete(request))
        async with aclosing(asked) as events:
            async for event in events:
                yield event

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Embed texts."""
        await self._ready()
        return await self._engine.embed(request)

    async def tokenize(self, model: str, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text."""
        await self._ready()
        return await self._engine.tokenize(model, text, special=special)

    async def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        await self._ready()
        return await self._engine.detokenize(model, tokens)

    async def tokenize_chat(
        self,
        model: str,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        response_format: ResponseFormat | None = None,
    ) -> list[int]:
        """Token ids of a conversation."""
        await self._ready()
        return await self._engine.tokenize_chat(model, messages, tools, response_format)

    def stats(self) -> EngineStats:
        """Sum over the workers.

        Raises
        ------
        BusUnavailable
            No request is answered now.
        """
        if (problem := self.problem()) is not None:
            raise BusUnavailable(problem)
        return self._engine.stats()

    async def close(self) -> None:
        """Stop listening; close the bus."""
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        await self._engine.close()
        await self.bus.close()

    async def _ready(self) -> None:
        """Wait for a worker; refuse at once what the bus cannot carry."""
        if self.problem() is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s_max):
                while self.bus.problem() is None:
                    self._news.clear()
                    await self._news.wait()
                    if self.problem() is None:
                        return
        raise overloaded(f"Not answered now: {self.problem()}. Please try again later.")

    async def _listen(self) -> None:
        """Hear heartbeats; until the first one, ask for the models."""
        subscribed = False
        while True:
            with suppress(QbtcError):
                if not subscribed:
                    source = Topic(exchange=EVENTS, pattern="health.worker")
                    await self.bus.subscribe(source, self._hear)
                    subscribed = True
                if not self._heard:
                    self._answered = await self._lists_models()
            self._news.set()
            await asyncio.sleep(RETRY_S)

    async def _lists_models(self) -> bool:
        try:
            await self._engine.models()
        except QbtcError:
            return False
        return True

    async def _hear(self, delivery: Delivery) -> None:
        health = delivery.message.data
        if not isinstance(health, Health):
            return
        self._heard = True
        now = self._clock()
        self._until = {name: until for name, until in self._until.items() if now < until}
        if health.status == "stopping":
            self._until.pop(health.instance, None)
        else:
            self._until[health.instance] = now + HEARTBEATS_MISSED_MAX * health.interval_s
        self._news.set()
