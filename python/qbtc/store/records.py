"""The rows. Each has an id of its own, so writing it twice leaves one.

Times are UNIX nanoseconds; money, prices and quantities are decimal text here and ``numeric`` in
PostgreSQL.
"""

from typing import Any

import msgspec

from qbtc.messages.envelope import Message

__all__ = [
    "FillRecord",
    "Interaction",
    "OrderEventRecord",
    "OrderRecord",
    "OutboxEntry",
    "Record",
    "SignalRecord",
    "Snapshot",
    "ToolCallRecord",
]


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Interaction(_Row, frozen=True, kw_only=True):
    """One HTTP request for language; prompts and answers only where the operator asked for them."""

    request_id: str
    ts: int
    """When it came."""
    session: str = ""
    """The client's own name for a conversation or user, if it gave one."""
    key_id: str | None = None
    endpoint: str
    model: str | None
    engine: str
    """``local`` or ``amqp``."""
    stream: bool | None
    status: int
    """HTTP status; 499: the client left before the first byte."""
    error_code: str | None = None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queued_ms: float | None = None
    first_token_ms: float | None = None
    total_ms: float
    cache_hit: bool = False
    request: dict[str, Any] | None = None
    response: dict[str, Any] | None = None


class ToolCallRecord(_Row, frozen=True, kw_only=True):
    """A call that a model made in an answer."""

    call_id: str
    request_id: str
    ts: int
    name: str
    arguments: str | None = None
    """JSON; only where the operator asked for contents."""


class SignalRecord(_Row, frozen=True, kw_only=True):
    """A signal, from a node's own model or from the bus."""

    signal_id: str
    ts_event: int
    ts_init: int
    run_id: str
    instrument: str
    action: str
    confidence: float
    p_down: float | None = None
    p_flat: float | None = None
    p_up: float | None = None
    price: str | None = None
    model: str = ""
    source: str
    """``node`` or the sender's name on the bus."""
    outcome: str = "published"
    """``published``, ``acted``, or why it was refused: ``expired``, ``risk: ...``. Written again
    with another outcome, the row of a ``published`` one takes it."""


class OrderRecord(_Row, frozen=True, kw_only=True):
    """An order as it stands; a later state replaces an earlier one (by ``sequence``)."""

    order_id: str
    scope: str = ""
    """Where the ids are unique: empty: at the venue; a run's id: only in that simulated run, whose
    ids come again in the next."""
    sequence: int
    """Of the last event."""
    run_id: str
    signal_id: str | None = None
    strategy: str
    instrument: str
    side: str
    order_type: str
    quantity: str
    price: str | None = None
    filled: str = "0"
    average_price: str | None = None
    status: str
    ts_init: int
    ts_last: int


class OrderEventRecord(_Row, frozen=True, kw_only=True):
    """Something that happened to an order."""

    order_id: str
    scope: str = ""
    """Where the ids are unique: empty: at the venue; a run's id: only in that simulated run, whose
    ids come again in the next."""
    sequence: int
    kind: str
    ts_event: int
    ts_init: int
    reason: str | None = None
    data: dict[str, Any] = {}
    """The rest of the ``order_event`` message."""


class FillRecord(_Row, frozen=True, kw_only=True):
    """One execution."""

    venue: str
    trade_id: str
    """Unique with its venue."""
    order_id: str
    scope: str = ""
    """Where the ids are unique: empty: at the venue; a run's id: only in that simulated run, whose
    ids come again in the next."""
    run_id: str
    strategy: str
    instrument: str
    side: str
    price: str
    quantity: str
    commission: str
    commission_currency: str
    liquidity: str
    ts_event: int


class Snapshot(_Row, frozen=True, kw_only=True):
    """State of a part of the core, to be loaded again."""

    name: str
    """Like ``signal/BTCUSDT.BINANCE``."""
    version: int
    ts: int
    format: str
    sha256: str
    body: bytes


class OutboxEntry(_Row, frozen=True, kw_only=True):
    """A message to be published after the rows it was written with."""

    message: Message


type Record = (
    Interaction
    | ToolCallRecord
    | SignalRecord
    | OrderRecord
    | OrderEventRecord
    | FillRecord
    | Snapshot
    | OutboxEntry
)
