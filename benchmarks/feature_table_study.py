"""Which 26 features? Candidate tables compared on validation data only.

``python benchmarks/feature_table_study.py`` computes a pool of candidate features in plain Python
from the two USD-M recordings (BTC and ETH, the spot market as lead), fits a logistic regression and
LightGBM on earlier rows and prints the log-loss on later ones. The last 20 % of each recording, the
test of the training configs, is never looked at: folds roll forward inside the first 70 % of the
rows after the warm-up, each separated from its training rows by the label's horizon.

What the data cannot say: a recording lasts 343 s, so nothing longer than a 30 s time scale warms up
(the 300 s return and volatility of the first candidate list), and it carries no funding rate, no
open interest and no second time of day. Those columns are constant here and are left out. The
folds differ from each other by far more than the tables do, so a fold of another day may turn the
order around. The chosen table was made from both lists by leaving out and adding single features
(``--steps``) on these very folds: its lead here is optimistic, its test is the training's.

Takes about a minute on one core, ten with ``--steps``; needs scipy and lightgbm.
"""

import argparse
import math
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import lightgbm
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize

from qbtc.config.data import EventType, RecordingSource
from qbtc.config.load import REAL_DATA_DEFAULT
from qbtc.core.columns import EventColumns, EventKind
from qbtc.data.catalog import open_source

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

TAUS = np.array([0.1, 0.5, 2.0, 5.0, 10.0, 30.0])  # seconds
LANES = (
    "return", "abs_return", "square", "moves", "order_flow", "queue_flow", "trade_flow", "trades",
    "cancel_bid", "cancel_ask", "lead_return", "signed_volume", "volume",
)  # fmt: skip
LANE = {name: i for i, name in enumerate(LANES)}
WARM_UP_S = 60.0
EVERY = 4  # rows are every fourth quote
THRESHOLD_BP = 0.25
FOLDS = ((0.35, 0.45), (0.45, 0.575), (0.575, 0.70))  # validation spans, fractions of the time
SYMBOLS = ("btcusdt", "ethusdt")

L2 = (0.01, 0.03, 0.1)  # each table gets its best

QUANTUM = [
    "return_0.1s", "return_0.5s", "return_2s", "order_flow_0.1s", "order_flow_0.5s",
    "order_flow_2s", "trade_flow_0.1s", "trade_flow_0.5s", "trade_flow_2s", "imbalance",
    "band_imbalance", "microprice", "spread", "variance_0.5s", "variance_5s", "trades_rate_2s",
    "cancel_bid_rate_2s", "cancel_ask_rate_2s", "bid_queue", "ask_queue", "band_depth", "move_age",
    "last_move", "buy_sell", "basis_dev", "lead_return_0.5s",
]  # fmt: skip
SEEDS = [
    "return_0.5s", "return_5s", "return_30s", "variance_30s", "variance_ratio", "ema_trend",
    "strength_10s", "macd", "bollinger", "stochastic", "spread", "top5_imbalance", "microprice",
    "order_flow_5s", "order_flow_30s", "depth_slope", "volume_delta", "trades_rate_2s",
    "trade_size_z", "basis",
]  # fmt: skip
CHOSEN = [
    "return_0.1s", "return_0.5s", "return_30s", "variance_0.5s", "variance_10s", "trend_10s",
    "crossover", "moves_rate_2s", "move_age", "last_move", "lead_return_0.5s", "basis_dev",
    "spread", "imbalance", "microprice", "band_imbalance", "band_depth", "order_flow_0.1s",
    "order_flow_2s", "cancel_balance_0.5s", "trade_flow_0.1s", "trade_flow_0.5s", "volume_delta",
    "trades_rate_10s", "bid_queue", "ask_queue",
]  # fmt: skip
TABLES = {"first list (20 of 26 carried)": SEEDS, "second list": QUANTUM, "chosen": CHOSEN}


