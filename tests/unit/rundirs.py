"""Made-up run directories, small and seeded: no number in them means anything."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qbtc.trading.result import (
    EQUITY,
    FILLS,
    PRICES,
    SIGNALS,
    DataSetResult,
    Histogram,
    ModelResult,
    Performance,
    RunResult,
    SignalResult,
    WallTime,
    write_result,
)

START_NS = 1_704_067_200_000_000_000
INSTRUMENT = "BTCUSDT-PERP.BINANCE"
BALANCE = 100_000.0
MODEL_PATH = "models/demo/mps-8.safetensors"


@dataclass(frozen=True)
class MadeUp:
    """What to make; ``skill`` is how far signals see, 0 = not at all."""

    rows: int = 4_000
    step_ns: int = 50_000_000
    fills: int = 60
    synthetic: bool = True
    skill: float = 1.0
    signals: bool = True
    baselines: bool = True
    prices: bool = True
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of ``RunResult`` to replace."""


def make_run(folder: Path, what: MadeUp) -> RunResult:
    """Write a run directory and return its result."""
    rng = np.random.default_rng(7)
    ts = START_NS + np.arange(what.rows, dtype=np.int64) * what.step_ns
    moves = rng.choice([-0.1, 0.0, 0.1], what.rows, p=[0.15, 0.7, 0.15])
    moves += 0.1 * rng.choice([-1, 1], what.rows) * (rng.random(what.rows) < 0.02)
    mid = np.round(60_000 + np.cumsum(moves) * 6, 1)
    span = (int(ts[0]), int(ts[-1]))
    fills = _fills(rng, ts, mid, what.fills)
    series = ("run", "flat", "buy_and_hold") if what.baselines else ("run",)
    curves = {name: _curve(name, ts, mid, fills) for name in series}
    _write(folder / "fills.parquet", FILLS, fills)
    _write(folder / "equity.parquet", EQUITY, _stack(curves))
    if what.prices:
        _write(folder / "prices.parquet", PRICES, _named(ts, mid))
    published = what.rows if what.signals else 0
    if what.signals:
        _write(folder / "signals.parquet", SIGNALS, _signals(rng, ts, mid, what.skill))
    own = _performance("run", curves["run"], fills)
    result = RunResult(
        run_id="made-up-0001",
        name="made-up",
        mode="backtest",
        status="complete",
        error=None,
        traceback=None,
        started="2026-01-02T03:04:05Z",
        currency="USDT",
        start_balance=BALANCE,
        span_ns=span,
        synthetic=what.synthetic,
        data=(_data(what, span),),
        events=3 * what.rows,
        events_per_s=812_345.0,
        performance=own,
        strategies=(msgspec.structs.replace(own, name="imbalance_maker"),),
        baselines=tuple(_performance(name, curves[name], None) for name in series[1:]),
        signals=(_signal(span, published),) if what.signals else (),
        models=(_model(),) if what.signals else (),
        fills_sha256="ab" * 32,
        latency={"imbalance_maker.on_quote": _histogram(11), "signal.on_quote": _histogram(10)},
        wall=WallTime(open_data_s=0.4, build_s=0.2, run_s=3.1, baselines_s=1.2, total_s=4.9),
        seed=1,
        config={
            "name": "made-up",
            "seed": 1,
            "start": None,
            "venue": {
                "maker_fee": "0.0002",
                "taker_fee": "0.0005",
                "fill": {"queue_position": True},
            },
            "data": [{"source": "synthetic", "instrument": INSTRUMENT, "duration_s": 200.0}],
            "strategies": [
                {"path": "strategies/imbalance_maker.py:ImbalanceMaker", "params": {"size": "0.01"}}
            ],
        },
        config_sha256="cd" * 32,
        costs={"maker_fee": "0.0002", "taker_fee": "0.0005", "latency_ms": 5.0, "book": "L1"},
        versions={"qbtc": "0.1.0", "nautilus_trader": "2.0.0rc7", "python": "3.13.1"},
        build_info={"profile": "release", "source": "0123abcd"},
        notes=(),
    )
    result = msgspec.structs.replace(result, **what.changes)
    write_result(result, folder)
    return result


def _fills(rng: np.random.Generator, ts: Any, mid: Any, count: int) -> dict[str, Any]:
    at = np.sort(rng.choice(len(ts), count, replace=False))
    buys = rng.random(count) < 0.5
    maker = rng.random(count) < 0.8
    away = np.where(maker, -0.05, 0.05) * np.where(buys, 1, -1)
    price = mid[at] + away
    return {
        "ts_event": ts[at],
        "strategy": ["imbalance_maker"] * count,
        "instrument": [INSTRUMENT] * count,
        "side": np.where(buys, "BUY", "SELL"),
        "price": price,
        "quantity": np.full(count, 0.01),
        "commission": price * 0.01 * np.where(maker, 2e-4, 5e-4),
        "liquidity": np.where(maker, "MAKER", "TAKER"),
        "mid": mid[at],
        "order_id": [f"O-{i}" for i in range(count)],
    }


