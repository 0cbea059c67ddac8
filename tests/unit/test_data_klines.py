"""Klines become bars at the end of their interval; what is missing is listed, not filled."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qbtc.data.klines import read_klines
from qbtc.data.rows import parse_interval, scaled, separate_ties, to_numbers
from qbtc.errors import DataError

START_MS = 1_700_000_040_000
MINUTE_NS = 60_000_000_000


def packed(folder: Path, **columns: Any) -> Path:
    """Four minutes, one of them missing before the last, one without trades."""
    table = {
        "open_time_ms": [START_MS + 60_000 * i for i in (0, 1, 2, 4)],
        "open_c": [1000, 1001, 1002, 1003],
        "high_c": [1005, 1005, 1005, 1005],
        "low_c": [995, 995, 995, 995],
        "close_c": [1001, 1002, 1003, 1004],
        "volume_e8": [100_000_000, 0, 250_000_000, 1_000],
    }
    path = folder / "k.parquet"
    pq.write_table(pa.table(table | columns), path)
    return path


def decimal(folder: Path, **columns: Any) -> Path:
    table = {
        "ts": pd.to_datetime([START_MS, START_MS + 900_000], unit="ms", utc=True),
        **{name: [10.01, 10.02] for name in ("open", "high", "low", "close")},
        "volume": [15789.481, 0.0],
    }
    path = folder / "k.parquet"
    pq.write_table(pa.Table.from_pandas(pd.DataFrame(table | columns)), path)
    return path


def test_a_bar_is_known_at_its_end_and_gaps_are_listed(tmp_path: Path) -> None:
    parsed = read_klines(packed(tmp_path), "1m")
    bars = parsed.bars
    assert bars is not None
    assert bars.ts.tolist() == [START_MS * 1_000_000 + MINUTE_NS * i for i in (1, 2, 3, 5)]
    assert (bars.open.units / 10**bars.open.decimals).tolist() == [10.0, 10.01, 10.02, 10.03]
    assert (bars.volume.units / 10**bars.volume.decimals).tolist() == [1.0, 0.0, 2.5, 0.00001]
    assert parsed.source_counts == {"bars": 4}
    assert parsed.facts["gaps"]["bars"]["missing_bars"] == 1
    assert parsed.facts["gaps"]["bars"]["listed"][0]["missing"] == 1
    assert parsed.facts["zero_volume_bars"] == 1


def test_decimal_columns_are_read_too(tmp_path: Path) -> None:
    bars = read_klines(decimal(tmp_path), "15m").bars
    assert bars is not None
    assert bars.close.decimals == 2
    assert bars.volume.units.tolist() == [15789481, 0]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"open_time_ms": [START_MS] * 4}, "repeats at row 2"),
        ({"open_time_ms": [START_MS, START_MS + 120_000, START_MS + 60_000, 0]}, "back at row 3"),
        ({"open_time_ms": [START_MS + i * 1_000 for i in range(4)]}, "is the interval right"),
        ({"open_time_ms": [START_MS + i * 900_000 for i in range(4)]}, "no two rows are 1m apart"),
        ({"high_c": [1, 1005, 1005, 1005]}, "row 1 is not a bar"),
        ({"low_c": [995, 995, 0, 995]}, "row 3 is not a bar"),
        ({"volume_e8": [1, 1, 1, -1]}, "row 4 is not a bar"),
        ({"volume_e8": [1, None, 1, 1]}, "1 missing values"),
        ({"open_c": ["a", "b", "c", "d"]}, "not whole numbers"),
    ],
)
def test_an_impossible_row_is_named(tmp_path: Path, columns: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_klines(packed(tmp_path, **columns), "1m")


def test_a_wrong_file_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data file"):
        read_klines(tmp_path / "none.parquet", "1m")
    text = tmp_path / "text.parquet"
    text.write_text("open,high")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_klines(text, "1m")
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), other)
    with pytest.raises(DataError, match="columns a are not klines"):
        read_klines(other, "1m")
    pq.write_table(pq.read_table(packed(tmp_path)).slice(0, 0), other)
    with pytest.raises(DataError, match="no rows"):
        read_klines(other, "1m")
    with pytest.raises(DataError, match="1 missing values"):
        read_klines(decimal(tmp_path, close=[float("nan"), 1.0]), "15m")
    with pytest.raises(DataError, match="close of row 2 is not finite"):
        read_klines(decimal(tmp_path, close=[1.0, float("inf")]), "15m")
    with pytest.raises(DataError, match="interval '7m' is not one of"):
        read_klines(packed(tmp_path), "7m")


def test_intervals_have_binances_names() -> None:
    assert parse_interval("15m") == 15 * MINUTE_NS
    assert parse_interval("1mo") == 0
    with pytest.raises(DataError):
        parse_interval("1M")


def test_ties_are_separated_by_a_nanosecond_and_nothing_else_moves() -> None:
    ts = np.array([5, 5, 5, 7, 100, 100], dtype=np.int64)
    assert separate_ties(ts).tolist() == [5, 6, 7, 8, 100, 101]


def test_numbers_are_exact_on_the_coarsest_grid_that_holds_them() -> None:
    numbers = to_numbers(np.array([0.1, 61837.63, 3.0]), "x")
    assert (numbers.decimals, numbers.units.tolist()) == (2, [10, 6183763, 300])
    assert numbers.at(4).tolist() == [1000, 618376300, 30000]
    assert scaled(np.array([1200, 500]), 3).decimals == 1
    with pytest.raises(DataError, match="decimals"):
        to_numbers(np.array([0.1234567891]), "x")
    with pytest.raises(DataError, match="beyond"):
        to_numbers(np.array([1e16]), "x")
    with pytest.raises(DataError, match="not finite"):
        to_numbers(np.array([np.inf]), "x")
