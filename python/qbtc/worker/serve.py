"""A worker process: connect, load, take requests, and leave nothing behind.

A broker that is away at the start is waited for, for ``CONNECT_S_MAX``; one that goes away later
comes back without our help, and its messages with it. SIGTERM and SIGINT: no new requests, those at
work may end within ``finish_s``, the rest goes back to the queue for other workers. A second
signal ends the process at once; the broker then gives its requests to others all the same.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from qbtc.bus import Bus, Subscription
from qbtc.bus.opening import open_bus
from qbtc.bus.topology import LLM_REQUESTS, TRADING_REQUESTS
from qbtc.errors import BusUnavailable
from qbtc.llm.engine import Engine, Stats
from qbtc.llm.load import find_models
from qbtc.llm.remote import STATS_PREFIX
from qbtc.worker.heartbeat import Heartbeat
from qbtc.worker.language import serve_language

if TYPE_CHECKING:
    from qbtc.worker.signals import ServedModel

__all__ = ["WorkerSettings", "load_local", "run"]

CONNECT_S_MAX = 60.0
"""How long a broker that is away at the start is waited for."""
CONNECT_AGAIN_S = 2.0
WATCH_S = 1.0
"""Between two looks at the bus, for the log."""
STATS = Stats.__struct_fields__
LEFT_AT_ONCE = 130
"""Exit code after a second signal."""


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker serves, and from where."""

    model: str | None
    """None: no language model."""
    embedding_model: str = ""
    """Empty: no embeddings."""
    signal_models: tuple[Path, ...] = ()
    """The first is the default."""
    amqp_url: str
    prefix: str = ""
    threads: int = 0
    """Of the engine; 0: one a core."""
    concurrency: int = 8
    """Requests to the language model at the same time."""
    finish_s: float = 15.0
    """At the end: how long what is being answered may go on."""

    @property
    def queues(self) -> list[str]:
        """Queues that are served."""
        names = [LLM_REQUESTS] * (self.model is not None)
        names += [TRADING_REQUESTS] * bool(self.signal_models)
        return [self.prefix + name for name in names]


async def load_local(settings: WorkerSettings) -> Engine:
    """Load the models into this process.

    Raises
    ------
    ModelError
        A model is not here, damaged or not supported.
    """
    assert settings.model is not None
    chat, embedder = await asyncio.to_thread(find_models, settings.model, settings.embedding_model)
    from qbtc.llm.local import LocalEngine

    return await LocalEngine.load(chat, embedder=embedder, threads=settings.threads or None)


def run(
    settings: WorkerSettings,
    *,
    as_json: bool = False,
    load: Callable[[WorkerSettings], Awaitable[Engine]] = load_local,
) -> None:
    """Work until a signal.

    Parameters
    ----------
    settings
        What and where.
    as_json
        Write one JSON line to stdout once requests are taken.
    load
        Makes the engine of the language model.

    Raises
    ------
    ModelError
        A model cannot be used.
    BusUnavailable
        The broker did not come in time.
    """
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    asyncio.run(_Process(settings, as_json=as_json, load=load).run())


