"""A recording is read whole, its clock mended, its gaps and damage named; nothing is guessed."""

import contextlib
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qbtc.data.recording import LINE_BYTES_MAX, read_recording
from qbtc.data.rows import ADD, CLEAR, DELETE, F_LAST, F_SNAPSHOT, UPDATE, Parsed
from qbtc.errors import DataError

MS = 1_000_000
START_MS = 1_700_000_000_000


def quote(
    bid: str = "100.0", ask: str = "100.1", *, u: int = 1, size: str = "1.5"
) -> dict[str, Any]:
    return {"u": u, "s": "BTCUSDT", "b": bid, "B": size, "a": ask, "A": "2.0"}


def trade(t: int, at_ms: int = START_MS, **other: Any) -> dict[str, Any]:
    fields = {"e": "trade", "E": at_ms, "T": at_ms, "s": "BTCUSDT", "t": t, "p": "100.1"}
    return fields | {"q": "0.25", "m": False} | other


def diff(
    first: int,
    last: int,
    bids: Iterable[tuple[str, str]] = (("99.9", "1.0"),),
    pu: int | None = None,
) -> dict[str, Any]:
    fields = {"e": "depthUpdate", "E": START_MS, "s": "BTCUSDT", "U": first, "u": last}
    return fields | {"b": list(bids), "a": []} | ({} if pu is None else {"pu": pu, "T": START_MS})


def snapshot(last: int) -> dict[str, Any]:
    return {"lastUpdateId": last, "bids": [["99.8", "3.0"]], "asks": [["100.2", "4.0"]]}


def write(folder: Path, *messages: Any, step_ns: int = MS, first_ns: int | None = None) -> Path:
    """One line each, 1 ms apart; a ``str`` goes in as it is."""
    start = START_MS * MS + 5 * MS if first_ns is None else first_ns
    lines = [
        message if isinstance(message, str) else f"{start + i * step_ns} {json.dumps(message)}"
        for i, message in enumerate(messages)
    ]
    path = folder / "rec"
    path.write_text("\n".join(lines) + "\n")
    return path


def read(path: Path, *, perpetual: bool = False, **options: Any) -> Parsed:
    return read_recording(path, "BTCUSDT", perpetual=perpetual, **options)


def test_every_event_of_a_recording_becomes_a_row(tmp_path: Path) -> None:
    parsed = read(
        write(
            tmp_path,
            {"stream": "btcusdt@bookTicker", "data": quote()},
            snapshot(10),
            diff(11, 12, [("99.9", "1.0"), ("99.8", "0.0")]),
            trade(7, m=True),
            {"result": None, "id": 1},
        )
    )
    assert parsed.counts() == {"quotes": 1, "trades": 1, "depth": 5, "bars": 0}
    assert parsed.source_counts == {"quotes": 1, "trades": 1, "depth": 4}
    assert parsed.depth is not None
    assert parsed.depth.action.tolist() == [CLEAR, ADD, ADD, UPDATE, DELETE]
    assert parsed.depth.ask.tolist() == [False, False, True, False, False]
    last = F_LAST | F_SNAPSHOT
    assert parsed.depth.flags.tolist() == [F_SNAPSHOT, F_SNAPSHOT, last, 0, F_LAST]
    assert parsed.trades is not None
    assert parsed.trades.sell.tolist() == [True]
    assert parsed.facts["ignored"] == {"control": 1}


def test_gzip_and_plain_give_the_same_rows(tmp_path: Path) -> None:
    plain = write(tmp_path, quote(), trade(1))
    packed = tmp_path / "rec.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    one, other = read(plain), read(packed)
    assert one.quotes is not None
    assert other.quotes is not None
    assert one.quotes.ts_init.tolist() == other.quotes.ts_init.tolist()
    assert one.facts == other.facts


def test_a_spot_quote_without_event_time_takes_the_receive_time(tmp_path: Path) -> None:
    parsed = read(write(tmp_path, quote(), trade(1)))
    assert parsed.quotes is not None
    assert parsed.trades is not None
    assert parsed.quotes.ts_event.tolist() == parsed.quotes.ts_init.tolist()
    assert parsed.trades.ts_event.tolist() == [START_MS * MS]


