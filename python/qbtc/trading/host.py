"""Run a config on a Nautilus node: the only place that builds one.

A run goes through four steps, each a function:

1. ``make_plan``: load strategies and models, check what can be checked without data.
2. ``open_market``: open the data sources; count what is to be replayed.
3. ``_play``: build a ``BacktestNode``, run it, take orders and fills out of its cache. Once for
   the strategies, then once alone for each baseline on the same market, venue and costs.
4. ``record``: figures, tables and ``result.json`` into the run directory.

Costs are on by default: maker and taker fees (``MakerTakerFeeModel``), a fixed latency for every
order message, and queue positions. How limit orders fill, as measured on 2.0.0rc7: with
``queue_position`` a resting order fills when the trades at its price, less what left the level
before it, have used up the size ahead, or when the market moves through its price; the fill model's
own chance for a touch must then be 1, or not even a cleared queue fills. Without trades in the data
there is no queue to track and that chance is the config's (default 0: only a market moving through
the price fills).

Data is streamed from the Parquet catalogs in chunks (``CHUNK_EVENTS``): measured no slower than
loading everything, and memory stays bounded. Components start and stop in the order of the config
(``sequence``), so equal configs trade equally. One node runs per process at a time.
"""

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import Any

import nautilus_trader.model as nt
from nautilus_trader.backtest import (
    BacktestDataConfig,
    BacktestEngineConfig,
    BacktestNode,
    BacktestRunConfig,
    BacktestVenueConfig,
)
from nautilus_trader.common import LoggerConfig
from nautilus_trader.execution import DefaultFillModel, MakerTakerFeeModel, StaticLatencyModel

from qbtc.config import RunConfig, SignalConfig
from qbtc.core.signal_model import SignalModel
from qbtc.data.catalog import Dataset, open_source
from qbtc.errors import ConfigError, InputError, RunFailed
from qbtc.trading.feeds import Feed, FeedKind, Feeds
from qbtc.trading.ledger import Played, take_out
from qbtc.trading.loader import LoadedStrategy
from qbtc.trading.market import REPLAY_TYPES, Market, Opener, Progress, open_market
from qbtc.trading.outside import Outside, open_outside
from qbtc.trading.plan import Plan, baseline_names, make_plan
from qbtc.trading.record import make_run_directory, record
from qbtc.trading.result import RUN_SERIES, RunResult, WallTime
from qbtc.trading.sampling import DurationSampler, Pulse
from qbtc.trading.sequence import in_sequence
from qbtc.trading.signal_actor import (
    LeadFeed,
    QuoteSession,
    SignalActor,
    SignalSession,
    Span,
    replay_session,
)
from qbtc.trading.strategy import HostLinks, QbtcStrategy, SignalBoard
from qbtc.trading.trap import ExceptionTrap

__all__ = ["Outcome", "SessionOpener", "execute", "run"]

type SessionOpener = Callable[[SignalModel, Dataset, Dataset | None, Span, int], QuoteSession]
"""Makes the features and model of an instrument: ``signal_actor.replay_session``."""

CHUNK_EVENTS = 100_000
_RUN = "run"
"""Nautilus id of the one run in a node."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that left a directory, whether it went well or not."""

    result: RunResult
    folder: Path
    error: BaseException | None

    def raise_if_failed(self) -> None:
        """Raise what stopped the run.

        Raises
        ------
        RunFailed
            A callback raised or the engine stopped early; partial results are in ``folder``.
        InputError
            A callback found the config or data wrong.
        KeyboardInterrupt
            The run was interrupted.
        """
        if self.error is not None:
            raise self.error


def run(config: RunConfig, base: Path, *, output_dir: Path | None = None) -> Outcome:
    """Run a config and write its run directory.

    Parameters
    ----------
    config
        What to run.
    base
        Folder of the config file; relative paths in the config are against it.
    output_dir
        Parent of the run directory; default is the config's, against the working directory.

    Raises
    ------
    InputError
        Config, market, model or strategy file is wrong; nothing was run.
    RunFailed
        The run stopped early; its partial results are written.
    KeyboardInterrupt
        Interrupted; partial results are written.
    """
    outcome = execute(make_plan(config, base), output_dir=output_dir)
    outcome.raise_if_failed()
    return outcome