class Pool:
    """Every candidate feature of one instrument, updated the slow and obvious way."""

    def __init__(self, tick: float) -> None:
        self.tick = tick
        self.lanes = np.zeros((len(LANES), len(TAUS)))
        self.book: tuple[dict[int, float], dict[int, float]] = ({}, {})
        self.quote: tuple[int, float, int, float] | None = None
        self.now = self.start = self.moved = 0.0
        self.lead = self.direction = self.basis = self.basis_mean = 0.0
        self.macd = self.macd_mean = self.deviation = 0.0
        self.size_mean, self.size_square, self.size_last = 0.0, 1.0, 0.0
        self.queue_mean = 1.0
        self.high: deque[tuple[float, float]] = deque()
        self.low: deque[tuple[float, float]] = deque()

    def add(self, lane: str, x: float) -> None:
        """Add to the leaky sums of a lane."""
        self.lanes[LANE[lane]] += x

    def age(self, t: float) -> float:
        """Age all sums to ``t``; return the seconds passed."""
        if not self.start:
            self.start = self.now = self.moved = t
        dt, self.now = max(t - self.now, 0.0), max(t, self.now)
        self.lanes *= np.exp(-dt / TAUS)
        self.basis_mean = self.basis + (self.basis_mean - self.basis) * math.exp(-dt / 10)
        return dt

    def on_lead(self, mid: float) -> None:
        """Take a mid of the lead venue."""
        if self.lead:
            self.add("lead_return", (mid / self.lead - 1) * 1e4)
        self.lead = mid

    def on_depth(self, side: int, price: float, size: float) -> None:
        """Set the size of one level."""
        self.book[side][round(price / self.tick)] = size

    def on_trade(self, price: float, size: float, sign: float) -> None:
        """Take a trade, ``sign`` +1 for buys."""
        notional = price * size / 1e3
        self.add("trade_flow", sign * math.log1p(notional))
        self.add("trades", 1.0)
        self.add("signed_volume", sign * notional)
        self.add("volume", notional)
        self.size_last = math.log(notional + 1e-6)
        self.size_mean += 0.01 * (self.size_last - self.size_mean)
        self.size_square += 0.01 * ((self.size_last - self.size_mean) ** 2 - self.size_square)

    def on_quote(self, dt: float, bid: int, bid_size: float, ask: int, ask_size: float) -> None:
        """Take a quote ``dt`` seconds after the last event."""
        mid = (bid + ask) / 2 * self.tick
        k = mid / 1e3
        if self.quote is not None:
            b0, bs0, a0, as0 = self.quote
            flow = bid_size * (bid >= b0) - bs0 * (bid <= b0)
            flow += as0 * (ask >= a0) - ask_size * (ask <= a0)
            self.add("order_flow", math.copysign(math.log1p(abs(flow * k)), flow))
            self.add("queue_flow", flow / self.queue_mean)
            if bid == b0 and bid_size < bs0:
                self.add("cancel_bid", math.log1p((bs0 - bid_size) * k))
            if ask == a0 and ask_size < as0:
                self.add("cancel_ask", math.log1p((as0 - ask_size) * k))
            d = ((bid + ask) / (b0 + a0) - 1) * 1e4
            if d:
                self.add("return", d)
                self.add("abs_return", abs(d))
                self.add("square", d * d)
                self.add("moves", 1.0)
                self.direction, self.moved = math.copysign(1.0, d), self.now
        self.quote = (bid, bid_size, ask, ask_size)
        self.queue_mean += 0.002 * ((bid_size + ask_size) / 2 - self.queue_mean)
        if self.lead:
            self.basis = (self.lead / mid - 1) * 1e4
        ret = self.lanes[LANE["return"]]
        self.macd = ret[4] - ret[3]
        self.macd_mean += (1 - math.exp(-dt / 2)) * (self.macd - self.macd_mean)
        decay = math.exp(-dt / 10)
        self.deviation = self.deviation * decay + ret[4] ** 2 * (1 - decay)
        for extreme, sign in ((self.high, 1.0), (self.low, -1.0)):
            while extreme and sign * extreme[-1][1] <= sign * mid:
                extreme.pop()
            extreme.append((self.now, mid))
            while extreme[0][0] < self.now - 10:
                extreme.popleft()

    def depth(self, width_bp: float) -> tuple[float, float]:
        """Size within a band on each side, the quoted touch included."""
        assert self.quote is not None
        bid, bid_size, ask, ask_size = self.quote
        ticks = int((bid + ask) / 2 * width_bp * 1e-4)
        below = sum(self.book[0].get(bid - i, 0.0) for i in range(1, ticks + 1))
        above = sum(self.book[1].get(ask + i, 0.0) for i in range(1, ticks + 1))
        return bid_size + below, ask_size + above

    def behind(self, side: int, touch: int, step: int) -> float:
        """Size of the four levels behind the touch."""
        total, found = 0.0, 0
        for i in range(1, 200):
            size = self.book[side].get(touch + step * i, 0.0)
            total += size
            found += size > 0
            if found == 4:
                break
        return total

    def row(self) -> dict[str, float]:
        """Every candidate by name."""
        assert self.quote is not None
        bid, bid_size, ask, ask_size = self.quote
        mid = (bid + ask) / 2 * self.tick
        k = mid / 1e3
        lane = {name: self.lanes[i] for name, i in LANE.items()}
        row: dict[str, float] = {}
        for j, tau in enumerate(TAUS):
            at = {name: float(sums[j]) for name, sums in lane.items()}
            cancels = at["cancel_bid"] + at["cancel_ask"]
            row |= {f"{name}_{tau:g}s": value for name, value in at.items()}
            row[f"variance_{tau:g}s"] = math.log1p(at["square"])
            row[f"trades_rate_{tau:g}s"] = math.log1p(at["trades"])
            row[f"moves_rate_{tau:g}s"] = math.log1p(at["moves"])
            row[f"cancel_bid_rate_{tau:g}s"] = math.log1p(at["cancel_bid"])
            row[f"cancel_ask_rate_{tau:g}s"] = math.log1p(at["cancel_ask"])
            row[f"cancel_balance_{tau:g}s"] = (at["cancel_bid"] - at["cancel_ask"]) / (1 + cancels)
            row[f"strength_{tau:g}s"] = at["return"] / (0.1 + at["abs_return"])
            row[f"trend_{tau:g}s"] = at["return"] / math.sqrt(0.25 + at["square"])
        (bid3, ask3), (bid1, ask1) = self.depth(3), self.depth(1)
        bid5, ask5 = bid_size + self.behind(0, bid, -1), ask_size + self.behind(1, ask, 1)
        ret = lane["return"]
        spread = (ask - bid) * self.tick / mid * 1e4
        imbalance = (bid_size - ask_size) / (bid_size + ask_size)
        span = self.high[0][1] - self.low[0][1]
        return row | {
            "imbalance": imbalance,
            "microprice": spread / 2 * imbalance,
            "spread": spread,
            "band_imbalance": (bid3 - ask3) / (bid3 + ask3),
            "band_depth": math.log1p((bid3 + ask3) * k),
            "band_imbalance_1bp": (bid1 - ask1) / (bid1 + ask1),
            "top5_imbalance": (bid5 - ask5) / (bid5 + ask5),
            "depth_slope": math.log((bid3 + ask3) / (bid1 + ask1)),
            "bid_queue": math.log1p(bid_size * k),
            "ask_queue": math.log1p(ask_size * k),
            "move_age": math.log(1e-3 + self.now - self.moved),
            "last_move": self.direction * math.exp(-(self.now - self.moved) / 0.5),
            "buy_sell": float(lane["signed_volume"][2] / (1 + lane["volume"][2])),
            "volume_delta": float(lane["signed_volume"][5] / (1 + lane["volume"][5])),
            "trade_size_z": (self.size_last - self.size_mean) / math.sqrt(self.size_square),
            "basis": self.basis,
            "basis_dev": self.basis - self.basis_mean,
            "variance_ratio": row["variance_5s"] - row["variance_30s"],
            "ema_trend": float(ret[5] - ret[3]),
            "crossover": float(ret[5] - ret[4]),
            "macd": self.macd - self.macd_mean,
            "bollinger": float(ret[4]) / math.sqrt(0.01 + self.deviation),
            "stochastic": (mid - self.low[0][1]) / span - 0.5 if span else 0.0,
        }


