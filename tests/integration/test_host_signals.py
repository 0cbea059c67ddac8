"""Signals reach the strategies, stay silent in sample, and a bad event stops the run."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hosted import FLAT, PERP, SPOT, cache, model, play, strategy, synthetic
from nautilus_trader.model import Price, Quantity, QuoteTick
from nautilus_trader.persistence import ParquetDataCatalog

from qbtc.config import SyntheticSource, convert
from qbtc.core.signal_model import bulk_signals, load_model
from qbtc.data.catalog import open_source
from qbtc.data.instruments import instrument_for
from qbtc.errors import RunFailed

__all__ = ["cache"]  # a fixture

LONG_S = 100.0
"""Longer than the features' warm-up."""
START_NS = 1_704_067_200_000_000_000
LISTENER = """
def on_start(self):
    self.id = InstrumentId.from_str(self.params.instrument)
    self.subscribe_model_signals(self.id)
    self.subscribe_quotes(self.id)
    self.signalled = 0
    self.last = None

def on_model_signal(self, signal, quote):
    assert signal.ts_event == quote.ts_init
    assert abs(signal.mid - 0.5 * (float(quote.bid_price) + float(quote.ask_price))) < 1e-6
    assert abs(signal.p_down + signal.p_flat + signal.p_up - 1) < 1e-5
    self.last = quote
    self.signalled += 1

def on_quote(self, quote):
    if self.signalled:
        assert self.last == quote, "the signal comes before its quote"

def on_stop(self):
    (open_path := __import__("pathlib").Path(PLACE)).write_text(str(self.signalled))
"""


def test_every_signal_is_the_bulk_paths_and_reaches_the_strategy(
    tmp_path: Path, cache: Path
) -> None:
    file = model(tmp_path / "m.safetensors")
    body = LISTENER.replace("PLACE", repr(str(tmp_path / "heard")))
    outcome = play(
        tmp_path,
        cache,
        data=[synthetic(duration_s=LONG_S)],
        strategies=[strategy(tmp_path, body)],
        baselines=[FLAT],
        signals=[{"instrument": PERP, "model": "m.safetensors"}],
    )
    outcome.raise_if_failed()
    (said,) = outcome.result.signals
    table = pq.read_table(outcome.folder / "signals.parquet").to_pydict()
    assert said.published == len(table["ts"]) == int((tmp_path / "heard").read_text()) > 100
    assert said.published + said.not_warm + said.skipped_in_sample == said.quotes
    assert said.quotes == outcome.result.data[0].replayed["quotes"]

    source = convert(synthetic(duration_s=LONG_S), SyntheticSource, "t")
    columns = open_source(source, tmp_path, cache_dir=cache).columns()
    bulk = bulk_signals(columns, load_model(file))
    warm = ~np.isnan(bulk.P[:, 0])
    np.testing.assert_array_equal(bulk.ts[warm], table["ts"])
    for column, name in enumerate(("p_down", "p_flat", "p_up")):
        np.testing.assert_array_equal(bulk.P[warm, column], np.float32(table[name]))
    np.testing.assert_array_equal(bulk.mid[warm], table["mid"])

    (used,) = outcome.result.models
    assert used.kind == "logistic"
    assert used.metadata["synthetic"] is True


@pytest.mark.parametrize("in_sample", ["skip", "allow"])
def test_signals_inside_the_training_span_are_silent_unless_allowed(
    tmp_path: Path, cache: Path, in_sample: str
) -> None:
    border = START_NS + 80_000_000_000
    model(tmp_path / "m.safetensors", train_end_ns=border)
    outcome = play(
        tmp_path,
        cache,
        data=[synthetic(duration_s=LONG_S)],
        strategies=[FLAT],
        signals=[{"instrument": PERP, "model": "m.safetensors", "in_sample": in_sample}],
    )
    (said,) = outcome.result.signals
    ts = np.array(pq.read_table(outcome.folder / "signals.parquet")["ts"])
    assert said.out_of_sample_ns is not None
    assert said.out_of_sample_ns[0] >= border
    if in_sample == "skip":
        assert ts.min() >= border
        assert said.skipped_in_sample > 0
        assert said.published_in_sample == 0
        assert "silent for" in said.note
    else:
        assert ts.min() < border
        assert said.published_in_sample == (ts < border).sum() > 0
        assert "says nothing about the future" in said.note


