"""Read a run directory: what ``report.html`` and the summary are made from, and nothing else.

Tables come back as columns of NumPy arrays. A table that a run did not write (no signals, no
fills, a run that failed early) is an empty table, never an error.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qbtc.errors import DataError
from qbtc.trading.result import (
    EQUITY,
    FILLS,
    POSITIONS,
    PRICES,
    SIGNALS,
    RunResult,
    read_result,
)

__all__ = ["Columns", "RunDirectory", "after_training", "read_run"]

type Column = NDArray[Any]


class Columns(dict[str, NDArray[Any]]):
    """Equal-length columns by name; text columns have dtype ``object``."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.values()))) if self else 0

    def where(self, mask: NDArray[np.bool_]) -> "Columns":
        """Keep the rows of ``mask``, shape (rows,)."""
        return Columns({name: column[mask] for name, column in self.items()})

    def split(self, name: str) -> "dict[str, Columns]":
        """Group the rows by a text column, groups in order of first appearance."""
        column = self[name]
        return {key: self.where(column == key) for key in dict.fromkeys(column.tolist())}


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """One run as it lies on disk.

    ``equity``, ``fills``, ``prices`` and ``signals`` have the columns of the schemas in
    ``qbtc.trading.result``; ``prices`` and ``signals`` are sorted by time within an instrument.
    """

    folder: Path
    result: RunResult
    equity: Columns
    fills: Columns
    positions: Columns
    prices: Columns
    signals: Columns


def read_run(folder: Path) -> RunDirectory:
    """Read ``result.json`` and the Parquet tables beside it.

    Raises
    ------
    DataError
        The folder holds no readable ``result.json``, or a table lacks a column.
    """
    try:
        result = read_result(folder)
    except OSError as error:
        raise DataError(f"{folder}: no run here ({error.strerror}); give a run directory") from None
    except msgspec.DecodeError as error:
        raise DataError(
            f"{folder / 'result.json'}: not a result of this version: {error}; run it again"
        ) from None
    return RunDirectory(
        folder=folder,
        result=result,
        equity=_read_table(folder / "equity.parquet", EQUITY),
        fills=_read_table(folder / "fills.parquet", FILLS),
        positions=_read_table(folder / "positions.parquet", POSITIONS),
        prices=_read_table(folder / "prices.parquet", PRICES),
        signals=_read_table(folder / "signals.parquet", SIGNALS),
    )


def after_training(run: RunDirectory) -> dict[str, float] | None:
    """P&L after costs from the first out-of-sample signal on, by series of ``equity``.

    A run whose model kept silent over its training span traded for a part of the time only, while
    its baselines traded all along: only this part compares like with like. A position open at that
    moment counts from its mark there. None where no quote was skipped, or nothing came after.
    """
    signals = run.result.signals
    starts = [item.out_of_sample_ns[0] for item in signals if item.out_of_sample_ns is not None]
    if not starts or not any(item.skipped_in_sample for item in signals) or not run.equity.rows:
        return None
    figures = {}
    for name, curve in run.equity.split("series").items():
        at = int(np.searchsorted(curve["ts"], min(starts), side="right")) - 1
        figures[name] = float(curve["equity"][-1] - curve["equity"][max(at, 0)])
    return figures


def _read_table(path: Path, schema: pa.Schema) -> Columns:
    """Read the schema's columns; an absent file is an empty table."""
    table = schema.empty_table()
    if path.exists():
        try:
            table = pq.read_table(path)
            missing = sorted(set(schema.names) - set(table.column_names))
            if missing:
                raise DataError(f"{path}: column {missing[0]!r} is missing; run the backtest again")
            table = table.select(schema.names).cast(schema)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: not a readable Parquet table: {error}") from None
    return Columns({field.name: _column(table, field) for field in schema})


def _column(table: pa.Table, field: pa.Field) -> Column:
    values: Column = table[field.name].to_numpy()
    return values.astype(object) if pa.types.is_string(field.type) else values
