"""Small things that are quick to have again: answers, marks of messages seen.

In this process, or Redis, by URL. A cache may forget at any time and never raises because its
server is away: everything works without, only slower.
"""

from qbtc.cache.opening import open_cache
from qbtc.cache.protocol import Cache

__all__ = ["Cache", "open_cache"]
