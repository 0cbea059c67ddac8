"""Which exchanges and queues there are, and where each type of message goes: the one source.

``qbtc bus init`` makes them, ``deploy/rabbitmq/definitions.json`` is written from them, and the bus
in this process routes by them.
"""

import re
from typing import Any

import msgspec

from qbtc.errors import InputError
from qbtc.messages.envelope import Message
from qbtc.messages.events import Health, LlmRequest, OrderEvent, TradingRequest, TradingSignal

__all__ = [
    "CONTROL",
    "CONTROL_MESSAGES_MAX",
    "DEAD",
    "DEAD_EXCHANGE",
    "DEAD_MESSAGES_MAX",
    "DELIVERY_LIMIT",
    "EVENTS",
    "EXCHANGES",
    "LLM_REQUESTS",
    "QUEUES",
    "QUEUE_BYTES_MAX",
    "QUEUE_MESSAGES_MAX",
    "REQUESTS",
    "RESPONSES",
    "TOPIC_MESSAGES_MAX",
    "TRADING_REQUESTS",
    "Route",
    "check_prefix",
    "definitions",
    "queue_arguments",
    "route",
    "topic_matches",
]

REQUESTS = "requests_exchange"
RESPONSES = "responses_exchange"
EVENTS = "events_exchange"
CONTROL = "control_exchange"
"""Cancellations, heard by every worker."""
DEAD_EXCHANGE = "dlx"

EXCHANGES = {
    REQUESTS: "direct",
    RESPONSES: "topic",
    EVENTS: "topic",
    CONTROL: "fanout",
    DEAD_EXCHANGE: "topic",
}

LLM_REQUESTS = "q_llm_requests"
TRADING_REQUESTS = "q_trading_requests"
DEAD = "q_dead"

QUEUES = {
    LLM_REQUESTS: (REQUESTS, "llm.request"),
    TRADING_REQUESTS: (REQUESTS, "trading.request"),
    DEAD: (DEAD_EXCHANGE, "#"),
}
"""Each queue's exchange and routing key."""

_PREFIX = re.compile(r"[a-zA-Z0-9_.:@#,/><-]{0,100}")
"""What may stand in a name by the AMQP library, with room left for the names of ours."""

_NEVER = 1_000_000_000
"""Listing dead letters takes them and gives them back, which must never use them up."""

DELIVERY_LIMIT = 10
"""A message that was given back more often than this is a dead letter."""

QUEUE_MESSAGES_MAX = 100_000
QUEUE_BYTES_MAX = 1024 * 1024 * 1024
"""A full queue takes no more: publishers wait for room and then fail, and nothing is lost."""

DEAD_MESSAGES_MAX = 100_000
"""Above this, or above ``QUEUE_BYTES_MAX``, the oldest dead letters go."""

TOPIC_MESSAGES_MAX = 10_000
"""What waits for a subscription that is not durable; above this the oldest go."""

CONTROL_MESSAGES_MAX = 10_000


class Route(msgspec.Struct, frozen=True):
    """Where a message goes."""

    exchange: str
    key: str
    must_arrive: bool
    """Whether it is an error that no queue takes it."""


def route(message: Message) -> Route:
    """Say where a message goes; replies go to who asked, not by this.

    Raises
    ------
    ValueError
        Messages of its type are only sent as replies.
    """
    match message.data:
        case LlmRequest():
            return Route(REQUESTS, "llm.request", True)
        case TradingRequest():
            return Route(REQUESTS, "trading.request", True)
        case TradingSignal(instrument=instrument):
            return Route(RESPONSES, f"trading.signal.{instrument}", False)
        case OrderEvent(strategy=strategy, kind=kind):
            return Route(EVENTS, f"order.{kind}.{strategy}", False)
        case Health(service=service):
            return Route(EVENTS, f"health.{service}", False)
        case _:
            raise ValueError(f"{message.type} is sent as a reply only")


def queue_arguments(name: str, *, prefix: str = "") -> dict[str, str | int]:
    """Return what RabbitMQ is told of a queue of ours, or of a durable topic subscription.

    A quorum queue, so that a confirmed message survives the broker; dead letters leave it only when
    the dead-letter queue has them, which RabbitMQ does only with ``reject-publish``.
    """
    if name == DEAD:
        return {
            "x-queue-type": "quorum",
            "x-delivery-limit": _NEVER,
            "x-max-length": DEAD_MESSAGES_MAX,
            "x-max-length-bytes": QUEUE_BYTES_MAX,
            "x-overflow": "drop-head",
        }
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": prefix + DEAD_EXCHANGE,
        "x-dead-letter-strategy": "at-least-once",
        "x-max-length": QUEUE_MESSAGES_MAX,
        "x-max-length-bytes": QUEUE_BYTES_MAX,
        "x-overflow": "reject-publish",
    }


def check_prefix(prefix: str) -> None:
    """Refuse a prefix that queues cannot have.

    Raises
    ------
    InputError
        It is too long, or has a sign that names of queues have not.
    """
    if _PREFIX.fullmatch(prefix) is None:
        raise InputError(
            f"the bus prefix {prefix[:40]!r} cannot begin the name of a queue: it may have letters"
            " and digits of ASCII and any of _.:@#,/><- , 100 at most (QBTC_BUS_PREFIX)"
        )


def definitions(*, prefix: str = "", vhost: str = "/") -> dict[str, Any]:
    """Return the topology as RabbitMQ's definitions file has it; no users, no passwords."""
    check_prefix(prefix)
    return {
        "vhosts": [{"name": vhost}],
        "exchanges": [
            {
                "name": prefix + name,
                "vhost": vhost,
                "type": kind,
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": {},
            }
            for name, kind in EXCHANGES.items()
        ],
        "queues": [
            {
                "name": prefix + name,
                "vhost": vhost,
                "durable": True,
                "auto_delete": False,
                "arguments": queue_arguments(name, prefix=prefix),
            }
            for name in QUEUES
        ],
        "bindings": [
            {
                "source": prefix + exchange,
                "vhost": vhost,
                "destination": prefix + name,
                "destination_type": "queue",
                "routing_key": key,
                "arguments": {},
            }
            for name, (exchange, key) in QUEUES.items()
        ],
        "policies": [],
    }


def topic_matches(pattern: str, key: str) -> bool:
    """Whether a routing key matches: ``*`` is one word, ``#`` any number of words."""
    return _matches(pattern.split("."), key.split("."))


def _matches(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    head, rest = pattern[0], pattern[1:]
    if head == "#":
        return any(_matches(rest, words[skip:]) for skip in range(len(words) + 1))
    return bool(words) and head in ("*", words[0]) and _matches(rest, words[1:])
