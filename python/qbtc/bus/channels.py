"""Where each message goes, in words for the documents: from the topology and the schemas alone."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from qbtc.bus import topology
from qbtc.messages import contracts
from qbtc.messages.codec import decode
from qbtc.messages.envelope import Message
from qbtc.messages.events import (
    TYPES,
    Cancel,
    Failure,
    LlmChunk,
    LlmRequest,
    LlmResponse,
    TradingRequest,
    TradingSignal,
)

__all__ = ["REPLIES", "Channel", "channels", "examples", "replies_to"]

REPLIES = "replies"
"""Name of the channel that is whoever asked."""

_ANSWERS: dict[type, tuple[type, ...]] = {
    LlmRequest: (LlmChunk, LlmResponse, Failure),
    TradingRequest: (TradingSignal, Failure),
}
_WILD = ("instrument", "strategy", "kind", "service")
"""Fields that routing keys are made of."""


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """One way that messages go."""

    name: str
    exchange: str = ""
    """Empty: straight to the queue that ``reply_to`` names."""
    key: str = ""
    """Routing key, fields of the message in braces."""
    queue: str = ""
    """The one queue bound to it; empty: whoever subscribes."""
    types: tuple[str, ...]


def channels() -> tuple[Channel, ...]:
    """Return every channel, requests first."""
    found: dict[str, Channel] = {}
    for type, cls in TYPES.items():
        channel = _channel(type, cls)
        if channel is not None:
            found[channel.name] = channel
    answers = dict.fromkeys(answer for each in _ANSWERS.values() for answer in each)
    found[REPLIES] = Channel(
        name=REPLIES, types=tuple(type for type, cls in TYPES.items() if cls in answers)
    )
    return tuple(found.values())


def _channel(type: str, cls: type) -> Channel | None:
    name = contracts.name_of(type)
    if cls is Cancel:
        return Channel(name=name, exchange=topology.CONTROL, types=(type,))
    sample = examples(type)[0]
    wild = {field: f"{{{field}}}" for field in _WILD if hasattr(sample.data, field)}
    data = msgspec.structs.replace(sample.data, **wild)
    try:
        route = topology.route(msgspec.structs.replace(sample, data=data))
    except ValueError:
        return None
    bound = (queue for queue, at in topology.QUEUES.items() if at == (route.exchange, route.key))
    queue = next(bound, "")
    return Channel(name=name, exchange=route.exchange, key=route.key, queue=queue, types=(type,))


def replies_to(type: str) -> tuple[str, ...]:
    """Return the types that answer a request, the last of a stream included; none: not asked."""
    answers = _ANSWERS.get(TYPES[type], ())
    return tuple(each for each, cls in TYPES.items() if cls in answers)


def examples(type: str) -> tuple[Message, ...]:
    """Return whole messages of a type: the examples of its schema in an envelope."""
    return tuple(decode(json.dumps(tree).encode()) for tree in example_trees(type))


def example_trees(type: str) -> Iterator[dict[str, Any]]:
    """Yield the same as JSON."""
    envelope = contracts.load("envelope")["examples"][0]
    for data in contracts.load(contracts.name_of(type))["examples"]:
        subject = data.get("instrument", type.split(".")[1])
        yield {**envelope, "type": type, "subject": subject, "data": data}
