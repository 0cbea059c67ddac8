"""``Idempotency-Key``: a request that is sent again is computed once.

The key of a client names one place in the cache. Who puts a mark there first computes; the answer
takes the place of the mark, and repeats are told it again. While the mark is there a repeat is
told to come back; a request that fails, or whose client leaves, takes its mark away.
"""

import asyncio
import hashlib
import math
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final

import anyio
import msgspec
from starlette.requests import Request

from qbtc.llm.kept import Recording, told_again
from qbtc.messages.language import Event
from qbtc_gateway.errors import RETRY_OPEN_S, ApiError, BadRequest
from qbtc_gateway.observe import observer_of
from qbtc_gateway.state import Gateway, gateway_of

__all__ = ["HEADER", "KEY_CHARS_MAX", "KEY_PATTERN", "once"]

HEADER: Final = "Idempotency-Key"
KEY_CHARS_MAX: Final = 255
KEY_PATTERN: Final = "^[!-~]+$"
"""Visible ASCII."""
CLAIMS_MAX: Final = 3
"""A place may be forgotten or damaged between two looks at it; then it is claimed anew."""


def once(
    request: Request, ask: Callable[[], AsyncIterator[Event]], *, answers: int
) -> AsyncIterator[Event]:
    """Return the events of a request; with a key, those of the first that came with it.

    Parameters
    ----------
    request
        As it came in; its body is part of what must be the same.
    ask
        Asks the engine.
    answers
        How many ends a complete answer has.

    Raises
    ------
    BadRequest
        The header is no key.
    """
    given = request.headers.getlist(HEADER)
    if not given:
        return ask()
    key = given[0]
    if len(given) > 1 or len(key) > KEY_CHARS_MAX or not re.fullmatch(KEY_PATTERN, key):
        raise BadRequest(
            f"Invalid '{HEADER}' header: expected one value of 1 to {KEY_CHARS_MAX} visible ASCII "
            "characters.",
            param=HEADER,
            code="invalid_idempotency_key",
        )
    return _once(request, key, ask, answers)


async def _once(
    request: Request, key: str, ask: Callable[[], AsyncIterator[Event]], answers: int
) -> AsyncGenerator[Event]:
    place = _Place(
        gateway_of(request),
        name=_hash(msgspec.json.encode((observer_of(request).identity, key))),
        asked=_hash(request.url.path.encode() + b"\n" + await request.body()),
    )
    kept = await place.claim(answers)
    if kept is not None:
        for event in kept:
            yield event
        return
    events: AsyncIterator[Event] | None = None
    recording = Recording(answers)
    value: bytes | None = None
    try:
        events = ask()
        async for event in events:
            yield recording.take(event)
        value = recording.value()
    finally:
        # Also while the request is cancelled: its key must be free again.
        with anyio.CancelScope(shield=True):
            try:
                close = getattr(events, "aclose", None)
                if close is not None:
                    await close()
            finally:
                await place.settle(value)


class _Place:
    """Where the answer to one key of one client is kept.

    Its first line is the hash of what was asked; a running request's goes on with a mark of its
    own, an answer has its events on the lines that follow.
    """

    def __init__(self, gateway: Gateway, *, name: str, asked: str) -> None:
        self._gateway = gateway
        self._name = f"once:{name}"
        self._asked = asked.encode()
        self._mark = self._asked + b" " + secrets.token_hex(16).encode()

    async def claim(self, answers: int) -> list[Event] | None:
        """Return the kept answer; None: it is this request's to compute.

        Raises
        ------
        ApiError
            409 while another request computes it, 422 where another request has this key.
        """
        cache = self._gateway.cache
        for _ in range(CLAIMS_MAX):
            try:
                if await cache.add(self._name, self._mark, ttl_s=self._gateway.answer_s_max):
                    return None
            except asyncio.CancelledError:
                # The mark may be on its way already.
                with anyio.CancelScope(shield=True):
                    await self.settle(None)
                raise
            value = await cache.get(self._name)
            if value is None:
                continue
            head, _, lines = value.partition(b"\n")
            if not head.startswith(self._asked):
                raise _reused()
            if not lines:
                break
            events = told_again(lines, answers, new_ids=False)
            if events is not None:
                return events
            await cache.remove(self._name, value)
        raise _in_progress()

    async def settle(self, lines: bytes | None) -> None:
        """Put the answer in the place of the mark; without one, take the mark away."""
        cache = self._gateway.cache
        if lines is None:
            await cache.remove(self._name, self._mark)
        else:
            ttl_s = self._gateway.idempotency_s_max
            await cache.put(self._name, self._asked + b"\n" + lines, ttl_s=ttl_s)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _reused() -> ApiError:
    return ApiError(
        f"This '{HEADER}' was used with another request. Send a new key, or the same request.",
        status=422,
        type="invalid_request_error",
        param=HEADER,
        code="idempotency_key_reused",
    )


def _in_progress() -> ApiError:
    return ApiError(
        f"A request with this '{HEADER}' is still running. Please try again later.",
        status=409,
        type="invalid_request_error",
        param=HEADER,
        code="idempotency_in_progress",
        headers={
            "retry-after": str(math.ceil(RETRY_OPEN_S)),
            "retry-after-ms": str(round(RETRY_OPEN_S * 1000)),
        },
    )