Recording = tuple[list[str], Array, Array, Array]


def pool(columns: EventColumns) -> Recording:
    """Names, X (rows, candidates), times and mids of the sampled quotes of one recording."""
    state, quotes = Pool(columns.price_increment), 0
    rows: list[dict[str, float]] = []
    times, mids = [], []
    seconds = (columns.ts - columns.ts[0]) * 1e-9 + 1.0
    arrays = (columns.kind, columns.side, columns.a, columns.b, columns.c, columns.d)
    for t, kind, side, a, b, c, d in zip(
        seconds.tolist(), *(array.tolist() for array in arrays), strict=True
    ):
        if kind == EventKind.DEPTH:
            state.on_depth(side, a, b)
            continue
        dt = state.age(t)
        if kind == EventKind.LEAD_QUOTE:
            state.on_lead((a + c) / 2)
        elif kind == EventKind.TRADE:
            state.on_trade(a, b, 1.0 - 2.0 * side)
        elif kind == EventKind.QUOTE:
            bid, ask = round(a / state.tick), round(c / state.tick)
            state.on_quote(dt, bid, b, ask, d)
            quotes += 1
            if quotes % EVERY == 0 and t - state.start >= WARM_UP_S:
                rows.append(state.row())
                times.append(t)
                mids.append((bid + ask) / 2 * state.tick)
    x = np.array([list(row.values()) for row in rows])
    return list(rows[0]), x, np.array(times), np.array(mids)


