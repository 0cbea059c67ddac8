"""The tables by column, the same for every database, and which record is a row of which."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from qbtc.errors import RecordRefused
from qbtc.store.records import (
    FillRecord,
    Interaction,
    OrderEventRecord,
    OrderRecord,
    OutboxEntry,
    Record,
    SignalRecord,
    Snapshot,
    ToolCallRecord,
)

__all__ = ["TABLES", "Kind", "Spec", "by_table", "is_durable", "spec_of"]

type Kind = Literal["key", "text", "int", "real", "bool", "decimal", "json", "bytes"]


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """One table."""

    name: str
    columns: dict[str, Kind]
    key: tuple[str, ...]
    """Columns that know a row from its copy."""
    time: str
    """Column that rows are ordered, exported and forgotten by."""
    durable: bool = False
    """Whether a row must be on disk, not only with the operating system, when it is written."""
    partitioned: bool = False
    """Whether PostgreSQL keeps it in a partition for each month."""
    update: tuple[str, ...] = ()
    """Columns that a later state of the same row replaces."""
    replaces: str = ""
    """SQL that is true when the row in hand, ``excluded``, is later than the one there, ``old``."""
    merge: Callable[[Any, Any], Record] | None = None
    """What is left of two states of the same row in one batch."""


TABLES: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec(
            name="interactions",
            columns={
                "request_id": "key",
                "ts": "int",
                "session": "text",
                "key_id": "text",
                "endpoint": "text",
                "model": "text",
                "engine": "text",
                "stream": "bool",
                "status": "int",
                "error_code": "text",
                "prompt_tokens": "int",
                "cached_tokens": "int",
                "completion_tokens": "int",
                "queued_ms": "real",
                "first_token_ms": "real",
                "total_ms": "real",
                "cache_hit": "bool",
                "request": "json",
                "response": "json",
            },
            key=("request_id", "ts"),
            time="ts",
            partitioned=True,
        ),
        Spec(
            name="tool_calls",
            columns={
                "call_id": "key",
                "request_id": "key",
                "ts": "int",
                "name": "text",
                "arguments": "text",
            },
            key=("request_id", "call_id", "ts"),
            time="ts",
            partitioned=True,
        ),
        Spec(
            name="signals",
            columns={
                "signal_id": "key",
                "run_id": "key",
                "ts_event": "int",
                "ts_init": "int",
                "instrument": "text",
                "action": "text",
                "confidence": "real",
                "p_down": "real",
                "p_flat": "real",
                "p_up": "real",
                "price": "decimal",
                "model": "text",
                "source": "text",
                "outcome": "text",
            },
            key=("signal_id", "run_id", "ts_init"),
            time="ts_init",
            partitioned=True,
            update=("outcome",),
            replaces="old.outcome = 'published'",
            merge=lambda old, new: new if old.outcome == "published" else old,
        ),
        Spec(
            name="orders",
            columns={
                "scope": "key",
                "order_id": "key",
                "sequence": "int",
                "run_id": "key",
                "signal_id": "key",
                "strategy": "text",
                "instrument": "text",
                "side": "text",
                "order_type": "text",
                "quantity": "decimal",
                "price": "decimal",
                "filled": "decimal",
                "average_price": "decimal",
                "status": "text",
                "ts_init": "int",
                "ts_last": "int",
            },
            key=("scope", "order_id"),
            time="ts_init",
            durable=True,
            update=(
                "sequence",
                "signal_id",
                "quantity",
                "price",
                "filled",
                "average_price",
                "status",
                "ts_last",
            ),
            replaces="excluded.sequence > old.sequence",
            merge=lambda old, new: _later_order(old, new),
        ),
        Spec(
            name="order_events",
            columns={
                "scope": "key",
                "order_id": "key",
                "sequence": "int",
                "kind": "text",
                "ts_event": "int",
                "ts_init": "int",
                "reason": "text",
                "data": "json",
            },
            key=("scope", "order_id", "sequence"),
            time="ts_init",
            durable=True,
        ),
        Spec(
            name="fills",
            columns={
                "scope": "key",
                "venue": "key",
                "trade_id": "key",
                "order_id": "key",
                "run_id": "key",
                "strategy": "text",
                "instrument": "text",
                "side": "text",
                "price": "decimal",
                "quantity": "decimal",
                "commission": "decimal",
                "commission_currency": "text",
                "liquidity": "text",
                "ts_event": "int",
            },
            key=("scope", "venue", "trade_id"),
            time="ts_event",
            durable=True,
        ),
        Spec(
            name="snapshots",
            columns={
                "name": "key",
                "version": "int",
                "ts": "int",
                "format": "text",
                "sha256": "text",
                "body": "bytes",
            },
            key=("name", "version"),
            time="ts",
        ),
        Spec(
            name="outbox",
            columns={"id": "key", "ts": "int", "message": "text"},
            key=("id",),
            time="ts",
            durable=True,
        ),
        Spec(
            name="processed_messages",
            columns={"consumer": "key", "message_id": "key", "ts": "int"},
            key=("consumer", "message_id"),
            time="ts",
            durable=True,
        ),
    )
}

_NAMES: dict[type, str] = {
    Interaction: "interactions",
    ToolCallRecord: "tool_calls",
    SignalRecord: "signals",
    OrderRecord: "orders",
    OrderEventRecord: "order_events",
    FillRecord: "fills",
    Snapshot: "snapshots",
    OutboxEntry: "outbox",
}


def spec_of(record: Record) -> Spec:
    """Return the table of a record.

    Raises
    ------
    RecordRefused
        It is no record.
    """
    name = _NAMES.get(type(record))
    if name is None:
        raise RecordRefused(f"{type(record).__name__} is not a record")
    return TABLES[name]


def is_durable(record: Record) -> bool:
    """Whether a record must be on disk before anyone hears that it is written."""
    name = _NAMES.get(type(record))
    return name is not None and TABLES[name].durable


def by_table(records: Sequence[Record]) -> list[tuple[Spec, list[Record]]]:
    """Sort records by table, in an order that is always the same; of one row keep the last state.

    Writers that touch tables in one order do not lock each other out.
    """
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(spec_of(record).name, []).append(record)
    return [
        (spec, _last_states(spec, found[name])) for name, spec in TABLES.items() if name in found
    ]


def _last_states(spec: Spec, records: list[Record]) -> list[Record]:
    if spec.merge is None:
        return records
    last: dict[tuple[Any, ...], Record] = {}
    for record in records:
        key = tuple(getattr(record, column) for column in spec.key)
        last[key] = spec.merge(last[key], record) if key in last else record
    # By key, so that two writers of the same orders wait for each other instead of deadlocking.
    return [last[key] for key in sorted(last)]


def _later_order(old: OrderRecord, new: OrderRecord) -> OrderRecord:
    if new.sequence <= old.sequence:
        return old
    return new if new.signal_id else msgspec.structs.replace(new, signal_id=old.signal_id)
