"""What a cache does."""

from typing import Protocol

__all__ = ["Cache"]


class Cache(Protocol):
    """Bytes by name, each with an age at which it is forgotten."""

    async def get(self, key: str) -> bytes | None:
        """Return what is kept; None also where the server is away."""
        ...

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        """Keep bytes for a time; nothing happens where the server is away or they are too large."""
        ...

    async def add(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        """Keep bytes if there are none of that name; whether there were none.

        Where the server is away, only this process is asked. What is put under a name that this
        process added, it therefore keeps as well.
        """
        ...

    async def remove(self, key: str, value: bytes) -> None:
        """Forget bytes, unless others are kept under that name by now."""
        ...

    def problem(self) -> str | None:
        """Why the server does not answer; None: all is well."""
        ...

    def counters(self) -> dict[str, int]:
        """Totals since the start: hits, misses, errors."""
        ...

    async def close(self) -> None:
        """Let go of the server."""
        ...