def recording(data: Path, symbol: str) -> EventColumns:
    """Events of a perpetual, with the quotes of its spot market as the lead's."""

    def columns(file: str, suffix: str, types: tuple[EventType, ...]) -> EventColumns:
        source = RecordingSource(
            path=f"l2/{file}_{symbol}_20240808.gz",
            instrument=f"{symbol.upper()}{suffix}.BINANCE",
            types=types,
        )
        return open_source(source, data).columns()

    perpetual = columns("usdm", "-PERP", ("quotes", "trades", "depth"))
    return perpetual.with_lead(columns("spot", "", ("quotes",)))


def labels(times: Array, mids: Array, horizon_s: float) -> Labels:
    """Classes 0 down, 1 flat, 2 up of the mid return over the horizon."""
    later = np.searchsorted(times, times + horizon_s, side="right") - 1
    change = (mids[later] / mids - 1) * 1e4
    return 1 + (change > THRESHOLD_BP).astype(np.int64) - (change < -THRESHOLD_BP).astype(np.int64)


def squash(x: Array, train: Array) -> Array:
    """Softsign of the quantile-scaled features, scaled on the training rows."""
    low, middle, high = np.quantile(train, [0.05, 0.5, 0.95], axis=0)
    z = (x - middle) * 1.6 / np.maximum(high - low, 1e-9)
    return z / (1 + np.abs(z))


def log_loss(p: Array, y: Labels) -> float:
    return float(-np.log(np.maximum(p[np.arange(len(y)), y], 1e-9)).mean())


def logistic(x: Array, y: Labels, x_val: Array, l2: float) -> Array:
    """Probabilities of a multinomial logistic regression on the validation rows."""
    x = np.c_[x, np.ones(len(x))]
    hot = np.eye(3)[y]

    def loss(flat: Array) -> tuple[float, Array]:
        w = flat.reshape(-1, 3)
        z = x @ w
        z -= z.max(axis=1, keepdims=True)
        p = np.exp(z)
        p /= p.sum(axis=1, keepdims=True)
        value = -np.log(p[hot == 1]).mean() + l2 * (w[:-1] ** 2).sum()
        grad = x.T @ (p - hot) / len(x)
        grad[:-1] += 2 * l2 * w[:-1]
        return value, grad.ravel()

    w = minimize(loss, np.zeros(x.shape[1] * 3), jac=True, method="L-BFGS-B").x.reshape(-1, 3)
    z = np.c_[x_val, np.ones(len(x_val))] @ w
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def trees(x: Array, y: Labels, x_val: Array) -> Array:
    """Probabilities of a small LightGBM on the validation rows."""
    params = {
        "objective": "multiclass", "num_class": 3, "num_leaves": 15, "min_data_in_leaf": 200,
        "learning_rate": 0.05, "feature_fraction": 0.7, "bagging_fraction": 0.7, "bagging_freq": 1,
        "lambda_l2": 10.0, "verbose": -1, "seed": 1, "deterministic": True, "num_threads": 1,
    }  # fmt: skip
    data = lightgbm.Dataset(x, y, params={"verbose": -1})
    return np.asarray(lightgbm.train(params, data, num_boost_round=60).predict(x_val))


