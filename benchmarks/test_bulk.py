"""Columns of events to features, and to signals: the real depth recording, beside hftbacktest.

Sketch: half a million events, nine in ten of them depth levels at 15 to 20 ns, one in eight a
quote whose row costs 50 ns more on the second thread: 20 to 30 ns per event, 30 to 50 M events/s.
hftbacktest moves each row through two books (exchange and local) without computing anything.
"""

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import market, replay
from benchmarks.reporting import Report, Target
from benchmarks.timing import interleave, whole
from qbtc.config.data import RecordingSource
from qbtc.core.columns import EventColumns, EventKind
from qbtc.core.features import FeatureEngine, bulk_features
from qbtc.data.catalog import open_source

pytestmark = [pytest.mark.benchmark, pytest.mark.realdata]

GROUP = "bulk, real depth recording"


@pytest.fixture(scope="module")
def columns(tmp_path_factory: pytest.TempPathFactory) -> EventColumns:
    path = market.recording_path()
    if path is None:
        pytest.skip(f"no {market.RECORDING} in the real data folder (QBTC_REAL_DATA)")
    folder = tmp_path_factory.mktemp("catalog")
    source = RecordingSource(instrument="BTCUSDT-PERP.BINANCE", path=str(path))
    return open_source(source, folder, cache_dir=folder).columns()


def _event_path(columns: EventColumns) -> np.ndarray:
    """Return the features (n_quotes, 26) of the event path, called from Python."""
    engine = FeatureEngine(columns.price_increment, columns.size_increment)
    names = ("ts", "kind", "side", "a", "b", "c", "d")
    rows = []
    for ts, kind, side, a, b, c, d in zip(
        *(getattr(columns, name).tolist() for name in names), strict=True
    ):
        match kind:
            case EventKind.QUOTE:
                engine.on_quote(ts, a, b, c, d)
                rows.append(engine.values())
            case EventKind.TRADE:
                engine.on_trade(ts, a, b, side)
            case EventKind.DEPTH:
                engine.on_depth(ts, side, a, b)
            case _:
                engine.on_depth_clear(ts)
    return np.array(rows)


def test_bulk_path(benchmark: BenchmarkFixture, report: Report, columns: EventColumns) -> None:
    bulk, one_by_one = bulk_features(columns), _event_path(columns)
    warm = bulk.warm
    assert bulk.X[warm].tobytes() == one_by_one[warm].tobytes(), "bulk and event path differ"
    peer_rows = replay.replay_rows(columns)
    peer = replay.replay_burst(peer_rows, columns.price_increment, columns.size_increment)
    samples = interleave(
        benchmark,
        {"features": whole(lambda: bulk_features(columns), len(columns)), "peer": peer},
        rounds=15,
        warmup=2,
    )
    counts = columns.counts()
    report.add(
        GROUP,
        "26 features",
        samples["features"],
        ("hftbacktest, no-op loop", samples["peer"]),
        unit="M events/s",
        target=Target("value", 10.0),
        note=(
            f"{len(columns):,} events ({counts['depth']:,} depth rows, {counts['quotes']:,} quotes,"
            f" {counts['trades']:,} trades), {int(warm.sum()):,} rows bit-equal to the event path;"
            f" the peer replays the {len(peer_rows):,} depth rows and trades."
        ),
    )
