"""What stands beside the engine: Redis, the cache of answers, the records, the bus.

Each can be away while requests are answered; then it is a part that does not work, which
``/health/ready`` and the figures tell and the log says once. Nothing here makes a request wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qbtc.config.urls import redacted
from qbtc.errors import InputError
from qbtc_gateway.journal import Journal
from qbtc_gateway.metrics import Part
from qbtc_gateway.security.logs import write_line
from qbtc_gateway.settings import Settings

if TYPE_CHECKING:
    from qbtc.cache import Cache
    from qbtc.cache.link import RedisLink
    from qbtc.llm.engine import Engine
    from qbtc.store.recorder import Recorder

__all__ = ["Services"]

DATABASE_SCHEMES: Final = ("sqlite:///", "postgresql://", "postgres://")

WATCH_S: Final = 1.0
"""Between two looks at the parts, for the log."""


class Services:
    """Opens what the settings name; no server is asked before it is needed.

    Raises
    ------
    InputError
        An address is malformed, or the folder of the records cannot be written.
    """

    def __init__(self, settings: Settings) -> None:
        self.parts: dict[str, Part] = {}
        self.link: RedisLink | None = None
        self.journal: Journal | None = None
        self._keeps = settings.cache
        self._recorder: Recorder | None = None
        self._watching: asyncio.Task[None] | None = None
        if settings.redis_url:
            from qbtc.cache.link import RedisLink

            self.link = RedisLink(settings.redis_url)
            self.parts["redis"] = self.link
        # Also without kept answers: an `Idempotency-Key` needs a place.
        self.cache = _open_cache(self.link, settings.redis_prefix)
        self.parts["cache"] = self.cache
        if settings.records != "off":
            self._recorder = _open_recorder(settings.database_url)
        if self._recorder is not None:
            self.parts["records"] = self._recorder
            self.journal = Journal(
                self._recorder, engine=settings.engine, contents=settings.records == "full"
            )

    def behind(self, engine: Engine) -> Engine:
        """Put the cache before an engine, and look after the bus that it came over."""
        bus: Part | None = getattr(engine, "bus", None)
        if bus is not None:
            self.parts["bus"] = bus
        if not self._keeps:
            return engine
        from qbtc.llm.cached import CachedEngine

        return CachedEngine(engine, self.cache)

    def problems(self) -> dict[str, str]:
        """Which parts do not work, and why."""
        reasons = {name: part.problem() for name, part in self.parts.items()}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def watch(self, engine: Callable[[], str | None] = lambda: None) -> None:
        """Begin to write a line whenever a part, or the engine, stops to work or works again."""
        self._watching = asyncio.ensure_future(self._watch(engine))

    async def close(self) -> None:
        """Write what waits for the database, for a bounded time; let go of everything."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._recorder is not None:
            await asyncio.to_thread(self._recorder.close)
        await self.cache.close()
        if self.link is not None:
            await self.link.close()

    async def _watch(self, engine: Callable[[], str | None]) -> None:
        known: Mapping[str, str] = {}
        while True:
            await self._ping()
            problems = self.problems()
            if (reason := engine()) is not None:
                problems["engine"] = reason
            for name in problems.keys() - known.keys():
                write_line(
                    {
                        "level": "warning",
                        "event": "degraded",
                        "part": name,
                        "reason": problems[name],
                    }
                )
            for name in known.keys() - problems.keys():
                write_line({"level": "info", "event": "recovered", "part": name})
            known = problems
            await asyncio.sleep(WATCH_S)

    async def _ping(self) -> None:
        """Notice that Redis went or came, also while nobody asks for anything."""
        if self.link is None:
            return
        from qbtc.cache.link import RedisAway

        link = self.link
        with contextlib.suppress(RedisAway):
            await link.call(lambda: link.redis.ping())


def _open_cache(link: RedisLink | None, prefix: str) -> Cache:
    if link is None:
        from qbtc.cache import open_cache

        return open_cache(None)
    from qbtc.cache.redis import RedisCache

    return RedisCache(link, prefix=prefix)


def _open_recorder(database: str) -> Recorder | None:
    from qbtc.store.opening import database_url
    from qbtc.store.recorder import Recorder

    url = database_url(database or None)
    if url is None:
        return None
    if not url.startswith(DATABASE_SCHEMES):
        raise InputError(
            f"no database at {redacted(url)}: give sqlite:///FILE, postgresql://USER@HOST/NAME or "
            "off, in --database-url or QBTC_DATABASE_URL"
        )
    # Records that wait for one database must never end in another.
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    data = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    return Recorder(url, spool=data / "qbtc" / "spool" / name)