@pytest.mark.parametrize(
    "span", [{}, {"start": "2024-01-01T00:00:05Z", "end": "2024-01-01T00:01:38Z"}]
)
def test_signals_with_a_lead_are_the_bulk_paths(
    tmp_path: Path, cache: Path, span: dict[str, str]
) -> None:
    file = model(tmp_path / "m.safetensors")
    data = [synthetic(duration_s=LONG_S), synthetic(SPOT, seed=4, duration_s=LONG_S)]
    entry = {"instrument": PERP, "model": "m.safetensors", "lead": SPOT}
    outcome = play(tmp_path, cache, data=data, strategies=[FLAT], signals=[entry], **span)
    outcome.raise_if_failed()
    table = pq.read_table(outcome.folder / "signals.parquet").to_pydict()
    own, lead = (
        open_source(convert(tree, SyntheticSource, "t"), tmp_path, cache_dir=cache).columns()
        for tree in data
    )
    first, last = outcome.result.span_ns
    bulk = bulk_signals(own.with_lead(lead).slice_time(first, last + 1), load_model(file))
    warm = ~np.isnan(bulk.P[:, 0])
    assert warm.sum() > 100
    np.testing.assert_array_equal(bulk.ts[warm], table["ts"])
    for column, name in enumerate(("p_down", "p_flat", "p_up")):
        np.testing.assert_array_equal(bulk.P[warm, column], np.float32(table[name]))


@pytest.mark.parametrize("before", [0, 1])
def test_the_last_instant_that_training_saw_gets_no_signal(
    tmp_path: Path, cache: Path, before: int
) -> None:
    source = convert(synthetic(duration_s=LONG_S), SyntheticSource, "t")
    columns = open_source(source, tmp_path, cache_dir=cache).columns()
    border = int(columns.ts[columns.kind == 0][-20])
    model(tmp_path / "m.safetensors", train_end_ns=border - before)
    outcome = play(
        tmp_path,
        cache,
        data=[synthetic(duration_s=LONG_S)],
        strategies=[FLAT],
        signals=[{"instrument": PERP, "model": "m.safetensors"}],
    )
    outcome.raise_if_failed()
    (said,) = outcome.result.signals
    assert said.published == 19 + before
    assert said.published_in_sample == 0


def test_a_lead_venue_changes_the_signal(tmp_path: Path, cache: Path) -> None:
    model(tmp_path / "m.safetensors")
    data = [synthetic(duration_s=LONG_S), synthetic(SPOT, seed=4, duration_s=LONG_S)]
    tables = []
    for lead in ({}, {"lead": SPOT}):
        entry = {"instrument": PERP, "model": "m.safetensors"} | lead
        outcome = play(tmp_path, cache, data=data, strategies=[FLAT], signals=[entry])
        outcome.raise_if_failed()
        tables.append(pq.read_table(outcome.folder / "signals.parquet").to_pandas())
    assert len(tables[0]) == len(tables[1])
    assert not tables[0].p_up.equals(tables[1].p_up)


def test_an_event_that_the_features_refuse_stops_the_run_with_its_facts(
    tmp_path: Path, cache: Path
) -> None:
    model(tmp_path / "m.safetensors")
    instrument = instrument_for(PERP)
    quotes = [
        QuoteTick(
            instrument.id,
            Price(60_000.0 if number != 50 else 60_001.0, 1),
            Price(60_000.1, 1),
            Quantity(1, 3),
            Quantity(1, 3),
            START_NS + number * 1_000_000,
            START_NS + number * 1_000_000,
        )
        for number in range(100)
    ]
    (tmp_path / "crossed").mkdir()
    catalog = ParquetDataCatalog(str(tmp_path / "crossed"))
    catalog.write_instruments([instrument])
    catalog.write_quote_ticks(quotes)
    source = {"source": "catalog", "instrument": PERP, "path": "crossed", "types": ["quotes"]}
    outcome = play(
        tmp_path,
        cache,
        data=[source],
        strategies=[FLAT],
        signals=[{"instrument": PERP, "model": "m.safetensors"}],
    )
    with pytest.raises(RunFailed, match=r"rejected an event.*60001\.0"):
        outcome.raise_if_failed()
    assert outcome.result.partial