def execute(
    plan: Plan,
    *,
    output_dir: Path | None = None,
    opener: Opener = open_source,
    sessions: SessionOpener = replay_session,
    progress: Progress = lambda what, share: None,
) -> Outcome:
    """Run a plan and write its run directory; what went wrong is in the outcome.

    Raises
    ------
    InputError
        The run directory cannot be written, or the data cannot be opened; nothing was run.
    """
    began = time.perf_counter()
    started = datetime.now(UTC)
    folder = make_run_directory(plan.config, output_dir, started)
    try:
        market = open_market(plan, opener, progress)
        with open_outside(plan, market, folder) as (outside, close):
            opened = time.perf_counter()
            main = _play(
                plan, plan.strategies, market, sessions, progress, name=RUN_SERIES, outside=outside
            )
            told = close()
        played = time.perf_counter()
        others: list[Played] = []
        for name, baseline in zip(baseline_names(plan), plan.baselines, strict=True):
            if any(item.error is not None for item in (main, *others)):
                break
            others.append(_play(plan, (baseline,), market, None, progress, name=name))
        ended = time.perf_counter()
    except BaseException:
        folder.rmdir()  # what is wrong before or beside the replay leaves nothing to record
        raise

    wall = WallTime(
        open_data_s=opened - began,
        build_s=main.build_s,
        run_s=main.run_s,
        baselines_s=ended - played,
        total_s=ended - began,
    )
    costs = _costs(plan.config, market)
    result, error = record(plan, market, main, others, folder, started, wall, costs, told)
    return Outcome(result, folder, error)


def _play(
    plan: Plan,
    strategies: Sequence[LoadedStrategy],
    market: Market,
    sessions: SessionOpener | None,
    progress: Progress,
    *,
    name: str,
    outside: Outside | None = None,
) -> Played:
    """Build a node, run it, and take out what it did; without ``sessions`` there are no signals."""
    began = time.perf_counter()
    ids = [f"{loaded.cls.__name__}-{number:03d}" for number, loaded in enumerate(strategies, 1)]
    played = Played(name=name, strategies=ids)
    trap = ExceptionTrap()
    node = BacktestNode([_node_config(plan, market)])
    try:
        node.build()
    except RuntimeError as error:
        raise ConfigError(f"Nautilus refuses the venue or data: {error}; mend [venue]") from error
    entries = tuple(zip(plan.config.signals, plan.models, strict=True)) if sessions else ()
    signalled = tuple(entry.instrument for entry, _ in entries)
    board = SignalBoard(signalled)
    own_feeds = _feeds(market)
    feeds = Feeds(own_feeds)
    played.sampler = DurationSampler(own_feeds, board, signalled)
    links = HostLinks(board, feeds, _bar_types(market), trap.watch_handler)
    if outside is not None:
        links = replace(links, desk=outside.desk, bus_board=outside.bus_board)
    components: list[Any] = []
    try:
        for entry, model in entries:
            assert sessions is not None
            components += _signal_actors(entry, model, market, plan.span_ns, board, feeds, sessions)
        played.signals = [item for item in components if isinstance(item, SignalActor)]
        if outside is not None:
            outside.listen(board, {entry.instrument: model for entry, model in entries})
            components += outside.actors(feeds)
        with _interruptible() as interrupted:

            def beat(ts: int) -> None:
                played.stopped_ns = ts
                if interrupted():
                    raise KeyboardInterrupt
                for actor in played.signals:
                    actor.published.pull()
                played.sampler.pulse()
                done = (ts - market.span_ns[0]) / max(market.span_ns[1] - market.span_ns[0], 1)
                progress(f"running {name}", min(max(done, 0.0), 1.0))

            pulse = Pulse(market.span_ns, beat)
            components += [*own_feeds, pulse]
            for actor in components:
                node.add_actor(_RUN, actor)
            for loaded, identity in zip(strategies, ids, strict=True):
                strategy = _make_strategy(loaded, identity, links)
                components.append(strategy)
                if outside is not None:
                    outside.watch(strategy, trap)
                node.add_strategy(_RUN, strategy)
            if outside is not None:
                outside.kept += [node, *components]
            for component in components:
                trap.watch(component)
            feeds.rank(components)
            in_sequence(components, pulse.at_end, feeds.drop_all)
            built = time.perf_counter()
            played.build_s = built - began
            _run_node(node, trap, played, market)
            played.run_s = time.perf_counter() - built
        take_out(node, _RUN, played, market)
    finally:
        node.dispose()
    return played