class Study:
    """The pooled rows of all recordings and their folds."""

    def __init__(self, recordings: list[Recording], horizon_s: float) -> None:
        self.names = {name: i for i, name in enumerate(recordings[0][0])}
        self.folds: list[list[tuple[Array, Labels, Array, Labels]]] = []
        for first, last in FOLDS:
            parts = []
            for _, x, times, mids in recordings:
                y = labels(times, mids, horizon_s)
                begin, span = times[0], times[-1] - times[0]
                earlier = times < begin + first * span - horizon_s
                later = (times >= begin + first * span) & (times < begin + last * span)
                parts.append((x[earlier], y[earlier], x[later], y[later]))
            self.folds.append(parts)

    def losses(self, columns: list[str], l2: float, *, with_trees: bool) -> Array:
        """Return the validation log-loss of logistic and LightGBM, (folds, 2)."""
        index = [self.names[c] for c in columns]
        result = []
        for parts in self.folds:
            x = np.concatenate([squash(p[0][:, index], p[0][:, index]) for p in parts])
            x_val = np.concatenate([squash(p[2][:, index], p[0][:, index]) for p in parts])
            y, y_val = (np.concatenate([p[i] for p in parts]) for i in (1, 3))
            boosted = log_loss(trees(x, y, x_val), y_val) if with_trees else math.nan
            result.append((log_loss(logistic(x, y, x_val, l2), y_val), boosted))
        return np.array(result)

    def prior(self) -> list[float]:
        """Return the validation log-loss by fold of the training rows' class frequencies."""
        result = []
        for parts in self.folds:
            y, y_val = (np.concatenate([p[i] for p in parts]) for i in (1, 3))
            p = np.bincount(y, minlength=3) / len(y)
            result.append(log_loss(np.tile(p, (len(y_val), 1)), y_val))
        return result


def compare(study: Study, horizon_s: float) -> Table:
    """Return the table of all candidates."""
    prior = float(np.mean(study.prior()))
    table = Table(title=f"validation log-loss, horizon {horizon_s:g} s, prior {prior:.4f}")
    for title in ("table", "features", "logistic", "by fold", "LightGBM", "by fold"):
        table.add_column(title)
    for name, columns in TABLES.items():
        runs = [study.losses(columns, l2, with_trees=l2 == L2[0]) for l2 in L2]
        linear = min((run[:, 0] for run in runs), key=np.mean)
        cells = []
        for column in (linear, runs[0][:, 1]):
            cells += [f"{column.mean():.4f}", " ".join(f"{x:.3f}" for x in column)]
        table.add_row(name, str(len(columns)), *cells)
    return table


def steps(study: Study, base: list[str]) -> Iterator[str]:
    """Yield what leaving out each feature, or adding each other one, does to the logistic loss."""

    def loss(columns: list[str]) -> float:
        return float(study.losses(columns, L2[1], with_trees=False)[:, 0].mean())

    start = loss(base)
    less = {c: loss([x for x in base if x != c]) - start for c in base}
    more = {c: loss([*base, c]) - start for c in study.names if c not in base}
    for title, changes in (("without", less), ("with", more)):
        for name, change in sorted(changes.items(), key=lambda item: item[1])[:26]:
            yield f"{title} {name}: {change * 1e4:+.1f}e-4"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare candidate feature tables.")
    default = Path(os.environ.get("QBTC_REAL_DATA", REAL_DATA_DEFAULT))
    parser.add_argument("--data", type=Path, default=default, help="folder with l2/*.gz")
    parser.add_argument("--steps", action="store_true", help="also leave one out and add one")
    options = parser.parse_args()
    console = Console()
    recordings = [pool(recording(options.data, symbol)) for symbol in SYMBOLS]
    for horizon_s in (0.5, 1.0, 5.0):
        study = Study(recordings, horizon_s)
        console.print(compare(study, horizon_s))
        if options.steps:
            for line in steps(study, CHOSEN):
                console.print(line)


if __name__ == "__main__":
    main()
