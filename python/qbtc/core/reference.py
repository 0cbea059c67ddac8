"""The slow twin of the feature engine, written from the definitions: an oracle for tests.

Every leaky sum is summed anew over all events that still count, the depth band over a plain
dictionary of levels; nothing is decayed in place and nothing is shared with the Rust code but the
limits with a name. It is not for use: one read costs milliseconds, and it keeps all history.

Two things the ring of the engine does are left out, because they need a market that moves by half
a ring (16384 ticks): levels that the moving window pushes out are not forgotten here.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qbtc.core.columns import EventColumns, EventKind

__all__ = ["ReferenceFeatures", "reference_features"]

WARM_UP_S = {"quote": 60.0, "trade": 60.0, "depth": 1.0, "lead": 30.0}
STALE_S = {"quote": 10.0, "trade": 60.0, "depth": 10.0, "lead": 10.0}
WINDOW_TICKS = 16384
BAND_TICKS_MAX = 4096
_FORGOTTEN = 40.0  # time scales after which an event counts less than 1e-17


@dataclass
class _History:
    """Times and values of one kind of happening."""

    ts: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, ts: int, value: float) -> None:
        self.ts.append(ts)
        self.values.append(value)

    def leaky_sum(self, now: int, scale_s: float) -> float:
        """Sum of the values, each times ``exp(-age / scale)``."""
        first = np.searchsorted(self.ts, now - int(_FORGOTTEN * scale_s * 1e9))
        age = (now - np.array(self.ts[first:], dtype=np.int64)) * 1e-9
        return float(np.sum(np.array(self.values[first:]) * np.exp(-age / scale_s)))


class ReferenceFeatures:
    """The 26 features of one instrument from its whole history."""

    def __init__(self, price_increment: float, size_increment: float) -> None:
        self._price_increment, self._size_increment = price_increment, size_increment
        self._now = 0
        self._heard: dict[str, tuple[int, int]] = {}
        self._quote: tuple[int, int, int, int] | None = None
        self._moves, self._order_flow = _History(), _History()
        self._bid_cancels, self._ask_cancels = _History(), _History()
        self._trade_flow, self._volume, self._sides = _History(), _History(), _History()
        self._lead_moves, self._basis = _History(), _History()
        self._move_ts = 0
        self._lead_mid = 0.0
        self._bids: dict[int, int] = {}
        self._asks: dict[int, int] = {}

    def on_quote(self, ts: int, bid: float, bid_size: float, ask: float, ask_size: float) -> None:
        """Take a new best bid and offer."""
        self._hear("quote", ts)
        b, a = self._ticks(bid), self._ticks(ask)
        b_size, a_size = self._steps(bid_size), self._steps(ask_size)
        if self._quote is None:
            self._move_ts = ts
        else:
            b0, b0_size, a0, a0_size = self._quote
            flow = (b_size if b >= b0 else 0) - (b0_size if b <= b0 else 0)
            flow += (a0_size if a >= a0 else 0) - (a_size if a <= a0 else 0)
            value = math.log1p(self._thousands(b, abs(flow)))
            self._order_flow.add(ts, math.copysign(value, flow))
            if b == b0 and b_size < b0_size:
                self._bid_cancels.add(ts, math.log1p(self._thousands(b, b0_size - b_size)))
            if a == a0 and a_size < a0_size:
                self._ask_cancels.add(ts, math.log1p(self._thousands(b, a0_size - a_size)))
            if b + a != b0 + a0:
                self._moves.add(ts, ((b + a) / (b0 + a0) - 1.0) * 1e4)
                self._move_ts = ts
        self._quote = (b, b_size, a, a_size)
        self._note_basis(ts)

    def on_trade(self, ts: int, price: float, size: float, aggressor_side: int) -> None:
        """Take a trade; ``aggressor_side`` 0 buy, 1 sell."""
        self._hear("trade", ts)
        sign = 1.0 - 2.0 * aggressor_side
        volume = self._thousands(self._ticks(price), self._steps(size))
        self._trade_flow.add(ts, sign * math.log1p(volume))
        self._volume.add(ts, volume)
        self._sides.add(ts, sign)

    def on_depth(self, ts: int, book_side: int, price: float, size: float) -> None:
        """Set the size of one price level; 0 removes it."""
        self._hear("depth", ts)
        levels = self._asks if book_side else self._bids
        ticks = self._ticks(price)
        if self._quote is not None:
            touch = self._quote[2 if book_side else 0]
        elif levels:
            touch = min(*levels, ticks) if book_side else max(*levels, ticks)
        else:
            touch = ticks
        behind = ticks - touch if book_side else touch - ticks
        if -WINDOW_TICKS <= behind < WINDOW_TICKS:
            levels[ticks] = self._steps(size)

    def on_depth_clear(self, ts: int) -> None:
        """Forget all levels."""
        self._now = ts
        self._heard.pop("depth", None)
        self._bids.clear()
        self._asks.clear()

    def on_lead_quote(self, ts: int, bid: float, ask: float) -> None:
        """Take a quote of the lead venue."""
        self._hear("lead", ts)
        mid = (bid + ask) / 2
        if self._lead_mid:
            self._lead_moves.add(ts, (mid / self._lead_mid - 1.0) * 1e4)
        self._lead_mid = mid
        self._note_basis(ts)

    def is_warm(self) -> bool:
        """Say whether quotes have been heard for the warm-up time and are not silent now."""
        return self._serves("quote")

    def values(self) -> npt.NDArray[np.float64]:
        """Return the features as of the last event, (26,), NaN where missing."""
        if self._quote is None or not self.is_warm():
            return np.full(26, np.nan)
        now = self._now
        b, b_size, a, a_size = self._quote
        mid = (b + a) / 2
        squares = _History(self._moves.ts, [d * d for d in self._moves.values])
        ones = _History(self._moves.ts, [1.0] * len(self._moves.ts))
        signed = [s * v for s, v in zip(self._sides.values, self._volume.values, strict=True)]
        trades = _History(self._sides.ts, [1.0] * len(self._sides.ts))
        return_10s, return_30s = (self._moves.leaky_sum(now, scale) for scale in (10.0, 30.0))
        variance_10s = squares.leaky_sum(now, 10.0)
        bid_cancel, ask_cancel = (
            side.leaky_sum(now, 0.5) for side in (self._bid_cancels, self._ask_cancels)
        )
        age_s = (now - self._move_ts) * 1e-9
        last = math.copysign(1.0, self._moves.values[-1]) if self._moves.values else 0.0
        width = min(max(int((b + a) * 1.5e-4), 1), BAND_TICKS_MAX)
        bid_band = b_size + sum(self._bids.get(b - i, 0) for i in range(1, width + 1))
        ask_band = a_size + sum(self._asks.get(a + i, 0) for i in range(1, width + 1))
        spread = (a - b) / mid * 1e4
        imbalance = (b_size - a_size) / (b_size + a_size)
        price = [
            self._moves.leaky_sum(now, 0.1),
            self._moves.leaky_sum(now, 0.5),
            return_30s,
            math.log1p(squares.leaky_sum(now, 0.5)),
            math.log1p(variance_10s),
            return_10s / math.sqrt(0.25 + variance_10s),
            return_30s - return_10s,
            math.log1p(ones.leaky_sum(now, 2.0)),
            math.log(1e-3 + age_s),
            last * math.exp(-age_s / 0.5),
        ]
        lead = [self._lead_moves.leaky_sum(now, 0.5), self._basis_deviation(now)]
        quote = [spread, imbalance, ((a * b_size + b * a_size) / (a_size + b_size) / mid - 1) * 1e4]
        depth = [
            (bid_band - ask_band) / (bid_band + ask_band),
            math.log1p(self._thousands(mid, bid_band + ask_band)),
        ]
        flow = [
            self._order_flow.leaky_sum(now, 0.1),
            self._order_flow.leaky_sum(now, 2.0),
            (bid_cancel - ask_cancel) / (1.0 + bid_cancel + ask_cancel),
        ]
        trade = [
            self._trade_flow.leaky_sum(now, 0.1),
            self._trade_flow.leaky_sum(now, 0.5),
            _History(self._volume.ts, signed).leaky_sum(now, 30.0)
            / (1.0 + self._volume.leaky_sum(now, 30.0)),
            math.log1p(trades.leaky_sum(now, 10.0)),
        ]
        queues = [math.log1p(self._thousands(mid, size)) for size in (b_size, a_size)]
        return np.concatenate(
            [
                price,
                self._given("lead", lead),
                quote,
                self._given("depth", depth),
                flow,
                self._given("trade", trade),
                queues,
            ]
        )

    def _hear(self, source: str, ts: int) -> None:
        self._now = ts
        first, _ = self._heard.get(source, (ts, ts))
        self._heard[source] = (first, ts)

    def _serves(self, source: str) -> bool:
        if source not in self._heard:
            return False
        first, last = self._heard[source]
        old_enough = self._now - first >= WARM_UP_S[source] * 1e9
        return old_enough and self._now - last <= STALE_S[source] * 1e9

    def _given(self, source: str, values: list[float]) -> list[float]:
        return values if self._serves(source) else [math.nan] * len(values)

    def _note_basis(self, ts: int) -> None:
        if self._lead_mid and self._quote is not None:
            mid = (self._quote[0] + self._quote[2]) / 2 * self._price_increment
            self._basis.add(ts, (self._lead_mid / mid - 1.0) * 1e4)

    def _basis_deviation(self, now: int) -> float:
        """Basis less its average: each value weighs as long as it held, older ones less."""
        if not self._basis.ts:
            return math.nan
        values = np.array(self._basis.values)
        age = (now - np.array(self._basis.ts, dtype=np.int64)) * 1e-9
        started = np.exp(-age / 10.0)
        ended = np.append(started[1:], 1.0)
        average = np.sum(values * (ended - started)) + values[0] * started[0]
        return float(values[-1] - average)

    def _ticks(self, price: float) -> int:
        return round(price / self._price_increment)

    def _steps(self, size: float) -> int:
        return round(size / self._size_increment)

    def _thousands(self, ticks: float, steps: float) -> float:
        return ticks * self._price_increment * steps * self._size_increment / 1e3


def reference_features(
    columns: EventColumns, every: int = 1
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Compute the features at every ``every``-th quote, the slow way.

    Returns
    -------
    rows, x
        (n,) number of the quote; (n, 26) features.
    """
    engine = ReferenceFeatures(columns.price_increment, columns.size_increment)
    rows, x, quotes = [], [], 0
    columns_as_lists = (
        columns.ts.tolist(), columns.kind.tolist(), columns.side.tolist(),
        columns.a.tolist(), columns.b.tolist(), columns.c.tolist(), columns.d.tolist(),
    )  # fmt: skip
    for ts, kind, side, a, b, c, d in zip(*columns_as_lists, strict=True):
        if kind == EventKind.QUOTE:
            engine.on_quote(ts, a, b, c, d)
            if quotes % every == 0:
                rows.append(quotes)
                x.append(engine.values())
            quotes += 1
        elif kind == EventKind.TRADE:
            engine.on_trade(ts, a, b, side)
        elif kind == EventKind.DEPTH:
            engine.on_depth(ts, side, a, b)
        elif kind == EventKind.DEPTH_CLEAR:
            engine.on_depth_clear(ts)
        else:
            engine.on_lead_quote(ts, a, c)
    return np.array(rows), np.array(x)