def _run_node(node: BacktestNode, trap: ExceptionTrap, played: Played, market: Market) -> None:
    """Run to the end or to the first exception, which is kept in ``played.error``."""
    refused: Exception | None = None
    with trap:
        try:
            results = trap.call(node.run)
        except Exception as error:  # a failed on_start comes out as a RuntimeError of Nautilus
            refused, results = error, []
    played.events = sum(result.iterations for result in results)
    ended = [result.backtest_end for result in results if result.backtest_end is not None]
    if trap.error is None and refused is None and played.events == market.items:
        played.stopped_ns = market.span_ns[1]
    else:
        played.stopped_ns = max([played.stopped_ns, market.span_ns[0], *ended])
        played.stopped_ns = min(played.stopped_ns, market.span_ns[1])
    if trap.error is not None:
        played.error = _as_failure(
            trap.error, "" if played.name == RUN_SERIES else f"baseline {played.name}: "
        )
    elif refused is not None:
        played.error = RunFailed(f"Nautilus refused to run: {refused}")
    elif played.events != market.items:
        played.error = RunFailed(
            f"the engine processed {played.events:,} of {market.items:,} events and raised "
            "nothing; set NAUTILUS_LOG=stdout=Info and run again to see its log"
        )


def _as_failure(error: BaseException, who: str) -> BaseException:
    """Make the error that ends the run of an exception that a callback let out."""
    if isinstance(error, KeyboardInterrupt | InputError):
        return error
    where = ""
    if error.__traceback__ is not None:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({Path(last.filename).name}:{last.lineno}, in {last.name})"
    failure = RunFailed(f"{who}{type(error).__name__}: {error}{where}")
    failure.__cause__ = error
    failure.add_note("".join(traceback.format_exception(error)).rstrip())
    return failure


def _node_config(plan: Plan, market: Market) -> BacktestRunConfig:
    start, end = plan.span_ns
    feeds = []
    for dataset, replay in zip(market.sets, market.replays, strict=True):
        for name, kind in REPLAY_TYPES.items():
            if name not in replay.counts:
                continue
            which: dict[str, Any] = (
                {"bar_types": list(replay.bar_types)}
                if name == "bars"
                else {"instrument_id": dataset.instrument.id}
            )
            feeds.append(
                BacktestDataConfig(
                    data_type=kind,
                    catalog_path=str(dataset.catalog_path),
                    start_time=start,
                    end_time=end,
                    **which,
                )
            )
    log = os.environ.get("NAUTILUS_LOG")
    engine = BacktestEngineConfig(
        shutdown_on_error=True,
        run_analysis=False,
        bypass_logging=log is None,
        logging=LoggerConfig(bypass_logging=True) if log is None else LoggerConfig.from_spec(log),
    )
    return BacktestRunConfig(
        id=_RUN,
        venues=[_venue(plan.config, market)],
        data=feeds,
        engine=engine,
        chunk_size=CHUNK_EVENTS,
        raise_exception=True,
        dispose_on_completion=False,
    )


