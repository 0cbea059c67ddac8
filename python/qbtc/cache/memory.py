"""A cache in this process: the least recently used goes when it is full."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

__all__ = ["BYTES_MAX", "VALUE_BYTES_MAX", "MemoryCache"]

BYTES_MAX: Final = 64 * 1024 * 1024
"""Keys, values and their upkeep."""
VALUE_BYTES_MAX: Final = 1024 * 1024
"""One value; larger ones are not kept."""
ENTRY_BYTES: Final = 256
"""Upkeep of one entry, about."""


class MemoryCache:
    """Implements :class:`~qbtc.cache.protocol.Cache`; O(1) a call.

    Parameters
    ----------
    bytes_max, value_bytes_max
        How much is kept, and of one value.
    clock
        Seconds that only grow.
    """

    def __init__(
        self,
        *,
        bytes_max: int = BYTES_MAX,
        value_bytes_max: int = VALUE_BYTES_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bytes_max = bytes_max
        self._value_bytes_max = value_bytes_max
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0
        self._hits = 0
        self._misses = 0

    async def get(self, key: str) -> bytes | None:
        """Return what is kept."""
        value = self._find(key)
        if value is None:
            self._misses += 1
        else:
            self._hits += 1
        return value

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        """Keep bytes for a time; nothing happens where they are too large."""
        self._keep(key, value, ttl_s)

    async def add(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        """Keep bytes if there are none of that name; whether there were none."""
        if self._find(key) is not None:
            return False
        self._keep(key, value, ttl_s)
        return True

    async def remove(self, key: str, value: bytes) -> None:
        """Forget bytes, unless others are kept under that name by now."""
        if self._find(key) == value:
            self._drop(key)

    def holds(self, key: str) -> bool:
        """Whether something of that name is kept; counts as no hit."""
        return self._find(key) is not None

    def entry(self, key: str) -> tuple[float, bytes] | None:
        """Return for how many more seconds what is kept, and what; counts as no hit."""
        value = self._find(key)
        return None if value is None else (self._entries[key][0] - self._clock(), value)

    def problem(self) -> str | None:
        """Nothing can be wrong with it."""
        return None

    def counters(self) -> dict[str, int]:
        """Totals since the start."""
        return {"hits": self._hits, "misses": self._misses, "errors": 0}

    async def close(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._bytes = 0

    def _find(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        expires, value = entry
        if expires <= self._clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return value

    def _keep(self, key: str, value: bytes, ttl_s: float) -> None:
        size = _size(key, value)
        if len(value) > self._value_bytes_max or size > self._bytes_max or ttl_s <= 0:
            return
        if key in self._entries:
            self._drop(key)
        self._entries[key] = (self._clock() + ttl_s, value)
        self._bytes += size
        while self._bytes > self._bytes_max:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: str) -> None:
        _, value = self._entries.pop(key)
        self._bytes -= _size(key, value)


def _size(key: str, value: bytes) -> int:
    return len(key) + len(value) + ENTRY_BYTES
