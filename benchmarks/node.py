"""Backtests that differ in one thing only: what hears the events.

Each is a whole run of the host (catalog, venue, fees, latency, figures), so that nothing is timed
that a user would not run; what counts is the time inside the node's ``run``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from benchmarks.timing import Burst
from qbtc.config import CatalogSource, RunConfig, SignalConfig, StrategyConfig, VenueConfig
from qbtc.core.columns import EventColumns, EventKind
from qbtc.core.signal_model import SignalModel
from qbtc.data.catalog import Dataset, open_source
from qbtc.messages import Signal
from qbtc.trading.host import SessionOpener, execute
from qbtc.trading.plan import make_plan
from qbtc.trading.signal_actor import replay_session


@dataclass(frozen=True)
class Market:
    """A catalog, opened once."""

    dataset: Dataset
    folder: Path
    """Where runs may be written."""

    @property
    def with_depth(self) -> bool:
        """Whether there are book updates to hear."""
        return "depth" in self.dataset.types


def quotes_only(dataset: Dataset, folder: Path) -> Market:
    """Return the quotes of a catalog as a market."""
    source = CatalogSource(
        instrument=dataset.instrument_id, path=str(dataset.catalog_path), types=("quotes",)
    )
    return Market(open_source(source, folder), folder)


class OneAnswer:
    """A session without a core: what delivery, log and decision cost by themselves."""

    def __init__(self, signal: Signal) -> None:
        self._signal = signal

    def on_quote_tick(self, tick: object) -> Signal:
        """Answer with the one signal."""
        return self._signal

    def drain(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64], float | None]:
        """Keep nothing."""
        return np.empty((0, 3), np.float32), np.empty(0, np.int64), np.empty(0), None


def ticks(columns: EventColumns) -> Iterator[SimpleNamespace]:
    """Yield the quotes of ``columns`` as objects with the attributes of a Nautilus quote."""
    rows = np.flatnonzero(columns.kind == EventKind.QUOTE)
    names = ("ts", "a", "b", "c", "d")
    for ts, bid, bid_size, ask, ask_size in zip(
        *(getattr(columns, name)[rows].tolist() for name in names), strict=True
    ):
        yield SimpleNamespace(
            ts_init=ts, bid_price=bid, bid_size=bid_size, ask_price=ask, ask_size=ask_size
        )


def burst(
    market: Market,
    strategy: str,
    *,
    model: SignalModel | None = None,
    sessions: SessionOpener = replay_session,
) -> Burst:
    """Return a burst that runs a backtest: ns per event.

    Parameters
    ----------
    market
        What is replayed.
    strategy
        Class in ``benchmarks.listeners``.
    model
        Makes a signal at every quote; without it there are no signals.
    sessions
        Opens features and model, as the host does.
    """
    name = market.dataset.instrument_id
    params = {"instrument": name, "with_depth": market.with_depth}
    config = RunConfig(
        name=strategy.lower(),
        data=(CatalogSource(instrument=name, path=str(market.dataset.catalog_path)),),
        strategies=(StrategyConfig(path=f"benchmarks.listeners:{strategy}", params=params),),
        venue=VenueConfig(book="L2" if market.with_depth else "L1"),
        signals=(SignalConfig(instrument=name, model=str(model.path), in_sample="allow"),)
        if model
        else (),
    )
    plan = make_plan(config, market.folder)

    def run() -> float:
        outcome = execute(
            plan,
            output_dir=market.folder,
            opener=lambda source, base: market.dataset,
            sessions=sessions,
        )
        outcome.raise_if_failed()
        result = outcome.result
        return result.wall.run_s * 1e9 / result.events

    return run
