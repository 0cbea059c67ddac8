"""Feature update: one market event into the engine, from Rust and from Python.

Sketch: a quote moves a dozen running sums and a few decays, about 60 flops and one exp; a depth
event one level of a ring and a few sums around it. 15 to 30 ns when everything is in the L1
cache. Writing a row out is 26 divisions and logarithms: about 50 ns. A Python call with six
arguments adds 100 to 150 ns.
"""

import time

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import market
from benchmarks.reporting import Report
from benchmarks.timing import Burst, interleave
from qbtc import _core
from qbtc.core.columns import EventColumns, EventKind
from qbtc.core.features import FeatureEngine

pytestmark = pytest.mark.benchmark

BLOCK = 64
GROUP = "feature update"
KINDS = {"quote": EventKind.QUOTE, "trade": EventKind.TRADE, "depth level": EventKind.DEPTH}


@pytest.fixture(scope="module")
def columns() -> EventColumns:
    return market.synthetic(120.0)


def _rust(columns: EventColumns, *, read: bool) -> Burst:
    return lambda: _core.time_events(columns, block_events=BLOCK, read=read)


def _python(columns: EventColumns, kind: EventKind) -> Burst:
    """Time the engine's method for one kind, arguments ready as a strategy would have them."""
    rows = np.flatnonzero(columns.kind == kind)
    ts, side = columns.ts[rows].tolist(), columns.side[rows].tolist()
    a, b, c, d = (getattr(columns, name)[rows].tolist() for name in "abcd")
    first = np.flatnonzero(columns.kind == EventKind.QUOTE)[0]
    start = (int(columns.ts[first]), *(float(getattr(columns, n)[first]) for n in "abcd"))

    def burst() -> np.ndarray:
        engine = FeatureEngine(columns.price_increment, columns.size_increment)
        engine.on_quote(*start)
        match kind:
            case EventKind.QUOTE:
                call, events = engine.on_quote, zip(ts, a, b, c, d, strict=True)
            case EventKind.TRADE:
                call, events = engine.on_trade, zip(ts, a, b, side, strict=True)
            case _:
                call, events = engine.on_depth, zip(ts, side, a, b, strict=True)
        clock = time.perf_counter_ns
        out = []
        groups = list(events)
        for i in range(0, len(groups) - BLOCK, BLOCK):
            group = groups[i : i + BLOCK]
            begin = clock()
            for event in group:
                call(*event)
            out.append((clock() - begin) / BLOCK)
        return np.array(out)

    return burst


def test_feature_update(benchmark: BenchmarkFixture, report: Report, columns: EventColumns) -> None:
    quotes = market.only(columns, EventKind.QUOTE)
    contenders = {
        "every event as it comes, Rust": _rust(columns, read=False),
        "every event as it comes, features written at quotes, Rust": _rust(columns, read=True),
        "quote, features written, Rust": _rust(quotes, read=True),
    }
    for name, kind in KINDS.items():
        contenders[f"{name}, Rust"] = _rust(market.only(columns, kind), read=False)
        contenders[f"{name}, from Python"] = _python(columns, kind)
    samples = interleave(benchmark, contenders, rounds=7)
    for name, ours in samples.items():
        report.add(GROUP, name, ours)