def _curve(name: str, ts: Any, mid: Any, fills: dict[str, Any]) -> dict[str, Any]:
    """Work equity out from the fills, so that tables and result agree."""
    position = np.zeros(len(ts))
    cash = np.zeros(len(ts))
    fees = np.zeros(len(ts))
    if name == "buy_and_hold":
        position += 0.01
        cash -= 0.01 * mid[0]
        fees += 0.3
    elif name == "run" and len(fills["price"]):
        at = np.searchsorted(ts, fills["ts_event"])
        sign = np.where(fills["side"] == "BUY", 1.0, -1.0)
        np.add.at(position, at, sign * fills["quantity"])
        np.add.at(cash, at, -sign * fills["quantity"] * fills["price"])
        np.add.at(fees, at, fills["commission"])
        position, cash, fees = position.cumsum(), cash.cumsum(), fees.cumsum()
    before = cash + position * mid
    return {
        "ts": ts,
        "series": [name] * len(ts),
        "equity": BALANCE + before - fees,
        "pnl_before_costs": before,
        "fees": fees,
        "net_position": position * mid,
    }


def _performance(name: str, curve: dict[str, Any], fills: dict[str, Any] | None) -> Performance:
    equity = curve["equity"]
    count = len(fills["price"]) if fills else 0
    notional = fills["price"] * fills["quantity"] if fills else np.zeros(0)
    maker = float(notional[fills["liquidity"] == "MAKER"].sum()) if fills else 0.0
    turnover = float(notional.sum())
    return Performance(
        name=name,
        orders=5 * count,
        fills=count,
        fees=float(curve["fees"][-1]),
        pnl_before_costs=float(curve["pnl_before_costs"][-1]),
        pnl_after_costs=float(equity[-1] - BALANCE),
        turnover=turnover,
        max_drawdown=float((np.maximum.accumulate(equity) - equity).max()),
        exposure=0.8 if count else 0.0,
        maker_share=maker / turnover if turnover else None,
        open_positions=1 if count else 0,
    )


def _signals(rng: np.random.Generator, ts: Any, mid: Any, skill: float) -> dict[str, Any]:
    later = np.minimum(np.arange(len(ts)) + 20, len(ts) - 1)
    z = rng.normal(size=len(ts)) + skill * np.sign(mid[later] - mid)
    up = 0.7 / (1 + np.exp(-z))
    return {
        **_named(ts, mid),
        "p_up": up,
        "p_down": 0.7 - up,
        "p_flat": np.full(len(ts), 0.3),
        "ood": np.ones(len(ts)),
    }


def _named(ts: Any, mid: Any) -> dict[str, Any]:
    return {"ts": ts, "mid": mid, "instrument": [INSTRUMENT] * len(ts)}


def _stack(curves: dict[str, dict[str, Any]]) -> dict[str, Any]:
    names = EQUITY.names
    return {name: np.concatenate([curve[name] for curve in curves.values()]) for name in names}


def _write(path: Path, schema: pa.Schema, columns: dict[str, Any]) -> None:
    arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path)


def _data(what: MadeUp, span: tuple[int, int]) -> DataSetResult:
    counts = {"quotes": what.rows, "trades": what.rows, "depth": what.rows, "bars": 0}
    return DataSetResult(
        instrument=INSTRUMENT,
        source="synthetic" if what.synthetic else "recording",
        synthetic=what.synthetic,
        sha256={} if what.synthetic else {"recording.gz": "ef" * 32},
        source_counts=counts,
        catalog_counts=counts,
        left_out={},
        added={},
        replayed=counts,
        span_ns=span,
        notes=() if what.synthetic else ("clock offset -1.270 s corrected",),
    )


def _signal(span: tuple[int, int], published: int) -> SignalResult:
    return SignalResult(
        instrument=INSTRUMENT,
        model=MODEL_PATH,
        lead=None,
        in_sample="skip",
        train_end_ns=span[0] - 1,
        quotes=published + 64,
        skipped_in_sample=0,
        not_warm=64,
        published=published,
        published_in_sample=0,
        out_of_sample_ns=span,
        note="",
    )


def _model() -> ModelResult:
    return ModelResult(
        path=MODEL_PATH,
        sha256="12" * 32,
        kind="mps",
        train_end_ns=START_NS - 1,
        metadata={"label_horizon_ns": 1_000_000_000, "bond": 8},
    )


def _histogram(top: int) -> Histogram:
    counts = [0] * 40
    for offset, number in ((0, 900), (1, 400), (2, 60), (3, 8), (5, 1)):
        counts[top + offset] = number
    return Histogram(
        counts=tuple(counts),
        samples=sum(counts),
        sampled_every=16,
        p50_ns=1.4 * 2**top,
        p99_ns=5.0 * 2**top,
        max_ns=40.0 * 2**top,
    )