class _Process:
    def __init__(
        self,
        settings: WorkerSettings,
        *,
        as_json: bool,
        load: Callable[[WorkerSettings], Awaitable[Engine]],
    ) -> None:
        self._settings = settings
        self._as_json = as_json
        self._load = load
        self._instance = f"{socket.gethostname()}-{os.getpid()}"[:100]
        self._source = f"qbtc/worker/{self._instance}"
        self._stopping = asyncio.Event()
        self._started_s = time.perf_counter()
        self._engine: Engine | None = None
        self._signal_models: Sequence[ServedModel] = ()

    async def run(self) -> None:
        """Work until a signal; a signal before everything is ready ends it too."""
        with _signals(self._stopping):
            work = asyncio.ensure_future(self._work())
            stop = asyncio.ensure_future(self._stopping.wait())
            await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait([work])
            if not work.cancelled():
                work.result()

    async def _work(self) -> None:
        """Until cancelled."""
        async with AsyncExitStack() as ending:
            await self._check()
            bus = await self._connect()
            ending.push_async_callback(bus.close)
            heartbeat = Heartbeat(
                bus,
                service="worker",
                instance=self._instance,
                counters=lambda: self._counters(bus),
                problem=self._problem,
            )
            heartbeat.start()
            ending.push_async_callback(heartbeat.stop)
            subscriptions = await self._serve(bus, ending)
            heartbeat.ready()
            await self._announce()
            try:
                await self._watch(bus)
            finally:
                ends = (each.stop(finish_s=self._settings.finish_s) for each in subscriptions)
                await asyncio.gather(heartbeat.stop(), *ends)

    async def _check(self) -> None:
        """Find what is wrong with the models before anyone waits for the broker."""
        settings = self._settings
        if settings.signal_models:
            from qbtc.worker.signals import load_signal_models

            self._signal_models = await asyncio.to_thread(
                load_signal_models, settings.signal_models
            )
        if settings.model is not None and self._load is load_local:
            await asyncio.to_thread(find_models, settings.model, settings.embedding_model)

    async def _connect(self) -> Bus:
        end = time.monotonic() + CONNECT_S_MAX
        while True:
            try:
                return await open_bus(
                    self._settings.amqp_url, prefix=self._settings.prefix, source=self._source
                )
            except BusUnavailable as error:
                left_s = end - time.monotonic()
                if left_s <= 0:
                    raise
                _say(f"{error}; trying for {left_s:.0f} s more")
                await asyncio.sleep(min(CONNECT_AGAIN_S, left_s))

    async def _serve(self, bus: Bus, ending: AsyncExitStack) -> list[Subscription]:
        settings = self._settings
        subscriptions: list[Subscription] = []
        if settings.model is not None:
            self._engine = await self._load(settings)
            ending.push_async_callback(self._engine.close)
            subscriptions.append(
                await serve_language(
                    bus, self._engine, source=self._source, concurrency=settings.concurrency
                )
            )
        if self._signal_models:
            from qbtc.worker.signals import serve_signals

            subscriptions.append(await serve_signals(bus, self._signal_models, source=self._source))
        return subscriptions

    async def _watch(self, bus: Bus) -> None:
        """Say when the bus goes and when it comes back."""
        known: str | None = None
        while True:
            problem = bus.problem()
            if problem != known:
                _say(f"the bus is away: {problem}" if problem else "the bus is back")
            known = problem
            await asyncio.sleep(WATCH_S)

    def _counters(self, bus: Bus) -> Mapping[str, float]:
        counters: dict[str, float] = {f"bus_{name}": n for name, n in bus.counters().items()}
        if self._engine is not None and self._problem() is None:
            stats = self._engine.stats()
            counters |= {STATS_PREFIX + name: getattr(stats, name) for name in STATS}
        return counters

    def _problem(self) -> str | None:
        if self._engine is None:
            return None
        try:
            self._engine.stats()
        except Exception as error:
            # Whatever it is, the heartbeat has to tell it.
            return f"the engine does not answer: {error}"
        return None

    async def _announce(self) -> None:
        """Say what is served: as a JSON line, and to people on stderr."""
        settings = self._settings
        models = [] if self._engine is None else [each.id for each in await self._engine.models()]
        signal_models = [path.stem for path in settings.signal_models]
        if self._as_json:
            line = {
                "pid": os.getpid(),
                "instance": self._instance,
                "queues": settings.queues,
                "models": models,
                "signal_models": signal_models,
            }
            click.echo(msgspec.json.encode(line).decode())
            sys.stdout.flush()
        seconds = time.perf_counter() - self._started_s
        _say(
            f"serving {', '.join(models + signal_models)} from {', '.join(settings.queues)};"
            f" ready in {seconds:.2f} s; Ctrl-C stops"
        )


@contextmanager
def _signals(stopping: asyncio.Event) -> Iterator[None]:
    """First signal: stop in order; second: at once."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopping.is_set():
            os._exit(LEFT_AT_ONCE)
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _say(text: str) -> None:
    from rich.console import Console
    from rich.markup import escape

    Console(stderr=True, highlight=False).print(escape(text), soft_wrap=True)
