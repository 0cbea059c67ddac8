"""A service's heartbeat: it lives, how it is, and what it has done."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Literal

from qbtc.bus import Bus
from qbtc.errors import BusError
from qbtc.messages.envelope import Message, message, rfc3339
from qbtc.messages.events import Health

__all__ = ["Heartbeat"]

_LOGGER = logging.getLogger(__name__)

INTERVAL_S = 5.0
DETAIL_CHARS_MAX = 1_000


class Heartbeat:
    """Publishes ``Health`` on the events exchange, at once on a change and else every interval.

    Parameters
    ----------
    bus
        Carries it; one that is away costs heartbeats, which are counted.
    service, instance
        Who lives.
    counters
        Totals since the start and gauges of now.
    problem
        What is wrong; None: nothing.
    interval_s
        Seconds between two.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        service: Literal["gateway", "worker", "node"],
        instance: str,
        counters: Callable[[], Mapping[str, float]],
        problem: Callable[[], str | None],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._bus = bus
        self._service = service
        self._instance = instance
        self._counters = counters
        self._problem = problem
        self._interval_s = interval_s
        self._started_at = rfc3339(datetime.now(UTC))
        self._phase: Literal["starting", "ok", "stopping"] = "starting"
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.missed = 0
        """Heartbeats that the bus did not take."""

    def start(self) -> None:
        """Begin, as ``starting``."""
        self._task = asyncio.ensure_future(self._run())

    def ready(self) -> None:
        """Say from now on that all is well, unless there is a problem."""
        self._phase = "ok"
        self._changed.set()

    async def stop(self) -> None:
        """Say ``stopping`` once and end."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        self._phase = "stopping"
        await self._beat()

    async def _run(self) -> None:
        while True:
            await self._beat()
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()

    async def _beat(self) -> None:
        try:
            await self._bus.publish(self._message(), timeout_s=self._interval_s)
        except Exception as error:
            # Whatever it is, the next one must come: who is silent is taken to be dead.
            self.missed += 1
            level = logging.DEBUG if isinstance(error, BusError) else logging.WARNING
            _LOGGER.log(level, "no heartbeat: %s", error)

    def _message(self) -> Message:
        problem = self._problem() if self._phase == "ok" else None
        health = Health(
            service=self._service,
            instance=self._instance,
            status="degraded" if problem else self._phase,
            version=version("qbtc"),
            started_at=self._started_at,
            interval_s=self._interval_s,
            detail=(problem or "")[:DETAIL_CHARS_MAX],
            counters=dict(self._counters()),
        )
        return message(
            health,
            source=f"qbtc/{self._service}/{self._instance}",
            subject=self._service,
            expires_s=self._interval_s,
        )
