"""Inside a backtest: what features, model and delivery add to every event.

Sketch, per quote: the engine 0.8 us, a Python callback 0.35, reading a quote's four numbers and
time in Python 0.7; features 0.03 and their row 0.05, mps8 0.12, a signal object 0.1, the call into
the strategy 0.1.
"""

from types import SimpleNamespace

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import market, node
from benchmarks.models import Trained
from benchmarks.reporting import Report, Target
from benchmarks.timing import Samples, interleave
from qbtc import _core
from qbtc.data.catalog import Dataset
from qbtc.data.instruments import instrument_for
from qbtc.trading.signal_actor import SignalSession

pytestmark = pytest.mark.benchmark

GROUP = "inside a backtest"
NOOP = "no-op callback"
READER = "reading a quote in Python"
OURS = "signals"
HOLLOW = "hollow core"


def _contenders(feed: node.Feed, trained: Trained) -> dict[str, node.Burst]:
    instrument, model = feed.instrument, trained.ours["mps8"].core
    grid = float(instrument.price_increment), float(instrument.size_increment)

    def session() -> SignalSession:
        return _core.SignalSession(model, *grid)

    listeners = {
        "engine alone": node.listening(node.Deaf),
        NOOP: node.listening(node.Noop),
        READER: node.listening(node.Reader),
        OURS: node.deciding(session),
    }
    return {name: node.burst(feed, add) for name, add in listeners.items()}


def test_event_to_decision(benchmark: BenchmarkFixture, report: Report, trained: Trained) -> None:
    instrument = instrument_for(market.INSTRUMENT)
    feed = node.quotes_of(market.synthetic(600.0), instrument)
    signal = SimpleNamespace(ts_event=1, p_down=0.2, p_flat=0.3, p_up=0.5, ood=0.5)
    hollow = {HOLLOW: node.burst(feed, node.deciding(lambda: node.OneAnswer(signal)))}
    samples = interleave(benchmark, _contenders(feed, trained) | hollow, rounds=9)
    noop = samples[NOOP]
    reading: tuple[str, Samples] = (f"{READER}, above the no-op", samples[READER].minus(noop))
    report.add(
        GROUP,
        "quote to features to mps8 to strategy, above the no-op",
        samples[OURS].minus(noop),
        reading,
        target=Target("value", 1000.0),
        note=(
            f"{feed.items:,} quotes, L1; the strategy compares two probabilities at each. The no-op"
            " is a strategy whose on_quote does nothing. Differences of round medians."
        ),
    )
    report.add(
        GROUP,
        "of which without the core (reading, delivery, strategy)",
        samples[HOLLOW].minus(noop),
        reading,
        note="The same actor and strategy; the session is a Python object that does nothing.",
    )
    report.add(
        GROUP,
        "quotes with signals",
        samples[OURS],
        ("same engine, no-op callback", noop),
        unit="M events/s",
        target=Target("ratio", 0.6),
        note="Quotes only: every event costs a signal, the hardest case.",
    )
    report.add(
        GROUP,
        "quotes, engine alone",
        samples["engine alone"],
        ("same engine, no-op callback", noop),
        unit="M events/s",
        note="No callback at all: what the first Python callback costs.",
    )


@pytest.mark.realdata
def test_backtest_of_the_recording(
    benchmark: BenchmarkFixture, report: Report, trained: Trained, recording: Dataset
) -> None:
    feed = node.everything_of(recording)
    samples = interleave(benchmark, _contenders(feed, trained), rounds=5)
    for name, label in ((OURS, "with signals"), ("engine alone", "engine alone")):
        report.add(
            GROUP,
            f"real recording, {label}",
            samples[name],
            ("same engine, no-op callbacks", samples[NOOP]),
            unit="M events/s",
            target=Target("ratio", 0.6) if name == OURS else None,
            note=(
                f"{feed.items:,} events: quotes, trades and book updates"
                f" ({recording.counts['depth']:,} level changes), L2; the no-op hears them all."
                if name == OURS
                else ""
            ),
        )
