"""Records as values of columns, checked.

What a database could not hold is refused here, so that SQLite and PostgreSQL refuse the same rows
with the same words.
"""

import math
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

import msgspec

from qbtc.errors import MessageError, RecordRefused
from qbtc.messages.codec import encode
from qbtc.store.records import OutboxEntry, Record, Snapshot
from qbtc.store.tables import Kind, Spec

__all__ = ["KEY_CHARS_MAX", "clean", "clean_tree", "columns", "rows"]

KEY_CHARS_MAX = 512
"""Of an id; an index entry of PostgreSQL holds 2,704 bytes."""

_DECIMAL = re.compile(r"-?[0-9]{1,64}(\.[0-9]{1,64})?")
_DECIMAL_LINES = re.compile(r"((0|-?[1-9][0-9]{0,63})(\.[0-9]{1,64})?\n)+")
"""Written in the one way that ``_decimal`` would write them."""
_INT_MAX = 2**63 - 1


def columns(spec: Spec, records: Sequence[Record]) -> list[Sequence[Any]]:
    """Turn records of one table into columns, in the order of the table's.

    Raises
    ------
    RecordRefused
        A value cannot be kept as it is; names the column.
    """
    if spec.name == "outbox":
        entries = [_outbox_row(record) for record in records if isinstance(record, OutboxEntry)]
        return list(zip(*entries, strict=True))
    values = list(zip(*map(msgspec.structs.astuple, records), strict=True))
    places = {name: place for place, name in enumerate(type(records[0]).__struct_fields__)}
    out = [_column(spec, name, kind, values[places[name]]) for name, kind in spec.columns.items()]
    if spec.name == "snapshots":
        for record in records:
            if isinstance(record, Snapshot) and sha256(record.body).hexdigest() != record.sha256:
                raise RecordRefused(f"snapshots.sha256: not that of the body of {record.name}")
    return out


def rows(spec: Spec, records: Sequence[Record]) -> list[tuple[Any, ...]]:
    """Turn records of one table into rows; see ``columns``."""
    return list(zip(*columns(spec, records), strict=True))


def _column(spec: Spec, name: str, kind: Kind, values: Sequence[Any]) -> Sequence[Any]:
    """Check a column: all of it at once where it is as it should be, else value by value."""
    check = _CHECKS.get(kind)
    try:
        if check is not None and check(values):
            return values
    except (TypeError, OverflowError):
        pass  # It has a None, or what it should not have.
    read = _READERS[kind]
    try:
        return [None if value is None else read(value) for value in values]
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise RecordRefused(f"{spec.name}.{name}: {error}") from None


def clean(text: str) -> str:
    """Replace what PostgreSQL or UTF-8 cannot hold (NUL, lone surrogates) by U+FFFD."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _outbox_row(entry: OutboxEntry) -> tuple[Any, ...]:
    message = entry.message
    try:
        body = encode(message).decode()
        ts = int(datetime.fromisoformat(message.time).timestamp() * 1e6) * 1000
    except (MessageError, msgspec.MsgspecError, ValueError, TypeError) as error:
        raise RecordRefused(f"outbox.message: {error}") from None
    # JSON writes NUL as an escape, which a column of text keeps.
    return (_key(message.id), ts, body)


def _key(value: Any) -> str:
    text = _text(value)
    if len(text) > KEY_CHARS_MAX:
        raise ValueError(f"an id of {len(text)} characters; at most {KEY_CHARS_MAX} are kept")
    return text


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be text, not {type(value).__name__}")
    return clean(value)


def _int(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"must be an integer, not {type(value).__name__}")
    if not -_INT_MAX - 1 <= value <= _INT_MAX:
        raise ValueError(f"{value} does not fit 64 bits")
    return value


def _real(value: Any) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a number")
    return float(value)


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"must be true or false, not {type(value).__name__}")
    return value


def _decimal(value: Any) -> str:
    if not isinstance(value, str) or not _DECIMAL.fullmatch(value):
        raise ValueError(f"must be decimal text like '-12.50', not {value!r:.80}")
    if value[0] in "-0":
        # One way to write a number: no zeros in front, no minus before zero.
        digits = value.lstrip("-").lstrip("0")
        digits = digits if digits and digits[0] != "." else f"0{digits}"
        return f"-{digits}" if value[0] == "-" and digits.strip("0.") else digits
    return value


def _json(value: Any) -> str:
    try:
        body = msgspec.json.encode(value)
    except UnicodeEncodeError:
        body = msgspec.json.encode(clean_tree(value))
    if b"\\u0000" in body:
        body = msgspec.json.encode(clean_tree(value))
    return body.decode()


def clean_tree(value: Any) -> Any:
    """Do as ``clean`` with every text of a tree, also with keys."""
    match value:
        case str():
            return clean(value)
        case dict():
            return {clean_tree(key): clean_tree(item) for key, item in value.items()}
        case list() | tuple():
            return [clean_tree(item) for item in value]
        case _:
            return value


def _bytes(value: Any) -> bytes:
    return bytes(value)


def _texts(values: Sequence[Any]) -> bool:
    text = "".join(values)
    return text.isascii() and "\0" not in text


def _keys(values: Sequence[Any]) -> bool:
    return _texts(values) and max(map(len, values)) <= KEY_CHARS_MAX


def _ints(values: Sequence[Any]) -> bool:
    return set(map(type, values)) == {int} and -_INT_MAX <= min(values) <= max(values) <= _INT_MAX


def _reals(values: Sequence[Any]) -> bool:
    return set(map(type, values)) == {float} and math.isfinite(math.fsum(values))


def _decimals(values: Sequence[Any]) -> bool:
    lines = "\n".join(values) + "\n"
    return lines.count("\n") == len(values) and _DECIMAL_LINES.fullmatch(lines) is not None


# Whether a whole column is as it should be; quick, and free to say no.
_CHECKS: dict[Kind, Callable[[Sequence[Any]], bool]] = {
    "key": _keys,
    "text": _texts,
    "int": _ints,
    "real": _reals,
    "decimal": _decimals,
}

_READERS: dict[Kind, Callable[[Any], Any]] = {
    "key": _key,
    "text": _text,
    "int": _int,
    "real": _real,
    "bool": _bool,
    "decimal": _decimal,
    "json": _json,
    "bytes": _bytes,
}