def test_a_clock_that_is_behind_is_moved_forward_and_one_that_is_not_stays(tmp_path: Path) -> None:
    late = (START_MS - 1272) * MS
    behind = read(write(tmp_path, quote(), trade(1), trade(2), first_ns=late))
    assert behind.facts["clock_offset_ns"] == 1275 * MS
    assert behind.facts["clock"]["offset"] == "detected"
    assert behind.trades is not None
    assert (behind.trades.ts_init >= behind.trades.ts_event).all()
    right = read(write(tmp_path, quote(), trade(1)))
    assert right.facts["clock_offset_ns"] == 0
    given = read(write(tmp_path, quote(), trade(1)), clock_offset_ms=2.5)
    assert given.facts["clock_offset_ns"] == 2_500_000


def test_lines_of_one_moment_keep_their_order(tmp_path: Path) -> None:
    parsed = read(write(tmp_path, trade(1), quote(), trade(2), quote(u=2), step_ns=0))
    assert parsed.quotes is not None
    assert parsed.trades is not None
    start = START_MS * MS + 5 * MS
    assert parsed.trades.ts_init.tolist() == [start, start + 2]
    assert parsed.quotes.ts_init.tolist() == [start + 1, start + 3]


def test_differences_wait_for_the_snapshot_and_the_late_ones_are_replayed(tmp_path: Path) -> None:
    parsed = read(
        write(tmp_path, diff(8, 10), diff(11, 12, [("99.7", "5.0")]), snapshot(10), diff(13, 13))
    )
    assert parsed.depth is not None
    assert parsed.facts["depth"]["superseded_levels"] == 1
    assert parsed.depth.action.tolist() == [CLEAR, ADD, ADD, UPDATE, UPDATE]
    assert len(set(parsed.depth.ts_init[:4].tolist())) == 1, "the replayed one comes with it"
    assert parsed.facts["gaps"]["sequence"]["total"] == 0


@pytest.mark.parametrize("perpetual", [False, True])
def test_a_hole_in_the_book_clears_it_and_is_listed(tmp_path: Path, perpetual: bool) -> None:
    def change(first: int, last: int, before: int) -> dict[str, Any]:
        return diff(first, last, pu=before if perpetual else None)

    messages = [snapshot(10), change(11, 12, 10), change(15, 16, 14), change(17, 18, 16)]
    parsed = read(write(tmp_path, *messages, snapshot(17), change(19, 19, 18)), perpetual=perpetual)
    assert parsed.facts["gaps"]["sequence"]["listed"] == [
        {"line": 3, "after_id": 12, "next_id": 15}
    ]
    assert parsed.facts["depth"]["partial_from_line"] is None
    assert parsed.depth is not None
    assert parsed.depth.action.tolist() == [
        *(CLEAR, ADD, ADD, UPDATE, CLEAR),
        *(CLEAR, ADD, ADD, UPDATE, UPDATE),
    ]
    alone = read(write(tmp_path, *messages), perpetual=perpetual)
    assert alone.facts["depth"]["partial_from_line"] == 3
    assert alone.depth is not None
    assert alone.depth.action.tolist() == [CLEAR, ADD, ADD, UPDATE, CLEAR, UPDATE, UPDATE]


def test_an_older_snapshot_does_not_turn_the_book_back(tmp_path: Path) -> None:
    parsed = read(write(tmp_path, snapshot(10), diff(11, 12), snapshot(11), diff(13, 13)))
    assert parsed.depth is not None
    assert parsed.depth.action.tolist() == [CLEAR, ADD, ADD, UPDATE, UPDATE]


