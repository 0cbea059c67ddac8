"""What both databases read in the same way."""

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from qbtc.errors import InputError, MessageError, StoreError
from qbtc.messages.codec import decode
from qbtc.messages.envelope import Message
from qbtc.store.protocol import Store
from qbtc.store.records import Snapshot
from qbtc.store.tables import TABLES, Spec

__all__ = ["between", "exported", "messages", "on_conflict", "snapshot", "spec_named", "trail_sql"]


_log = logging.getLogger(__name__)


def spec_named(table: str) -> Spec:
    """Return a table by its name.

    Raises
    ------
    InputError
        There is none.
    """
    spec = TABLES.get(table)
    if spec is None:
        raise InputError(f"there is no table {table!r}; there are {', '.join(TABLES)}")
    return spec


def on_conflict(spec: Spec) -> str:
    """Return what is done where the row is there already."""
    if not spec.update:
        return "DO NOTHING"
    # A restart may no longer know which signal an order came from: what was known stays.
    sets = ", ".join(
        f"{column} = coalesce(excluded.{column}, old.{column})"
        if column == "signal_id"
        else f"{column} = excluded.{column}"
        for column in spec.update
    )
    return f"DO UPDATE SET {sets} WHERE {spec.replaces}"


def between(
    spec: Spec, start_ns: int | None, end_ns: int | None, *, place: str
) -> tuple[str, list[int]]:
    """Return the condition for rows from one time up to before another, and its arguments.

    ``place`` is how the database writes the place of an argument; ``{}`` in it is the number.
    """
    conditions, arguments = [], []
    for bound, sign in ((start_ns, ">="), (end_ns, "<")):
        if bound is not None:
            arguments.append(bound)
            conditions.append(f"{spec.time} {sign} {place.format(len(arguments))}")
    return (f" WHERE {' AND '.join(conditions)}" if conditions else ""), arguments


def exported(spec: Spec, row: dict[str, Any]) -> dict[str, Any]:
    """Turn a row as a database gives it into values that are the same from every database."""
    for column, kind in spec.columns.items():
        value = row[column]
        if value is not None:
            if kind == "json":
                row[column] = msgspec.json.decode(value)
            elif kind == "bool":
                row[column] = bool(value)
    return row


async def messages(store: Store, waiting: Sequence[tuple[str, str]]) -> list[Message]:
    """Read messages of the outbox; note those that are none, so that they hold up no other."""
    found = []
    for id, body in waiting:
        try:
            found.append(decode(body.encode()))
        except MessageError as error:
            await store.outbox_refused(id, reason=str(error))
            _log.error("message %s in the outbox can never be published: %s", id, error)
    return found


def snapshot(row: dict[str, Any]) -> Snapshot:
    """Make a snapshot of its row.

    Raises
    ------
    StoreError
        Its body is not what was written.
    """
    found = Snapshot(**row)
    if hashlib.sha256(found.body).hexdigest() != found.sha256:
        raise StoreError(
            f"snapshot {found.name} version {found.version} is damaged: its SHA-256 differs; "
            "load an older version"
        )
    return found


def trail_sql(*, schema: str, signal: str, text: str, order: str, run: str) -> str:
    """Return the query of signal, order and fill.

    ``signal`` joins at most one signal ``s`` to an order ``o``, that of the order's own run where
    there is one; ``text`` wraps a decimal so that it comes out as text.
    """
    decimals = {
        name: text.format(name)
        for name in ("o.quantity", "o.filled", "o.average_price", "s.price", "f.price")
    }
    return f"""
        SELECT o.run_id, o.scope, o.strategy, o.instrument, o.signal_id,
            s.action AS signal_action, s.confidence AS signal_confidence,
            {decimals["s.price"]} AS signal_price, s.model AS signal_model,
            s.source AS signal_source, s.outcome AS signal_outcome, s.ts_event AS signal_ts,
            o.order_id, o.side, o.order_type, o.status, {decimals["o.quantity"]} AS quantity,
            {decimals["o.filled"]} AS filled, {decimals["o.average_price"]} AS average_price,
            o.ts_init AS order_ts, f.venue, f.trade_id,
            {decimals["f.price"]} AS fill_price, {text.format("f.quantity")} AS fill_quantity,
            {text.format("f.commission")} AS commission, f.commission_currency, f.liquidity,
            f.ts_event AS fill_ts
        FROM {schema}orders o
        LEFT JOIN {signal}
        LEFT JOIN {schema}fills f ON f.scope = o.scope AND f.order_id = o.order_id
        WHERE ({order} IS NULL OR o.order_id = {order}) AND ({run} IS NULL OR o.run_id = {run})
        ORDER BY o.ts_init, o.scope, o.order_id, f.ts_event, f.trade_id
    """
