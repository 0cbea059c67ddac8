"""Columns of events to features, and to signals: the real depth recording, beside hftbacktest.

Sketch: half a million events, nine in ten of them depth levels at 15 to 20 ns, one in eight a
quote whose row costs 50 ns more and whose mps8 signal 100 ns more, on the second thread: 20 to
30 ns per event, 30 to 50 M events/s. hftbacktest moves each row through two books (exchange and
local) without computing anything.
"""

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import replay
from benchmarks.models import Trained
from benchmarks.reporting import Report, Target
from benchmarks.timing import interleave, whole
from qbtc import _core
from qbtc.core.columns import EventColumns, EventKind
from qbtc.core.features import bulk_features
from qbtc.core.signal_model import SignalModel, bulk_signals
from qbtc.data.catalog import Dataset

pytestmark = [pytest.mark.benchmark, pytest.mark.realdata]

PEER = "hftbacktest, no-op loop"


def _event_path(
    columns: EventColumns, model: SignalModel
) -> tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]:
    """Feed every event from Python: warm (n_quotes,), features (n, 26), probabilities (n, 3)."""
    session = _core.SignalSession(model.core, columns.price_increment, columns.size_increment)
    missing = np.full(26, np.nan, np.float32), (np.nan,) * 3
    warm, features, probabilities = [], [], []
    names = ("ts", "kind", "side", "a", "b", "c", "d")
    for ts, kind, side, a, b, c, d in zip(
        *(getattr(columns, name).tolist() for name in names), strict=True
    ):
        match kind:
            case EventKind.QUOTE:
                signal = session.on_quote(ts, a, b, c, d)
                warm.append(signal is not None)
                if signal is None:
                    row, answer = missing
                else:
                    row = signal.features
                    answer = (signal.p_down, signal.p_flat, signal.p_up)
                features.append(row)
                probabilities.append(answer)
            case EventKind.TRADE:
                session.on_trade(ts, a, b, side)
            case EventKind.DEPTH:
                session.on_depth(ts, side, a, b)
            case _:
                session.on_depth_clear(ts)
    return np.array(warm), np.array(features), np.array(probabilities, np.float32)


def test_bulk_path(
    benchmark: BenchmarkFixture, report: Report, recording: Dataset, trained: Trained
) -> None:
    columns, model = recording.columns(), trained.ours["mps8"]
    warm, rows, answers = _event_path(columns, model)
    features, signals = bulk_features(columns), bulk_signals(columns, model)
    assert np.array_equal(features.warm, warm)
    assert features.X[warm].tobytes() == rows[warm].tobytes(), "features: bulk is not event path"
    assert signals.P[warm].tobytes() == answers[warm].tobytes(), "signals: bulk is not event path"

    peer_rows = replay.replay_rows(columns)
    ours = {
        "26 features": whole(lambda: bulk_features(columns), len(columns)),
        "26 features and mps8": whole(lambda: bulk_signals(columns, model), len(columns)),
    }
    peer = replay.replay_burst(peer_rows, columns.price_increment, columns.size_increment)
    samples = interleave(benchmark, {**ours, PEER: peer}, rounds=15, warmup=2)
    counts = columns.counts()
    for name in ours:
        report.add(
            "bulk, real depth recording",
            name,
            samples[name],
            (PEER, samples[PEER]),
            unit="M events/s",
            target=Target("value", 10.0),
            note=(
                f"{len(columns):,} events ({counts['depth']:,} depth rows, {counts['quotes']:,}"
                f" quotes, {counts['trades']:,} trades); all {int(warm.sum()):,} warm rows are"
                f" bit-equal to the event path; the peer replays the {len(peer_rows):,} depth rows"
                " and trades."
            ),
        )