def test_levels_in_the_file_are_all_accounted_for(tmp_path: Path) -> None:
    parsed = read(
        write(tmp_path, diff(8, 10), snapshot(10), diff(11, 12), diff(15, 16), snapshot(20))
    )
    depth = parsed.facts["depth"]
    lost = depth["superseded_levels"] + depth["unsynchronised_levels"] + depth["damaged_levels"]
    assert parsed.counts()["depth"] - depth["clears_added"] + lost == parsed.source_counts["depth"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (quote("100.2", "100.1"), "crossed"),
        (quote("100.1", "100.1"), "crossed"),
        (quote(size="0.0"), "size that is not positive"),
        (quote("NaN"), "not finite"),
        (quote("inf", "inf"), "not finite"),
        (quote("abc"), "not finite"),
        (quote("0", "1"), "price that is not positive"),
        (quote("-5"), "price that is not positive"),
        (trade(2, q="0"), "size that is not positive"),
        (trade(2, p="NaN"), "not finite"),
        (trade(1), "repeats"),
        (diff(11, 12, [("nan", "1")]), "impossible number"),
        (diff(11, 12, [("5", "-1")]), "impossible number"),
        (diff(12, 11), "U, u or time"),
        ({"e": "trade", "s": "BTCUSDT", "p": "1"}, "without its id"),
        ("1700000000009000000 {not json", "not a message"),
        ('x {"s":1}', "does not start with a receive time"),
        (trade(2, E=2**70), "not a message"),
        (trade(2**63), "not a message"),
        (diff(11, 2**64), "not a message"),
        ("17 {}", "not in nanoseconds"),
        ("", "does not start with a receive time"),
    ],
)
def test_damage_is_an_error_that_names_the_line(tmp_path: Path, line: Any, says: str) -> None:
    path = write(tmp_path, trade(1), snapshot(10), line, quote(u=9))
    with pytest.raises(DataError, match=rf"1 damaged rows \(line 3: .*{says}.*\); mend"):
        read(path)
    parsed = read(path, damaged_rows_max=1)
    assert parsed.facts["damaged"]["total"] == 1
    assert parsed.facts["damaged"]["listed"][0]["line"] == 3
    assert parsed.counts()["quotes"] == 1


def test_trades_outside_the_book_are_left_out_and_counted(tmp_path: Path) -> None:
    parsed = read(write(tmp_path, trade(1), trade(2, X="INSURANCE_FUND"), trade(3, X="NA", q="0")))
    assert parsed.counts()["trades"] == 1
    assert parsed.facts["ignored"] == {"trade outside the book (X is not MARKET)": 2}


def test_other_streams_are_left_out_and_counted(tmp_path: Path) -> None:
    top = {"lastUpdateId": 50, "bids": [["1", "1"]], "asks": [["2", "1"]]}
    parsed = read(
        write(
            tmp_path,
            snapshot(10),
            {"stream": "btcusdt@depth20@100ms", "data": top},
            {"stream": "!miniTicker@arr", "data": [{"e": "24hrMiniTicker", "s": "BTCUSDT"}]},
            {"stream": "btcusdt@markPrice", "data": {"e": "markPriceUpdate", "s": "BTCUSDT"}},
            {"stream": "btcusdt@depth@100ms", "data": diff(11, 12)},
        )
    )
    assert parsed.facts["ignored"] == {
        "!miniTicker@arr": 1,
        "btcusdt@depth20@100ms": 1,
        "markPriceUpdate": 1,
    }
    assert parsed.counts()["depth"] == 4
    assert parsed.facts["gaps"]["sequence"]["total"] == 0


def test_microsecond_streams_are_read(tmp_path: Path) -> None:
    stamp = START_MS * 1000 + 7
    parsed = read(write(tmp_path, trade(1, E=stamp, T=stamp)))
    assert parsed.trades is not None
    assert parsed.trades.ts_event.tolist() == [stamp * 1000]
    assert parsed.facts["clock_offset_ns"] == 0


def test_a_snapshot_without_symbol_among_several_symbols_is_refused(tmp_path: Path) -> None:
    other = trade(1, s="ETHUSDT")
    path = write(tmp_path, snapshot(10), diff(11, 12), quote(), other)
    with pytest.raises(DataError, match="split it by symbol"):
        read(path)
    parsed = read(path, types=("quotes",))
    assert parsed.counts()["quotes"] == 1
    assert parsed.facts["ignored"] == {"other symbol": 1}


