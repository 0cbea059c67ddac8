"""How resting orders fill on hand-made books: the queue decides, and the market going through.

What Nautilus 2.0.0rc7 does with ``queue_position``; a new release that changes it fails here.
"""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hosted import PERP, cache, play, strategy
from nautilus_trader.model import (
    AggressorSide,
    BookAction,
    BookOrder,
    OrderBookDelta,
    OrderSide,
    Price,
    Quantity,
    QuoteTick,
    TradeId,
    TradeTick,
)
from nautilus_trader.persistence import ParquetDataCatalog

from qbtc.data.instruments import instrument_for

__all__ = ["cache"]  # a fixture

START_NS = 1_700_000_000_000_000_000
MS = 1_000_000
INSTRUMENT = instrument_for(PERP)
REST = """
def on_start(self):
    self.id = InstrumentId.from_str(self.params.instrument)
    self.subscribe_quotes(self.id)
    self.sent = False

def on_quote(self, quote):
    if not self.sent:
        self.sent = True
        quantity = self.instrument_or_fail(self.id).make_qty(1.0)
        order = self.order_factory.limit(
            self.id, OrderSide.BUY, quantity, Price(100.0, 1), post_only=True
        )
        self.submit_order(order)
"""


def quote(ms: float, bid: float, ask: float, size: float = 5.0) -> QuoteTick:
    ts = START_NS + int(ms * MS)
    sizes = Quantity(size, 3), Quantity(size, 3)
    return QuoteTick(INSTRUMENT.id, Price(bid, 1), Price(ask, 1), *sizes, ts, ts)


def sell(ms: float, price: float, size: float) -> TradeTick:
    ts = START_NS + int(ms * MS)
    side = AggressorSide.SELL
    return TradeTick(
        INSTRUMENT.id, Price(price, 1), Quantity(size, 3), side, TradeId(str(ms)), ts, ts
    )


def change(ms: float, side: OrderSide, price: float, size: float) -> OrderBookDelta:
    ts = START_NS + int(ms * MS)
    action = BookAction.UPDATE if size else BookAction.DELETE
    order = BookOrder(side, Price(price, 1), Quantity(size, 3), 0)
    return OrderBookDelta(INSTRUMENT.id, action, order, 128, int(ms), ts, ts)


BID, ASK = OrderSide.BUY, OrderSide.SELL
BOOK = [change(0.1, BID, 100.0, 5), change(0.2, BID, 99.9, 5), change(0.3, ASK, 100.1, 5)]
QUIET = [quote(ms, 100.0, 100.1) for ms in range(1, 100, 10)]
NIBBLES = [sell(ms, 100.0, 2.0) for ms in (22, 32, 42, 52)]


def fills(tmp_path: Path, cache: Path, events: list[Any], **venue: Any) -> list[dict[str, Any]]:
    (tmp_path / "made").mkdir()
    catalog = ParquetDataCatalog(str(tmp_path / "made"))
    catalog.write_instruments([INSTRUMENT])
    for kind, write in (
        (QuoteTick, catalog.write_quote_ticks),
        (TradeTick, catalog.write_trade_ticks),
        (OrderBookDelta, catalog.write_order_book_deltas),
    ):
        rows = sorted((e for e in events if isinstance(e, kind)), key=lambda e: e.ts_init)
        if rows:
            write(rows)
    outcome = play(
        tmp_path,
        cache,
        data=[{"source": "catalog", "instrument": PERP, "path": "made"}],
        strategies=[strategy(tmp_path, REST)],
        venue=venue,
    )
    outcome.raise_if_failed()
    return list(pq.read_table(outcome.folder / "fills.parquet").to_pylist())


@pytest.mark.parametrize("book", ["L1", "L2"])
class TestQueue:
    def test_an_order_waits_for_the_size_ahead_to_trade(
        self, tmp_path: Path, cache: Path, book: str
    ) -> None:
        (fill,) = fills(tmp_path, cache, [*BOOK, *QUIET, *NIBBLES], book=book)
        assert fill["ts_event"] == START_NS + 42 * MS, "5 ahead, trades of 2, 2, 2"
        assert fill["liquidity"] == "MAKER"
        assert fill["commission"] == pytest.approx(100.0 * 0.0002)

    def test_without_enough_trades_it_does_not_fill(
        self, tmp_path: Path, cache: Path, book: str
    ) -> None:
        assert fills(tmp_path, cache, [*BOOK, *QUIET, *NIBBLES[:2]], book=book) == []

    def test_it_fills_when_the_market_falls_through_its_price(
        self, tmp_path: Path, cache: Path, book: str
    ) -> None:
        fall = [
            change(60, BID, 100.0, 0),
            change(61, BID, 99.9, 0),
            change(62, ASK, 99.9, 3),
            quote(62, 99.8, 99.9),
        ]
        quiet = [item for item in QUIET if item.ts_init < START_NS + 60 * MS]
        (fill,) = fills(tmp_path, cache, [*BOOK, *quiet, *fall], book=book)
        assert (fill["ts_event"], fill["price"]) == (START_NS + 62 * MS, 100.0)

    def test_with_the_queue_off_a_touch_fills_by_chance_only(
        self, tmp_path: Path, cache: Path, book: str
    ) -> None:
        never = {"queue_position": False, "probability_fill_on_limit": 0.0}
        assert fills(tmp_path, cache, [*BOOK, *QUIET, *NIBBLES], book=book, fill=never) == []


def test_the_queue_shrinks_when_others_cancel(tmp_path: Path, cache: Path) -> None:
    cancelled = [change(15, BID, 100.0, 1)]
    (fill,) = fills(tmp_path, cache, [*BOOK, *QUIET, *cancelled, *NIBBLES], book="L2")
    assert fill["ts_event"] == START_NS + 22 * MS
