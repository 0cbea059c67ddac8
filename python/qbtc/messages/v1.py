"""Version 1: the four payloads of earlier systems, sent without an envelope, read as version 2.

Their ids come from ``request_id``, so a copy of a message is a copy in version 2 too. What version
1 does not say stays unsaid: a request without features is answered with what a model thinks before
it has seen anything, and a signal without a time is never valid.

Version 1 is read, not written: answers go out in version 2. No system that sent version 1 had a
reader for its answers.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

from qbtc.errors import MessageError
from qbtc.messages import contracts
from qbtc.messages.envelope import rfc3339

__all__ = ["NAMES", "upgrade"]

type Tree = dict[str, Any]

SOURCE = "qbtc/v1/unknown"
VENUE = "V1"
"""Venue of a market that names none."""

_IDS = UUID("7d1c2a0e-52b0-5b39-9a8f-64d5c8f0a1b2")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def upgrade(tree: Tree, *, now: datetime | None = None) -> Tree:
    """Return the JSON of the version 2 message that says the same.

    Parameters
    ----------
    tree
        A JSON object that has no ``specversion``.
    now
        The message's time, which version 1 does not say; the clock if not given.

    Raises
    ------
    MessageError
        It is no payload of version 1, or not what that one's schema says.
    """
    name = next((name for mark, name in _MARKS.items() if mark in tree), None)
    if name is None:
        raise MessageError("not a message: no specversion, and not a payload of version 1 either")
    contracts.check(f"v1/{name}", tree, type=f"{name} of version 1")
    type, subject, data = _UPGRADES[name](tree)
    request_id = data["request_id"]
    identity = str(uuid5(_IDS, f"{name}:{request_id}"))
    return {
        "specversion": "1.0",
        "id": identity,
        "source": SOURCE,
        "type": type,
        "time": rfc3339(now or datetime.now(UTC)),
        "subject": subject,
        "correlationid": request_id,
        "idempotencykey": identity,
        "data": data,
    }


def _llm_request(tree: Tree) -> tuple[str, str, Tree]:
    chat: Tree = {"model": tree["model"], "messages": tree["messages"]}
    if "max_tokens" in tree:
        chat["max_tokens"] = tree["max_tokens"]
    if "temperature" in tree:
        chat["sampling"] = {"temperature": tree["temperature"]}
    data = {"request_id": _request_id(tree), "operation": "chat", "chat": chat}
    return "qbtc.llm.request.v2", tree["model"], data


def _llm_response(tree: Tree) -> tuple[str, str, Tree]:
    data: Tree = {"request_id": _request_id(tree), "attempt": "v1", "status": tree["status"]}
    if tree["status"] == "error":
        message = tree.get("message") or "version 1 gave no reason"
        data["failure"] = {"kind": "internal", "message": message}
    else:
        payload = tree.get("response_payload", {})
        choices = payload.get("choices", [])
        data["choices"] = [_choice(at, choice, payload) for at, choice in enumerate(choices)]
    return "qbtc.llm.response.v2", "v1", data


def _choice(at: int, choice: Tree, payload: Tree) -> Tree:
    reason = choice.get("finish_reason")
    # Version 1 counts the tokens of all answers together; they are the first one's here.
    usage = payload.get("usage", {}) if at == 0 else {}
    return {
        "index": choice.get("index", at),
        "text": choice["message"].get("content") or "",
        "finish_reason": reason if reason in ("stop", "length") else "stop",
        "usage": {name: usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens")},
        "seed": 0,
    }


def _trading_request(tree: Tree) -> tuple[str, str, Tree]:
    data: Tree = {
        "request_id": _request_id(tree),
        "instrument": _instrument(tree["market"]),
        "ts_event": _nanoseconds(tree["timestamp"]),
        "features": {},
        "metadata": {"market": tree["market"], "indicators": tree["indicators"]},
    }
    return "qbtc.trading.request.v2", data["instrument"], data


def _trading_signal(tree: Tree) -> tuple[str, str, Tree]:
    data: Tree = {
        "signal_id": _request_id(tree),
        "instrument": _instrument(tree["market"]),
        "action": tree["signal"],
        "confidence": tree["confidence"],
        "ts_event": 0,
        "ts_init": 0,
        "request_id": _request_id(tree),
        "metadata": {**tree.get("metadata", {}), "market": tree["market"]},
    }
    return "qbtc.trading.signal.v2", data["instrument"], data


def _request_id(tree: Tree) -> str:
    return str(UUID(tree["request_id"]))


def _instrument(market: str) -> str:
    """``BTC/USD`` is ``BTCUSD.V1``; what names a venue stays as it is."""
    if "." in market:
        return market
    symbol = market.upper().translate(str.maketrans("", "", "/-_"))
    if not symbol:
        raise MessageError("version 1: market: names no currency")
    return f"{symbol}.{VENUE}"


def _nanoseconds(timestamp: str) -> int:
    try:
        since = datetime.fromisoformat(timestamp) - _EPOCH
    except ValueError:
        # RFC 3339 has leap seconds, and a year 0.
        raise MessageError("trading_request of version 1: timestamp: no time that exists") from None
    micros = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return micros * 1_000


_MARKS = {
    "messages": "llm_request",
    "status": "llm_response",
    "indicators": "trading_request",
    "signal": "trading_signal",
}
"""What only this payload has."""

_UPGRADES: dict[str, Callable[[Tree], tuple[str, str, Tree]]] = {
    "llm_request": _llm_request,
    "llm_response": _llm_response,
    "trading_request": _trading_request,
    "trading_signal": _trading_signal,
}

NAMES = tuple(_UPGRADES)
