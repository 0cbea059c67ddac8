"""Tables as files: JSON lines or Parquet."""

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

import msgspec

from qbtc.errors import InputError
from qbtc.store.reading import spec_named
from qbtc.store.tables import Kind

__all__ = ["write_json_lines", "write_parquet"]

PARQUET_ROWS = 10_000
"""In memory at a time, and in a row group."""


async def write_json_lines(rows: AsyncIterator[dict[str, Any]], file: IO[bytes]) -> int:
    """Write each row as one line of JSON; return how many. Bytes are base64."""
    count = 0
    async for row in rows:
        file.write(msgspec.json.encode(row) + b"\n")
        count += 1
    return count


async def write_parquet(table: str, rows: AsyncIterator[dict[str, Any]], path: Path) -> int:
    """Write rows of a table to a file, which is there whole or not at all; return how many.

    Decimals and JSON are text, so nothing of them is lost.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    types: dict[Kind, Any] = {
        "key": pa.string(),
        "text": pa.string(),
        "int": pa.int64(),
        "real": pa.float64(),
        "bool": pa.bool_(),
        "decimal": pa.string(),
        "json": pa.string(),
        "bytes": pa.binary(),
    }
    columns = spec_named(table).columns
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    count = 0
    page: list[dict[str, Any]] = []
    try:
        with pq.ParquetWriter(part, schema, compression="zstd") as writer:
            async for row in rows:
                for name, kind in columns.items():
                    if kind == "json" and row[name] is not None:
                        row[name] = msgspec.json.encode(row[name]).decode()
                page.append(row)
                if len(page) == PARQUET_ROWS:
                    writer.write_table(pa.Table.from_pylist(page, schema))
                    count += len(page)
                    page = []
            writer.write_table(pa.Table.from_pylist(page, schema))
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return count + len(page)
