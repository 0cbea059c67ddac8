"""A cache in Redis, which several processes share."""

import asyncio
import contextlib
from functools import partial
from typing import Final

from qbtc.cache.link import RedisAway, RedisLink
from qbtc.cache.memory import VALUE_BYTES_MAX, MemoryCache

__all__ = ["RedisCache"]

ADDED_BYTES_MAX: Final = 16 * 1024 * 1024
"""What this process keeps under the names that it added, for the time that Redis is away."""
OWED_MAX: Final = 1024
"""Marks that Redis could not be told to forget; beyond it the oldest live out their time there."""
OWED_BYTES_MAX: Final = 1024
"""One such mark; whole answers keep nobody waiting and are not remembered."""
REMOVE: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"
REPLACE: Final = (
    "local kept = redis.call('GET', KEYS[1])"
    " if not kept or kept == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end"
)


class RedisCache:
    """Implements :class:`~qbtc.cache.protocol.Cache`.

    What was removed, or put in the place of what this process added, while Redis was away is done
    there when it answers again: else a mark would keep others out for the rest of its time.

    Parameters
    ----------
    link
        The server; it is closed with the cache.
    prefix
        What the keys begin with there.
    value_bytes_max
        One value; larger ones are not kept.
    """

    def __init__(
        self, link: RedisLink, *, prefix: str, value_bytes_max: int = VALUE_BYTES_MAX
    ) -> None:
        self._link = link
        self._prefix = prefix
        self._value_bytes_max = value_bytes_max
        self._added = MemoryCache(bytes_max=ADDED_BYTES_MAX)
        self._owed: dict[tuple[str, bytes], None] = {}
        """Names and what Redis may still keep under them, against what was asked; oldest first."""
        self._paying: asyncio.Task[None] | None = None
        self._hits = 0
        self._misses = 0

    async def get(self, key: str) -> bytes | None:
        """Return what is kept; None also where the server is away."""
        value = await self._added.get(key)
        if value is None:
            with contextlib.suppress(RedisAway):
                value = await self._link.call(lambda: self._link.redis.get(self._prefix + key))
        if value is None:
            self._misses += 1
        else:
            self._hits += 1
        return value

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        """Keep bytes for a time; nothing happens where the server is away or they are too large."""
        if len(value) > self._value_bytes_max or ttl_s <= 0:
            return
        mark = self._added.entry(key)
        if mark is not None:
            await self._added.put(key, value, ttl_s=ttl_s)
        try:
            await self._link.call(
                lambda: self._link.redis.set(self._prefix + key, value, px=_ms(ttl_s))
            )
        except RedisAway:
            if mark is not None:
                self._owe(key, mark[1])

    async def add(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        """Keep bytes if there are none of that name; whether there were none.

        Where the server is away, this process knows what it added itself, before that and since.
        """
        if self._added.holds(key):
            return False
        if len(value) > self._value_bytes_max or ttl_s <= 0:
            return True
        try:
            await self._pay(key)
            added = await self._link.call(
                lambda: self._link.redis.set(self._prefix + key, value, px=_ms(ttl_s), nx=True)
            )
        except RedisAway:
            return await self._added.add(key, value, ttl_s=ttl_s)
        if not added:
            return False
        await self._added.put(key, value, ttl_s=ttl_s)
        return True

    async def remove(self, key: str, value: bytes) -> None:
        """Forget bytes, unless others are kept under that name by now."""
        await self._added.remove(key, value)
        try:
            await self._link.call(
                lambda: self._link.redis.eval(REMOVE, 1, self._prefix + key, value)
            )
        except RedisAway:
            self._owe(key, value)

    def problem(self) -> str | None:
        """Why the server does not answer."""
        return self._link.problem()

    def counters(self) -> dict[str, int]:
        """Totals since the start."""
        return {"hits": self._hits, "misses": self._misses, "errors": self._link.errors}

    async def close(self) -> None:
        """Close the connections."""
        if self._paying is not None:
            self._paying.cancel()
            await asyncio.gather(self._paying, return_exceptions=True)
        await self._link.close()

    def _owe(self, key: str, value: bytes) -> None:
        """Remember what Redis must no longer keep under a name."""
        if len(value) > OWED_BYTES_MAX:
            return
        self._owed[key, value] = None
        if len(self._owed) > OWED_MAX:
            del self._owed[next(iter(self._owed))]
        if self._paying is None or self._paying.done():
            self._paying = asyncio.create_task(self._pay_all())

    async def _pay_all(self) -> None:
        while self._owed:
            await asyncio.sleep(self._link.retry_s)
            with contextlib.suppress(RedisAway):
                for key in [key for key, _ in self._owed]:
                    await self._pay(key)

    async def _pay(self, key: str) -> None:
        """Put what this process keeps under a name, or nothing, in the place of what is owed.

        Raises
        ------
        RedisAway
            It still is.
        """
        for owed in [owed for owed in self._owed if owed[0] == key]:
            await self._link.call(partial(self._settle, *owed))
            self._owed.pop(owed, None)

    async def _settle(self, key: str, value: bytes) -> None:
        kept = self._added.entry(key)
        if kept is None:
            await self._link.redis.eval(REMOVE, 1, self._prefix + key, value)
        else:
            left_s, now = kept
            await self._link.redis.eval(REPLACE, 1, self._prefix + key, value, now, _ms(left_s))


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
