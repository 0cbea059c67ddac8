"""A message that could not be processed, and why."""

import msgspec

__all__ = ["DIED_AT", "FROM_EXCHANGE", "FROM_QUEUE", "REASON", "REASON_CHARS_MAX", "DeadLetter"]

REASON_CHARS_MAX = 300

# Headers of a dead letter that a consumer made; one that RabbitMQ made has RabbitMQ's own.
REASON = "qbtc-reason"
FROM_QUEUE = "qbtc-queue"
FROM_EXCHANGE = "qbtc-exchange"
DIED_AT = "qbtc-died-at"


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One dead letter."""

    id: str
    """Of the message; empty if it said none."""
    type: str
    queue: str
    """Where it died first."""
    reason: str
    """``delivery_limit``: it failed too often; else what is wrong with it."""
    time: str
    """When it died, RFC 3339 in UTC; empty if that is not known."""
    size: int
    """Bytes of the body."""
    body: bytes
