"""Inside a backtest: what features, model and delivery add to every event.

Sketch, per quote on a quiet machine: the engine 0.8 us, a Python callback 0.35, reading a quote's
four numbers and time in Python 0.7. Ours reads the time only (0.05) and takes the numbers from the
catalog's columns; features 0.03 and their row 0.05, mps8 0.12, a signal object 0.1, the call into
the strategy and its comparison 0.2, the log 0.05 and the outlier score in it 0.5.
"""

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import market, node
from benchmarks.models import Trained
from benchmarks.reporting import Report, Target
from benchmarks.timing import Burst, interleave
from qbtc.core.signal_model import SignalModel
from qbtc.data.catalog import Dataset
from qbtc.messages import Signal
from qbtc.trading.signal_actor import event_session

pytestmark = pytest.mark.benchmark

GROUP = "inside a backtest"
ALONE, NOOP, READER = "engine alone", "no-op callback", "reading the quote in Python"
OURS, LIVE, HOLLOW = "signals", "signals, every event heard", "one answer"


def _contenders(where: node.Market, model: SignalModel) -> dict[str, Burst]:
    return {
        ALONE: node.burst(where, "Deaf"),
        NOOP: node.burst(where, "Noop"),
        OURS: node.burst(where, "Decider", model=model),
        LIVE: node.burst(where, "Decider", model=model, sessions=event_session),
    }


def _any_signal(model: SignalModel) -> Signal:
    columns = market.synthetic(120.0)
    session = model.replay(columns)
    for tick in node.ticks(columns):
        signal = session.on_quote_tick(tick)
    assert signal is not None
    return signal


def test_event_to_decision(
    benchmark: BenchmarkFixture, report: Report, trained: Trained, tmp_path: Path
) -> None:
    model = trained.ours["mps8"]
    where = node.quotes_only(market.synthetic_catalog(900.0, tmp_path), tmp_path)
    answer = _any_signal(model)
    contenders = _contenders(where, model) | {
        READER: node.burst(where, "Reader"),
        HOLLOW: node.burst(
            where, "Decider", model=model, sessions=lambda *_: node.OneAnswer(answer)
        ),
    }
    samples = interleave(benchmark, contenders, rounds=7)
    noop = samples[NOOP]
    reading = (f"{READER}, above the no-op", samples[READER].minus(noop))
    report.add(
        GROUP,
        "quote, features, mps8, strategy: above the no-op",
        samples[OURS].minus(noop),
        reading,
        target=Target("value", 1000.0),
        note=(
            f"{where.dataset.counts['quotes']:,} quotes, L1; the strategy compares two"
            " probabilities at each. The no-op is a strategy whose on_quote does nothing."
            " Differences of whole runs, round by round."
        ),
    )
    report.add(
        GROUP,
        "the same, reading quote objects (the live path): above the no-op",
        samples[LIVE].minus(noop),
        reading,
    )
    report.add(
        GROUP,
        "delivery, log and strategy only: above the no-op",
        samples[HOLLOW].minus(noop),
        reading,
        note="The session is a Python object that gives one signal again and again.",
    )
    for name, label in (
        (OURS, "quotes with signals"),
        (LIVE, "quotes with signals, live path"),
        (ALONE, "quotes, engine alone"),
    ):
        report.add(
            GROUP,
            label,
            samples[name],
            ("same engine, no-op callback", noop),
            unit="M events/s",
            target=Target("ratio", 0.6) if name == OURS else None,
            note="Quotes only, the hardest case: every event costs a signal."
            if name == OURS
            else "",
        )


@pytest.mark.realdata
def test_backtest_of_the_recording(
    benchmark: BenchmarkFixture,
    report: Report,
    trained: Trained,
    recording: Dataset,
    tmp_path: Path,
) -> None:
    where = node.Market(recording, tmp_path)
    samples = interleave(benchmark, _contenders(where, trained.ours["mps8"]), rounds=3, warmup=0)
    for name, label in (
        (OURS, "real recording with signals"),
        (LIVE, "real recording with signals, live path"),
        (ALONE, "real recording, engine alone"),
    ):
        counts = recording.counts
        report.add(
            GROUP,
            label,
            samples[name],
            ("same engine, no-op callbacks", samples[NOOP]),
            unit="M events/s",
            target=Target("ratio", 0.6) if name == OURS else None,
            note=(
                f"{counts['quotes']:,} quotes, {counts['trades']:,} trades and the book updates of"
                f" {counts['depth']:,} level changes, L2; the no-op hears them all. Ours hears the"
                " quotes and reads the rest from the catalog's columns."
            )
            if name == OURS
            else "",
        )
