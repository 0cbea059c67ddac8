"""A way to Redis that costs little when Redis is away.

Every call has one short time for everything, from the connection to the answer. After one that
failed nobody asks for ``RETRY_S``; then a single call tries while the others still do without. So a
dead, stalled or wrong server costs one wait a second at most, and is found again by itself.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from qbtc.config.urls import redacted
from qbtc.errors import InputError, QbtcError

__all__ = ["CALL_S_MAX", "RETRY_S", "RedisAway", "RedisLink"]

CALL_S_MAX: Final = 0.25
"""One call; Redis answers in well below a millisecond."""
RETRY_S: Final = 1.0
"""Between two tries while it is away."""
CONNECTIONS_MAX: Final = 64


class RedisAway(QbtcError):
    """Redis does not answer, or not as Redis does; callers go on without it."""


class RedisLink:
    """Asks one Redis server.

    Parameters
    ----------
    url
        ``redis://``, ``rediss://`` or ``unix://``.
    call_s_max, retry_s
        How long a call may take; how long it is left alone after one that failed.
    clock
        Seconds that only grow.

    Raises
    ------
    InputError
        The address is malformed.
    """

    def __init__(
        self,
        url: str,
        *,
        call_s_max: float = CALL_S_MAX,
        retry_s: float = RETRY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.where = redacted(url)
        try:
            self.pool: Any = BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS_MAX,
                timeout=call_s_max,
                socket_timeout=call_s_max,
                socket_connect_timeout=call_s_max,
                # The library's own retries would multiply the wait.
                retry=Retry(NoBackoff(), 0),
                # No greetings beyond the password: each is one more wait.
                protocol=2,
                driver_info=None,
            )
        except (ValueError, TypeError):
            # What the library says of it may quote a password.
            raise InputError(
                "malformed address of Redis; it should be"
                " redis://user:password@host:port/number, with %-escapes in user and password"
            ) from None
        self.redis: Any = Redis(connection_pool=self.pool)
        self._call_s_max = call_s_max
        self.retry_s = retry_s
        self._clock = clock
        self._problem: str | None = None
        self._retry_at = 0.0
        self._trying = False
        self.errors = 0

    async def call[T](self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what ``work`` gets from Redis.

        Raises
        ------
        RedisAway
            It was away a moment ago, or is now.
        """
        trying = self._problem is not None
        if trying:
            if self._trying or self._clock() < self._retry_at:
                raise RedisAway(self._problem)
            self._trying = True
        try:
            async with asyncio.timeout(self._call_s_max):
                result = await work()
        except Exception as error:
            # Whatever a broken server makes of the library, no request may fail of it.
            self.errors += 1
            self._problem = f"Redis at {self.where} does not answer: {_reason(error)}"
            self._retry_at = self._clock() + self.retry_s
            raise RedisAway(self._problem) from None
        finally:
            if trying:
                self._trying = False
        self._problem = None
        return result

    def problem(self) -> str | None:
        """Why the last call failed; None: it did not."""
        return self._problem

    def counters(self) -> dict[str, int]:
        """Totals since the start."""
        return {"errors": self.errors}

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose()
        await self.pool.disconnect()


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError) or type(error).__name__ == "TimeoutError":
        return "no answer in time"
    return str(error).partition("\n")[0] or type(error).__name__
