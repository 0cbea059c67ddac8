"""Messages as bytes and back; nothing passes that the schema of its type refuses."""

import json
from typing import Any

import msgspec

from qbtc.errors import MessageError
from qbtc.messages import contracts, v1
from qbtc.messages.envelope import Message
from qbtc.messages.events import TYPES, Payload, TradingRequest, TradingSignal

__all__ = ["DEPTH_MAX", "MESSAGE_BYTES_MAX", "decode", "encode"]

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
"""The gateway's largest body, with room for the envelope and escapes."""
DEPTH_MAX = 128
"""Objects and arrays inside one another; what is open to anything has to end somewhere."""


def encode(message: Message) -> bytes:
    """Write a message as JSON.

    Raises
    ------
    MessageError
        It is larger than ``MESSAGE_BYTES_MAX``, or not what its schema says.
    """
    try:
        body = msgspec.json.encode(message)
        tree = msgspec.to_builtins(message, str_keys=True)
        if isinstance(message.data, TradingRequest | TradingSignal) and message.data.metadata:
            # Open to any JSON, so no schema finds a NaN in it, and msgspec writes one as null.
            json.dumps(tree["data"]["metadata"], allow_nan=False)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise MessageError(f"{message.type}: holds something that JSON cannot hold") from None
    if len(body) > MESSAGE_BYTES_MAX:
        raise MessageError(f"{message.type}: {len(body)} bytes; at most {MESSAGE_BYTES_MAX} travel")
    _check(tree)
    _check_depth(body, tree)
    return body


def decode(body: bytes) -> Message:
    """Read and check a message; one of version 1 comes as the message of version 2 it means.

    Raises
    ------
    MessageError
        It is not JSON, too large, of an unknown type, or not what its schema says.
    """
    tree = _read(body)
    if "specversion" not in tree:
        tree = v1.upgrade(tree)
    _check(tree)
    _check_depth(body, tree)
    data = _payload(tree)
    return Message(
        id=tree["id"],
        source=tree["source"],
        type=tree["type"],
        time=tree["time"],
        subject=tree["subject"],
        correlationid=tree["correlationid"],
        idempotencykey=tree["idempotencykey"],
        expiresat=tree.get("expiresat"),
        data=data,
    )


def _payload(tree: dict[str, Any]) -> Payload:
    type: Any = TYPES[tree["type"]]
    try:
        try:
            return msgspec.convert(tree["data"], type, str_keys=True)  # type: ignore[no-any-return]
        except msgspec.ValidationError:
            # What a schema calls an integer may be written as 3.0. Up to 2**53 that is exact,
            # and msgspec reads it from bytes.
            body = msgspec.json.encode(tree["data"])
            return msgspec.json.decode(body, type=type, strict=False)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        raise MessageError(f"{tree['type']}: data: {error}") from None


def _check(tree: dict[str, Any]) -> None:
    contracts.check("envelope", tree, type="envelope")
    type = tree["type"]
    if type not in TYPES:
        raise MessageError(f"unknown type of message {type}; known: {', '.join(TYPES)}")
    contracts.check(contracts.name_of(type), tree["data"], type=type, at=("data",))


def _read(body: bytes) -> dict[str, Any]:
    if len(body) > MESSAGE_BYTES_MAX:
        raise MessageError(f"a message of {len(body)} bytes; at most {MESSAGE_BYTES_MAX} travel")
    try:
        tree = msgspec.json.decode(body)
        _check_keys(body, tree)
    except UnicodeDecodeError as error:
        raise MessageError(f"not JSON: broken UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise MessageError(f"not a message: deeper than {DEPTH_MAX} levels") from None
    except msgspec.MsgspecError as error:
        raise MessageError(f"not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise MessageError("not a message: not a JSON object")
    return tree


def _check_depth(body: bytes, tree: dict[str, Any]) -> None:
    """Bound the depth of what a schema leaves open; the rest is as deep as the schema."""
    if body.count(b"{") + body.count(b"[") <= DEPTH_MAX:
        return
    level = _open(tree["data"])
    for _ in range(DEPTH_MAX):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list | tuple)
        ]
        if not level:
            return
    raise MessageError(f"{tree['type']}: deeper than {DEPTH_MAX} levels")


def _open(data: dict[str, Any]) -> list[Any]:
    """Return the objects whose schema allows anything: metadata, and schemas of clients."""
    found = [data.get("metadata")]
    for asked in (data.get("chat"), data.get("tokenize_chat")):
        if asked is not None:
            found += [tool.get("parameters") for tool in asked.get("tools", ())]
            found.append(asked.get("response_format", {}).get("schema"))
    return [value for value in found if isinstance(value, dict)]


def _check_keys(body: bytes, tree: object) -> None:
    """Refuse objects that have a key twice: readers differ in which one they take."""
    # What msgspec wrote, as we do, is written again to the same bytes; only others' are read twice.
    if msgspec.json.encode(tree) != body:
        json.loads(body, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise MessageError("not a message: an object has a key twice")
