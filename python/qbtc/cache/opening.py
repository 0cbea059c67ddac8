"""From an address to a cache."""

from typing import Final

from qbtc.cache.memory import MemoryCache
from qbtc.cache.protocol import Cache
from qbtc.config.urls import redacted
from qbtc.errors import InputError

__all__ = ["KEY_PREFIX", "REDIS_SCHEMES", "open_cache"]

KEY_PREFIX: Final = "qbtc:"
REDIS_SCHEMES: Final = ("redis://", "rediss://", "unix://")


def open_cache(url: str | None, *, prefix: str = KEY_PREFIX) -> Cache:
    """Return a cache; no server is asked yet.

    Parameters
    ----------
    url
        ``redis://host:6379/0``; None or ``memory://``: in this process.
    prefix
        What the keys in Redis begin with.

    Raises
    ------
    InputError
        The address is of no kind that is known, or malformed.
    """
    if url is None or url == "memory://":
        return MemoryCache()
    if not url.startswith(REDIS_SCHEMES):
        raise InputError(
            f"no cache at {redacted(url)}: give redis://HOST:6379/0, rediss:// or memory://"
        )
    # Redis's library takes a third of a second to import; most processes do without.
    from qbtc.cache.link import RedisLink
    from qbtc.cache.redis import RedisCache

    return RedisCache(RedisLink(url), prefix=prefix)
