"""The AsyncAPI 3 document of the bus, from the schemas and the topology.

Its schemas are ours, reworded where AsyncAPI's older dialect of JSON Schema would read them
differently: parts lie in ``components``, and what stands beside a reference stands around it.
"""

import json
from typing import Any

from qbtc.bus import topology
from qbtc.bus.channels import REPLIES, Channel, channels, example_trees, replies_to
from qbtc.messages import contracts
from qbtc.messages.events import TYPES

__all__ = ["asyncapi", "write_asyncapi"]

MAJOR = "2"
"""Of the messages; within it they only grow."""

type Tree = dict[str, Any]

_FIELDS = {
    "instrument": "Nautilus id, like BTCUSDT.BINANCE; its points make it several words.",
    "strategy": "Strategy that placed the order.",
    "kind": "What happened to the order.",
    "service": "gateway, worker or node.",
}
_SENT = {
    "llm_request": ("askLanguageModel", "The gateway asks a language engine."),
    "trading_request": ("askForSignal", "Somebody asks for a signal on features."),
    "trading_signal": ("giveSignal", "A worker, or a node's own model, says what it sees."),
    "order_event": ("reportOrder", "A node reports what happens to its orders."),
    "health": ("beat", "A service says that it lives."),
    "cancel": ("cancelRequest", "Nobody waits for an answer any more; every worker hears it."),
}
_RECEIVED = {
    "llm_request": ("answerLanguageRequest", "A worker answers; several compete for requests."),
    "trading_request": ("answerTradingRequest", "A worker answers; several compete."),
    "trading_signal": ("actOnSignal", "A strategy acts on it, if risk and age allow."),
}


def write_asyncapi() -> str:
    """Return the document as the text of a JSON file, which is YAML too."""
    return json.dumps(asyncapi(), indent=2, ensure_ascii=False) + "\n"


def asyncapi() -> Tree:
    """Return the document."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "QBTC's bus",
            "version": MAJOR,
            "description": "Requests, answers, signals, order events and health over RabbitMQ."
            " Made by `qbtc schemas write-docs`; the contract is schemas/*.json.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {
                "host": "127.0.0.1:5672",
                "protocol": "amqp",
                "protocolVersion": "0-9-1",
                "description": "RabbitMQ, as `qbtc bus init` sets it up.",
            }
        },
        "channels": {channel.name: _channel(channel) for channel in channels()},
        "operations": _operations(),
        "components": {"messages": _messages(), "schemas": _schemas()},
    }


def _channel(channel: Channel) -> Tree:
    names = [contracts.name_of(type) for type in channel.types]
    out: Tree = {
        # Who waits for a reply names its own queue in each request.
        "address": None if channel.name == REPLIES else channel.queue or channel.key or "",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
    }
    wild = {name: text for name, text in _FIELDS.items() if f"{{{name}}}" in channel.key}
    if wild:
        out["parameters"] = {name: {"description": text} for name, text in wild.items()}
    if channel.queue:
        out["description"] = (
            f"Bound to {channel.exchange} with the routing key {channel.key}; a quorum queue."
        )
        out["bindings"] = {
            "amqp": {
                "is": "queue",
                "queue": {
                    "name": channel.queue,
                    "durable": True,
                    "exclusive": False,
                    "autoDelete": False,
                },
                "bindingVersion": "0.3.0",
            }
        }
    elif channel.exchange:
        out["bindings"] = {
            "amqp": {
                "is": "routingKey",
                "exchange": {
                    "name": channel.exchange,
                    "type": topology.EXCHANGES[channel.exchange],
                    "durable": True,
                    "autoDelete": False,
                },
                "bindingVersion": "0.3.0",
            }
        }
    return out


def _operations() -> Tree:
    out: Tree = {}
    for action, words in (("send", _SENT), ("receive", _RECEIVED)):
        for channel in channels():
            if channel.name in words:
                name, summary = words[channel.name]
                out[name] = _operation(action, channel, summary)
    return out


def _operation(action: str, channel: Channel, summary: str) -> Tree:
    out: Tree = {
        "action": action,
        "summary": summary,
        "channel": {"$ref": f"#/channels/{channel.name}"},
        "messages": _refs(channel.name, channel.types),
    }
    replies = [reply for type in channel.types for reply in replies_to(type)]
    if replies:
        out["reply"] = {
            "address": {
                "location": "$message.header#/reply_to",
                "description": "The property of the AMQP message.",
            },
            "channel": {"$ref": f"#/channels/{REPLIES}"},
            "messages": _refs(REPLIES, tuple(replies)),
        }
    return out


def _refs(channel: str, types: tuple[str, ...]) -> list[Tree]:
    names = [contracts.name_of(type) for type in types]
    return [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in names]


def _messages() -> Tree:
    out: Tree = {}
    for type in TYPES:
        name = contracts.name_of(type)
        schema = contracts.load(name)
        out[name] = {
            "name": type,
            "title": schema["title"],
            "summary": schema["description"],
            "contentType": "application/json",
            "correlationId": {"location": "$message.payload#/correlationid"},
            "payload": {
                "allOf": [
                    {"$ref": "#/components/schemas/envelope"},
                    {
                        "type": "object",
                        "properties": {
                            "type": {"const": type},
                            "data": {"$ref": f"#/components/schemas/{name}"},
                        },
                    },
                ]
            },
            "examples": [
                {"name": f"{name}-{number}", "payload": tree}
                for number, tree in enumerate(example_trees(type), 1)
            ],
        }
    return out


def _schemas() -> Tree:
    out: Tree = {}
    for name in contracts.NAMES:
        schema = contracts.load(name)
        own = {key: value for key, value in schema.items() if key not in _LEFT_OUT}
        out[name] = _reworded(own)
        for part, inner in schema.get("$defs", {}).items():
            out.setdefault(part, _reworded(inner))
    return dict(sorted(out.items()))


_LEFT_OUT = ("$schema", "$id", "$defs", "examples")


def _reworded(node: Any) -> Any:
    match node:
        case {"$ref": str(name), **rest}:
            reference = {"$ref": f"#/components/schemas/{name.rpartition('/')[2]}"}
            return {**rest, "allOf": [reference]} if rest else reference
        case dict():
            return {key: _reworded(value) for key, value in node.items()}
        case list():
            return [_reworded(value) for value in node]
    return node
