"""Archive files are read with all their traps, and a wrong one says what is wrong."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from qbtc.data import archive
from qbtc.data.archive import parse_name, read_archive
from qbtc.data.rows import Parsed
from qbtc.errors import DataError

MS = 1_000_000
DAY_MS = 1_735_603_200_000  # 2024-12-31
HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,"
    "taker_buy_volume,taker_buy_quote_volume,ignore"
)


def kline(i: int, *, unit: int = 1, start: int = DAY_MS, close: str = "100.50") -> str:
    opened = (start + i * 60_000) * unit
    closed = (start + (i + 1) * 60_000) * unit - 1
    return f"{opened},100.00,101.00,99.00,{close},1.50000000,{closed},150.0,7,0.5,50.0,0"


def klines(folder: Path, *rows: str, name: str = "BTCUSDT-1m-2024-12-31.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(rows) + "\n")
    return path


def zipped(folder: Path, *contents: bytes, name: str = "BTCUSDT-1m-2024-12-31.zip") -> Path:
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for i, content in enumerate(contents):
            file.writestr(f"BTCUSDT-1m-{i}.csv", content)
    return path


def read(*paths: Path, kind: str = "klines", interval: str = "1m") -> Parsed:
    return read_archive(list(paths), "BTCUSDT", kind, interval)  # type: ignore[arg-type]


def test_a_header_is_found_by_its_first_byte(tmp_path: Path) -> None:
    rows = [kline(i) for i in range(3)]
    bare = read(klines(tmp_path, *rows))
    headed = read(klines(tmp_path, HEADER, *rows))
    marked = read(klines(tmp_path, "\ufeff" + HEADER, *rows))
    assert bare.source_counts == headed.source_counts == marked.source_counts == {"bars": 3}
    assert bare.bars is not None
    assert headed.bars is not None
    assert bare.bars.ts.tolist() == headed.bars.ts.tolist()


def test_microseconds_and_milliseconds_are_the_same_time(tmp_path: Path) -> None:
    old = klines(tmp_path, *(kline(i) for i in range(1440)))
    day = DAY_MS + 86_400_000
    new = klines(
        tmp_path,
        *(kline(i, unit=1000, start=day) for i in range(1440)),
        name="BTCUSDT-1m-2025-01-01.csv",
    )
    parsed = read(new, old)  # in any order
    assert parsed.bars is not None
    assert len(parsed.bars.ts) == 2880
    assert parsed.facts["gaps"]["bars"]["missing_bars"] == 0
    assert set(np.diff(parsed.bars.ts).tolist()) == {60_000 * MS}


def test_a_month_has_no_fixed_length(tmp_path: Path) -> None:
    row = "1704067200000,1,2,1,2,5,1706745599999,5,1,1,1,0"
    parsed = read(klines(tmp_path, row, name="BTCUSDT-1mo-2024-01.csv"), interval="1mo")
    assert parsed.bars is not None
    assert parsed.bars.ts.tolist() == [1_706_745_600_000 * MS]


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("trades", "5,10.5,2,21.0,{t},true\n6,10.6,1,10.6,{t},false\n"),
        ("trades", "5,10.5,2,21.0,{t},True,True\n6,10.6,1,10.6,{t},False,True\n"),
        ("aggTrades", "5,10.5,2,1,2,{t},true\n6,10.6,1,3,3,{t},false\n"),
        ("aggTrades", "5,10.5,2,1,2,{t},True,True\n6,10.6,1,3,3,{t},False,True\n"),
    ],
)
def test_trades_of_both_markets_are_read(tmp_path: Path, kind: str, rows: str) -> None:
    path = tmp_path / f"BTCUSDT-{kind}-2024-12-31.csv"
    path.write_text(rows.format(t=DAY_MS))
    parsed = read(path, kind=kind)
    trades = parsed.trades
    assert trades is not None
    assert trades.sell.tolist() == [True, False], "the buyer was the maker, so the seller took"
    assert trades.ts_event.tolist() == [DAY_MS * MS] * 2
    assert trades.ts_init.tolist() == [DAY_MS * MS, DAY_MS * MS + 1]
    assert trades.price.units.tolist() == [105, 106]
    assert parsed.facts["trades_are"] == kind


def test_a_zip_is_read_like_its_csv(tmp_path: Path) -> None:
    rows = "\n".join(kline(i) for i in range(5)).encode()
    parsed = read(zipped(tmp_path, rows))
    assert parsed.source_counts == {"bars": 5}


def test_names_say_what_files_hold() -> None:
    name = parse_name("BTCUSDT-1mo-2024-01.zip")
    assert name is not None
    assert (name.symbol, name.kind, name.interval) == ("BTCUSDT", "klines", "1mo")
    name = parse_name("DEXEUSDT-aggTrades-2026-04-06.csv")
    assert name is not None
    assert (name.symbol, name.kind, name.interval) == ("DEXEUSDT", "aggTrades", None)
    assert parse_name("mine.csv") is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ETHUSDT-1m-2024-12-31.csv", "is of ETHUSDT, not of BTCUSDT"),
        ("BTCUSDT-5m-2024-12-31.csv", "is of interval 5m, not 1m"),
        ("BTCUSDT-trades-2024-12-31.csv", "holds trades, not klines"),
    ],
)
def test_a_file_of_something_else_is_refused_by_its_name(
    tmp_path: Path, name: str, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        read(klines(tmp_path, kline(0), name=name))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "empty"),
        ([HEADER], "no rows"),
        (["1,2,3"], "columns '1,2,3' are not those of klines"),
        ([HEADER.replace("high", "hihg"), kline(0)], "are not those of klines"),
        ([kline(0), kline(1) + ",9"], "Expected 12 columns, got 13"),
        ([kline(0), "x" + kline(1)], "not klines as the archive has them"),
        ([kline(0), kline(0)], "time repeats at row 2"),
        ([kline(0), kline(2), kline(1)], "time goes back at row 3"),
        ([kline(0), kline(1, close="NaN")], "close nan of row 2 is not possible"),
        ([kline(0), kline(1, close="inf")], "close inf of row 2"),
        ([kline(0), kline(1, close="0")], "close 0.0 of row 2"),
        ([kline(0), kline(1, close="200")], "row 2 is not a bar"),
        ([kline(0, start=0)], "open_time of row 1 is not in ms or microseconds"),
    ],
)
def test_a_damaged_file_is_named_with_its_row(tmp_path: Path, rows: list[str], says: str) -> None:
    path = klines(tmp_path, *rows)
    if not rows:
        path.write_text("")
    with pytest.raises(DataError, match=says) as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            "5,1,1,1,1735603200000,true\n5,1,1,1,1735603200000,true\n",
            "repeats or goes back at row 2",
        ),
        ("5,1,1,1,1735603200001,true\n6,1,1,1,1735603200000,true\n", "time goes back at row 2"),
        ("5,1,0,1,1735603200000,true\n", "qty 0.0 of row 1"),
        ("5,1,1,1,1735603200000,maybe\n", "'maybe' of row 1 is not a boolean"),
    ],
)
def test_a_damaged_trade_is_named_with_its_row(tmp_path: Path, rows: str, says: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(rows)
    with pytest.raises(DataError, match=says):
        read(path, kind="trades")


def test_missing_ids_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("5,1,1,1,1735603200000,true\n9,1,1,1,1735603200000,true\n")
    gaps = read(path, kind="trades").facts["gaps"]["trade_id"]
    assert gaps == {"total": 1, "listed": [{"after_id": 5, "missing": 3}]}


def test_the_same_day_twice_is_refused(tmp_path: Path) -> None:
    one = klines(tmp_path, kline(0), kline(1))
    other = klines(tmp_path, kline(1), kline(2), name="copy.csv")
    with pytest.raises(DataError, match="overlaps"):
        read(one, other)


def test_a_file_that_is_no_archive_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "BTCUSDT-1m-2024-12-31.zip")
    fake = klines(tmp_path, kline(0), name="BTCUSDT-1m-2024-12-30.zip")
    with pytest.raises(DataError, match="not a zip file"):
        read(fake)
    with pytest.raises(DataError, match="holds one CSV"):
        read(zipped(tmp_path, b"a", b"b"))
    whole = zipped(tmp_path, "\n".join(kline(i) for i in range(500)).encode())
    data = bytearray(whole.read_bytes())
    data[200] ^= 0xFF
    whole.write_bytes(data)
    with pytest.raises(DataError, match="damaged zip"):
        read(whole)
    with pytest.raises(DataError, match="at least one"):
        read()


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="this is no market data"):
        read(zipped(tmp_path, b"1" * 10_000_000))
    small = zipped(tmp_path, "\n".join(kline(i) for i in range(50)).encode())
    monkeypatch.setattr(archive, "CSV_BYTES_MAX", 1000)
    with pytest.raises(DataError, match="over 1000"):
        read(small)


def test_a_zip_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path, "\n".join(kline(i) for i in range(500)).encode())
    data = bytearray(path.read_bytes())
    for marker, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = data.rindex(marker) + offset
        data[at : at + 4] = struct.pack("<I", 300)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged zip|not klines|Expected"):
        read(path)
