"""The envelope of every message on the bus: the attributes of CloudEvents 1.0 and four of our own.

``id`` is new for every message and stays the same when a message is sent again, so a consumer knows
a copy. ``correlationid`` is the same in a request and all that answers it. ``idempotencykey`` is
the same in two messages that ask for the same effect. After ``expiresat`` nobody wants the effect.
"""

from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import uuid4

import msgspec

from qbtc.messages.events import Payload, type_of

__all__ = ["Message", "message", "new_id", "rfc3339"]


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """One message on the bus."""

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: str
    """Who sent it: ``qbtc/<service>/<instance>``."""
    type: str
    """``qbtc.<subject>.<kind>.v<major>``, one of ``events.TYPES``."""
    time: str
    """When it was made, RFC 3339 in UTC."""
    subject: str
    """What it is about: an instrument, a model, a service."""
    datacontenttype: Literal["application/json"] = "application/json"
    correlationid: str
    idempotencykey: str
    expiresat: str | None = None
    """RFC 3339 in UTC; None: never."""
    data: Payload

    def expired(self, now: datetime | None = None) -> bool:
        """Whether nobody wants the effect any more."""
        left = self.left_s(now)
        return left is not None and left <= 0

    def left_s(self, now: datetime | None = None) -> float | None:
        """Seconds until it expires, below 0 after; None: it does not."""
        if self.expiresat is None:
            return None
        end = datetime.fromisoformat(self.expiresat)
        return (end - (now or datetime.now(UTC))).total_seconds()


def message(
    data: Payload,
    *,
    source: str,
    subject: str,
    id: str | None = None,
    correlationid: str | None = None,
    idempotencykey: str | None = None,
    expires_s: float | None = None,
    now: datetime | None = None,
) -> Message:
    """Put a payload into an envelope.

    Parameters
    ----------
    data
        What is to be said.
    source, subject
        Who says it, about what.
    id
        A new one if not given; so the correlation and the idempotency key, which are then ``id``.
    expires_s
        Seconds from now after which nobody wants it.
    now
        The clock; the machine's if not given.
    """
    identity = id or new_id()
    now = now or datetime.now(UTC)
    return Message(
        id=identity,
        source=source,
        type=type_of(data),
        time=rfc3339(now),
        subject=subject,
        correlationid=correlationid or identity,
        idempotencykey=idempotencykey or identity,
        expiresat=None if expires_s is None else rfc3339(now + timedelta(seconds=expires_s)),
        data=data,
    )


def new_id() -> str:
    """Return a new id."""
    return str(uuid4())


def rfc3339(time: datetime) -> str:
    """Write a time in UTC with microseconds and ``Z``."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