def _venue(config: RunConfig, market: Market) -> BacktestVenueConfig:
    venue = config.venue
    latency_ns = round(venue.latency_ms * 1e6)
    queue = venue.fill.queue_position and market.has_trades
    touch = 1.0 if queue else venue.fill.probability_fill_on_limit
    try:
        return BacktestVenueConfig(
            name=venue.name,
            oms_type=nt.OmsType.NETTING,
            account_type=nt.AccountType.MARGIN
            if venue.account == "margin"
            else nt.AccountType.CASH,
            starting_balances=list(venue.starting_balances),
            book_type=nt.BookType.L1_MBP if venue.book == "L1" else nt.BookType.L2_MBP,
            default_leverage=Decimal(venue.leverage),
            fee_model=MakerTakerFeeModel(Decimal(venue.maker_fee), Decimal(venue.taker_fee)),
            latency_model=StaticLatencyModel(base_latency_nanos=latency_ns),
            fill_model=DefaultFillModel(
                prob_fill_on_limit=touch,
                prob_slippage=venue.fill.probability_slippage,
                random_seed=config.seed,
            ),
            trade_execution=market.has_trades,
            liquidity_consumption=True,
            queue_position=queue,
            use_random_ids=False,
        )
    except (ValueError, ArithmeticError) as error:
        raise ConfigError(f"[venue]: {error}") from None


def _costs(config: RunConfig, market: Market) -> dict[str, Any]:
    """Say what ``_venue`` makes of the config, for the result."""
    venue = config.venue
    queue = venue.fill.queue_position and market.has_trades
    return {
        "maker_fee": venue.maker_fee,
        "taker_fee": venue.taker_fee,
        "latency_ms": venue.latency_ms,
        "book": venue.book,
        "queue_position": queue,
        "liquidity_consumption": True,
        "trade_execution": market.has_trades,
        "probability_fill_on_limit": 1.0 if queue else venue.fill.probability_fill_on_limit,
        "probability_slippage": venue.fill.probability_slippage,
    }


def _signal_actors(
    entry: SignalConfig,
    model: SignalModel,
    market: Market,
    span: Span,
    board: SignalBoard,
    feeds: Feeds,
    sessions: SessionOpener,
) -> list[Any]:
    sets = {item.instrument_id: item for item in reversed(market.sets)}
    lead = None if entry.lead is None else sets[entry.lead]
    # Training saw the instant of its end too.
    silent = model.metadata.train_end_ns + 1 if entry.in_sample == "skip" else 0
    session = sessions(model, sets[entry.instrument], lead, span, silent)
    actor = SignalActor(
        instrument=entry.instrument,
        session=session,
        handlers=board.handlers(entry.instrument),
        silent_before_ns=silent,
        feeds=feeds,
    )
    if lead is None or not isinstance(session, SignalSession):
        return [actor]
    # At equal times the node hears the two in the order of their [[data]] entries.
    name = lead.instrument_id
    feed = LeadFeed(instrument=entry.instrument, lead=name, session=session, feeds=feeds)
    return [feed, actor]


def _feeds(market: Market) -> list[Feed]:
    """Make a feed for everything that is going to be replayed."""
    feeds = []
    for dataset, replay in zip(market.sets, market.replays, strict=True):
        name = dataset.instrument_id
        kinds: tuple[FeedKind, ...] = ("depth", "trades", "quotes")
        feeds += [Feed(kind, name) for kind in kinds if kind in replay.counts]
        feeds += [Feed("bars", bar_type) for bar_type in replay.bar_types]
    return feeds


def _make_strategy(loaded: LoadedStrategy, identity: str, links: HostLinks) -> QbtcStrategy[Any]:
    try:
        return loaded.cls(loaded.params, strategy_id=identity, links=links)
    except InputError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{loaded.path}: making the strategy failed: {type(error).__name__}: {error}"
        ) from error


def _bar_types(market: Market) -> dict[str, str]:
    return {
        dataset.instrument_id: replay.bar_types[0]
        for dataset, replay in zip(market.sets, market.replays, strict=True)
        if replay.bar_types
    }


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag that the pulse asks for; the second one raises at once.

    So a strategy is stopped between events and never in the middle of its own callback.
    """
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