def test_options_that_cannot_be_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, trade(1))
    with pytest.raises(DataError, match="types is empty"):
        read(path, types=())
    with pytest.raises(DataError, match="not finite"):
        read(path, clock_offset_ms=float("nan"))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_line_can_do_more_than_be_damaged(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever a line says, it is a row, a named damage, or a ``DataError``."""
    good = [quote(), trade(1), snapshot(10), diff(11, 12), trade(2)]
    keys = st.sampled_from(["e", "E", "T", "s", "U", "u", "b", "a", "B", "A", "t", "p", "q", "m"])
    value = st.one_of(
        st.none(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from(["1e400", "-0", "NaN", "1", [["1", "2"]], [], {}, [[1, 2]], [["1"]]]),
    )
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] = good[at] | data.draw(st.dictionaries(keys, value, max_size=3))
    path = write(tmp_path, *good, data.draw(st.text(max_size=20)).replace("\n", " ").strip() or "x")
    with contextlib.suppress(DataError):
        parsed = read(path, damaged_rows_max=10)
        assert 0 <= parsed.facts["damaged"]["total"] <= 10
        assert parsed.counts()["quotes"] <= 2


def test_missing_trade_ids_are_listed(tmp_path: Path) -> None:
    parsed = read(write(tmp_path, trade(1), trade(5)))
    assert parsed.facts["gaps"]["trade_id"] == {
        "total": 1,
        "listed": [{"line": 2, "missing": 3}],
    }


def test_aggregated_trades_serve_where_there_are_no_others(tmp_path: Path) -> None:
    aggregated = {"e": "aggTrade", "E": START_MS, "T": START_MS, "s": "BTCUSDT", "a": 4}
    aggregated |= {"p": "1.0", "q": "1.0", "m": True}
    parsed = read(write(tmp_path, aggregated))
    assert parsed.facts["trades_are"] == "aggTrade"
    both = read(write(tmp_path, aggregated, trade(1)))
    assert both.counts()["trades"] == 1
    assert both.trades is not None
    assert both.trades.trade_id.tolist() == [1]


def test_types_choose_what_is_imported(tmp_path: Path) -> None:
    parsed = read(write(tmp_path, quote(), trade(1), snapshot(1)), types=("trades",))
    assert parsed.counts() == {"quotes": 0, "trades": 1, "depth": 0, "bars": 0}


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ((), "empty"),
        ((diff(1, 2, pu=0),), "name it with -PERP"),
        (({"e": "trade", "s": "ETHUSDT", "t": 1},), "holds ETHUSDT"),
        (({"e": "kline", "s": "BTCUSDT"},), "no quotes or trades or depth of BTCUSDT"),
        ((trade(1), f"{START_MS * MS} {json.dumps(trade(2))}"), "goes back at line 2"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, lines: tuple[Any, ...], says: str) -> None:
    path = write(tmp_path, *lines)
    if not lines:
        path.write_text("")
    with pytest.raises(DataError, match=says):
        read(path)


def test_a_missing_or_cut_off_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such recording"):
        read(tmp_path / "none.gz")
    whole = write(tmp_path, *(trade(i) for i in range(1, 400))).read_bytes()
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(whole)[:-200])
    with pytest.raises(DataError, match="gzip is cut off"):
        read(cut)
    assert read(cut, damaged_rows_max=2).counts()["trades"] > 0


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "rec"
    path.write_bytes(b"1" * (LINE_BYTES_MAX + 10))
    with pytest.raises(DataError, match="damaged rows"):
        read(path)


def test_prices_keep_their_exact_decimals(tmp_path: Path) -> None:
    parsed = read(write(tmp_path, quote("61837.63000000", "61837.64000000", size="0.00009000")))
    assert parsed.quotes is not None
    assert parsed.quotes.bid.decimals == 2
    assert np.array_equal(parsed.quotes.bid.units, [6183763])
    assert parsed.quotes.bid_size.decimals == 5
    assert np.array_equal(parsed.quotes.bid_size.units, [9])
