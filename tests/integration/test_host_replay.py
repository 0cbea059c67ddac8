"""Reading a replay's events from columns changes the speed of a run and nothing else."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from hosted import PERP, SPOT, cache, config, model, strategy, synthetic

from qbtc import _core
from qbtc.config import SyntheticSource, convert
from qbtc.core.columns import EventColumns
from qbtc.core.signal_model import load_model
from qbtc.data.catalog import Dataset, open_source
from qbtc.trading.host import Outcome, SessionOpener, execute
from qbtc.trading.plan import make_plan
from qbtc.trading.signal_actor import SignalSession, event_session, replay_session

__all__ = ["cache"]  # a fixture

DURATION_S = 100.0
TRADER = """
def on_start(self):
    self.id = InstrumentId.from_str(self.params.instrument)
    self.subscribe_model_signals(self.id)
    self.seen = 0

def on_model_signal(self, signal, quote):
    self.seen += 1
    if self.seen % 500 == 0:
        side = OrderSide.BUY if signal.p_up > signal.p_down else OrderSide.SELL
        size = self.cache.instrument(self.id).make_qty(0.01)
        self.submit_order(self.order_factory.market(self.id, side, size))
"""


def _columns(folder: Path, cache: Path) -> EventColumns:
    source = convert(synthetic(duration_s=DURATION_S), SyntheticSource, "t")
    return open_source(source, folder, cache_dir=cache).columns()


def _run(folder: Path, cache: Path, sessions: SessionOpener, **options: object) -> Outcome:
    folder.mkdir()
    model(folder / "m.safetensors")
    plan = make_plan(
        config(
            **{
                "data": [synthetic(duration_s=DURATION_S)],
                "strategies": [strategy(folder, TRADER)],
                "signals": [{"instrument": PERP, "model": "m.safetensors"}],
            }
            | options
        ),
        folder,
    )
    opener = partial(open_source, cache_dir=cache)
    outcome = execute(plan, output_dir=folder / "runs", opener=opener, sessions=sessions)
    outcome.raise_if_failed()
    return outcome


@pytest.mark.parametrize(
    "span", [{}, {"start": "2024-01-01T00:00:05Z", "end": "2024-01-01T00:01:30Z"}]
)
def test_a_replay_from_columns_gives_the_signals_and_fills_of_hearing_every_event(
    tmp_path: Path, cache: Path, span: dict[str, str]
) -> None:
    heard = _run(tmp_path / "a", cache, event_session, **span)
    replayed = _run(tmp_path / "b", cache, replay_session, **span)
    signals = [pq.read_table(run.folder / "signals.parquet") for run in (heard, replayed)]
    assert signals[0].num_rows > 100
    assert signals[0].equals(signals[1])
    assert heard.result.fills_sha256 == replayed.result.fills_sha256


def test_a_lead_is_replayed_from_columns_too_unless_it_ties(tmp_path: Path, cache: Path) -> None:
    loaded = load_model(model(tmp_path / "m.safetensors"))

    def opened(instrument: str, start: str) -> Dataset:
        values = synthetic(instrument, duration_s=DURATION_S, start=start)
        return open_source(convert(values, SyntheticSource, "t"), tmp_path, cache_dir=cache)

    own = opened(PERP, "2024-01-01T00:00:00Z")
    apart, tied = (opened(SPOT, f"2024-01-01T00:00:00{part}Z") for part in (".1", ""))
    everything = (None, None)
    assert not isinstance(replay_session(loaded, own, apart, everything, 0), SignalSession)
    assert isinstance(replay_session(loaded, own, tied, everything, 0), SignalSession)


def test_a_replay_with_a_lead_gives_the_signals_of_hearing_every_event(
    tmp_path: Path, cache: Path
) -> None:
    data = [
        synthetic(duration_s=DURATION_S),
        synthetic(SPOT, seed=4, duration_s=DURATION_S, start="2024-01-01T00:00:00.1Z"),
    ]
    entry = {"instrument": PERP, "model": "m.safetensors", "lead": SPOT}
    heard = _run(tmp_path / "a", cache, event_session, data=data, signals=[entry])
    replayed = _run(tmp_path / "b", cache, replay_session, data=data, signals=[entry])
    signals = [pq.read_table(run.folder / "signals.parquet") for run in (heard, replayed)]
    assert signals[0].num_rows > 100
    assert signals[0].equals(signals[1])
    assert heard.result.fills_sha256 == replayed.result.fills_sha256


def _ticks(columns: EventColumns, count: int) -> list[SimpleNamespace]:
    rows = [row for row in range(len(columns)) if columns.kind[row] == 0][:count]
    return [
        SimpleNamespace(
            ts_init=int(columns.ts[row]),
            bid_price=columns.a[row],
            bid_size=columns.b[row],
            ask_price=columns.c[row],
            ask_size=columns.d[row],
        )
        for row in rows
    ]


@pytest.fixture
def replay(tmp_path: Path, cache: Path) -> tuple[_core.ReplaySession, list[SimpleNamespace]]:
    columns = _columns(tmp_path, cache)
    session = load_model(model(tmp_path / "m.safetensors")).replay(columns)
    return session, _ticks(columns, 3)


def test_a_quote_that_is_not_the_next_one_of_the_columns_is_refused(
    replay: tuple[_core.ReplaySession, list[SimpleNamespace]],
) -> None:
    session, (first, second, third) = replay
    session.on_quote_tick(first)
    with pytest.raises(_core.CoreInputError, match=f"{second.ts_init}, not {third.ts_init}"):
        session.on_quote_tick(third)


def test_a_quote_with_other_numbers_than_the_columns_is_refused(
    replay: tuple[_core.ReplaySession, list[SimpleNamespace]],
) -> None:
    session, (first, *_) = replay
    first.bid_size *= 2
    with pytest.raises(_core.CoreInputError, match="not the one in the columns"):
        session.on_quote_tick(first)


def test_more_quotes_than_the_columns_have_are_refused(tmp_path: Path, cache: Path) -> None:
    columns = _columns(tmp_path, cache)
    (tick,) = _ticks(columns, 1)
    short = columns.slice_time(tick.ts_init, tick.ts_init + 1)
    session = load_model(model(tmp_path / "m.safetensors")).replay(short)
    session.on_quote_tick(tick)
    with pytest.raises(_core.CoreInputError, match="no quote left"):
        session.on_quote_tick(tick)


def test_nothing_beyond_the_quote_that_the_host_is_at_is_taken(
    replay: tuple[_core.ReplaySession, list[SimpleNamespace]],
) -> None:
    session, ticks = replay
    for heard, tick in enumerate(ticks, 1):
        session.on_quote_tick(tick)
        assert session.counts["quotes"] == heard


def test_a_span_holds_the_events_at_both_its_ends(tmp_path: Path, cache: Path) -> None:
    source = convert(synthetic(duration_s=DURATION_S), SyntheticSource, "t")
    dataset = open_source(source, tmp_path, cache_dir=cache)
    _, second, third = _ticks(dataset.columns(), 3)
    core = load_model(model(tmp_path / "m.safetensors"))
    session = replay_session(core, dataset, None, (second.ts_init, third.ts_init), 0)
    session.on_quote_tick(second)
    session.on_quote_tick(third)
    with pytest.raises(_core.CoreInputError, match="no quote left"):
        session.on_quote_tick(third)
