"""How much one client, and all together, may have: requests and tokens a minute, and at once.

A client is a key, or an address where there is none; IPv6 addresses count by their /64, which is
what one customer gets. Rates live in this process, or in Redis for all gateways together; while
Redis is away each gateway counts alone, from what it has let through itself. Requests slide over
the minute; tokens, known only afterwards, are charged to a window that starts with the first and
may go over once. What is open at the same time each gateway counts for itself.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, Storage
from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter

from qbtc_gateway.errors import RETRY_OPEN_S, ApiError, busy, overloaded
from qbtc_gateway.settings import Limits

if TYPE_CHECKING:
    from qbtc.cache.link import RedisLink

__all__ = ["Admission", "address_identity"]


class Admission:
    """Counts what is open and what was asked.

    Parameters
    ----------
    limits
        How much is let through.
    shared
        Redis, where the rates of all gateways are counted; without it, this process counts its own.
    prefix
        What the keys in Redis begin with.
    """

    def __init__(
        self, limits: Limits, *, shared: RedisLink | None = None, prefix: str = "qbtc:"
    ) -> None:
        self._limits = limits
        self._own = _Rates(limits, MemoryStorage())
        self._link = shared
        self._shared = None if shared is None else _Rates(limits, _in_redis(shared, prefix))
        self._open: dict[str, int] = {}
        self.open_total = 0

    async def count(self, identity: str) -> dict[str, str]:
        """Count one request against its client's rates; return what to tell it in headers.

        Raises
        ------
        ApiError
            429, with the time to wait.
        """
        headers, refusal = await self._count(identity)
        if refusal is not None:
            raise refusal
        return headers

    async def _count(self, identity: str) -> _Verdict:
        if self._link is None or self._shared is None:
            return await self._own.count(identity)
        from qbtc.cache.link import RedisAway

        rates = self._shared
        try:
            verdict = await self._link.call(lambda: rates.count(identity))
        except RedisAway:
            return await self._own.count(identity)
        if verdict[1] is None:
            # Should Redis go away, nobody starts anew.
            await self._own.note(identity)
        return verdict

    async def charge(self, identity: str, tokens: int) -> None:
        """Count the tokens of an answer."""
        if tokens <= 0:
            return
        await self._own.charge(identity, tokens)
        if self._link is None or self._shared is None:
            return
        from qbtc.cache.link import RedisAway

        rates = self._shared
        with contextlib.suppress(RedisAway):
            await self._link.call(lambda: rates.charge(identity, tokens))

    def enter(self, identity: str) -> None:
        """Open a request; :meth:`leave` must follow.

        Raises
        ------
        ApiError
            429 when the client has too many open, 503 when all together have.
        """
        mine = self._open.get(identity, 0)
        if mine >= self._limits.requests_open_per_key_max:
            raise busy(
                f"Too many requests at the same time: {mine} are open. Please try again later.",
                retry_after_s=RETRY_OPEN_S,
            )
        if self.open_total >= self._limits.requests_open_max:
            raise overloaded("The server is at its limit of open requests. Please try again later.")
        self._open[identity] = mine + 1
        self.open_total += 1

    def leave(self, identity: str) -> None:
        """Close a request."""
        self.open_total -= 1
        mine = self._open[identity] - 1
        if mine:
            self._open[identity] = mine
        else:
            del self._open[identity]


type _Verdict = tuple[dict[str, str], ApiError | None]
"""What to tell a client in headers, and the refusal if there is one."""


class _Rates:
    """Requests and tokens a minute, counted in one place."""

    def __init__(self, limits: Limits, storage: Storage) -> None:
        self._sliding = SlidingWindowCounterRateLimiter(storage)
        self._fixed = FixedWindowRateLimiter(storage)
        self._requests = _per_minute(limits.requests_per_minute_max, "requests")
        self._tokens = _per_minute(limits.tokens_per_minute_max, "tokens")

    async def count(self, identity: str) -> _Verdict:
        headers: dict[str, str] = {}
        if self._requests is not None:
            allowed = await self._sliding.hit(self._requests, identity)
            left = await self._sliding.get_window_stats(self._requests, identity)
            _tell(headers, "requests", self._requests, left.remaining, left.reset_time)
            if not allowed:
                return headers, _refused("requests", self._requests, left.reset_time, headers)
        if self._tokens is not None:
            left = await self._fixed.get_window_stats(self._tokens, identity)
            _tell(headers, "tokens", self._tokens, left.remaining, left.reset_time)
            if left.remaining <= 0:
                return headers, _refused("tokens", self._tokens, left.reset_time, headers)
        return headers, None

    async def note(self, identity: str) -> None:
        """Count a request that was let through elsewhere."""
        if self._requests is not None:
            await self._sliding.hit(self._requests, identity)

    async def charge(self, identity: str, tokens: int) -> None:
        if self._tokens is not None:
            await self._fixed.storage.incr(
                self._tokens.key_for(identity), self._tokens.get_expiry(), tokens
            )


def _in_redis(link: RedisLink, prefix: str) -> Storage:
    from limits.aio.storage import RedisStorage

    return RedisStorage(
        "redis://",
        implementation="redispy",
        key_prefix=f"{prefix}limits",
        connection_pool=link.pool,
    )


def address_identity(host: str | None) -> str:
    """Who a client without a key is."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return "address:unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return f"address:{address.ipv4_mapped}"
        return f"address:{ipaddress.ip_network((address, 64), strict=False)}"
    return f"address:{address}"


def _per_minute(amount: int, kind: str) -> RateLimitItemPerMinute | None:
    return RateLimitItemPerMinute(amount, namespace=kind) if amount else None


def _tell(
    headers: dict[str, str],
    kind: str,
    item: RateLimitItemPerMinute,
    remaining: int,
    reset_time: float,
) -> None:
    headers[f"x-ratelimit-limit-{kind}"] = str(item.amount)
    headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, remaining))
    headers[f"x-ratelimit-reset-{kind}"] = f"{max(0.0, reset_time - time.time()):.3f}s"


def _refused(
    kind: str, item: RateLimitItemPerMinute, reset_time: float, headers: Mapping[str, str]
) -> ApiError:
    wait_s = min(60.0, max(0.05, reset_time - time.time()))
    error = busy(
        f"Rate limit reached: {item.amount} {kind} per minute. Please try again in {wait_s:.3f}s.",
        retry_after_s=wait_s,
    )
    error.headers.update(headers)
    return error
