"""From what the nodes did to the run directory: figures, tables, ``result.json``."""

import hashlib
import platform
import secrets
import traceback
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
import nautilus_trader.model as nt
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qbtc.config import RunConfig, SignalConfig
from qbtc.core.build import build_info
from qbtc.core.signal_model import SignalModel
from qbtc.data.catalog import Dataset
from qbtc.errors import ConfigError, RunFailed
from qbtc.store.opening import shown
from qbtc.trading.accounting import Curve, Fill, curve_of, performance_of, thin
from qbtc.trading.ledger import Played, Status
from qbtc.trading.market import Market, iso
from qbtc.trading.plan import Plan, config_sha256
from qbtc.trading.replay import Mids, Replay
from qbtc.trading.result import (
    EQUITY,
    FILLS,
    ORDERS,
    POSITIONS,
    PRICES,
    SIGNALS,
    DataSetResult,
    ModelResult,
    OutsideResult,
    Performance,
    RunResult,
    SignalResult,
    WallTime,
    write_result,
)
from qbtc.trading.signal_actor import SignalActor

__all__ = ["make_run_directory", "record"]

CHART_ROWS_MAX = 4_000
"""Rows per curve in ``equity.parquet`` and ``prices.parquet``."""


def make_run_directory(config: RunConfig, output_dir: Path | None, started: datetime) -> Path:
    """Create ``<name>-<UTC time>-<config hash>``, with a number behind it if that is taken."""
    parent = output_dir if output_dir is not None else Path(config.output_dir).expanduser()
    stem = f"{config.name}-{started:%Y%m%dT%H%M%SZ}-{config_sha256(config)[:8]}"
    if config.bus is not None or config.records is not None:
        # Others know the run by this name, where a number in this folder says nothing.
        stem += f"-{secrets.token_hex(3)}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            folder = parent / (stem if number == 1 else f"{stem}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise ConfigError(
            f"run directory {parent}: {error.strerror}; give another with --output DIR"
        ) from None
    raise ConfigError(f"{parent}: no free run directory like {stem}")


def record(
    plan: Plan,
    market: Market,
    main: Played,
    others: Sequence[Played],
    folder: Path,
    started: datetime,
    wall: WallTime,
    costs: dict[str, Any],
    told: OutsideResult,
) -> tuple[RunResult, BaseException | None]:
    """Write the run directory; return the result and what stopped the run, if anything did."""
    span = (market.span_ns[0], max(main.stopped_ns, market.span_ns[0] + 1))
    curves = {main.name: curve_of(main.fills, market.mids, span)}
    for other in others:
        curves[other.name] = curve_of(
            other.fills, market.mids, (span[0], max(other.stopped_ns, span[0] + 1))
        )
    error = next((item.error for item in (main, *others) if item.error is not None), None)
    status: Status = next(
        (item.status for item in (main, *others) if item.error is not None), "complete"
    )
    start_balance = float(plan.config.venue.starting_balances[0].split()[0])
    result = RunResult(
        run_id=folder.name,
        name=plan.config.name,
        mode=plan.config.mode,
        status=status,
        partial=main.error is not None,
        error=None if error is None else str(error) or type(error).__name__,
        traceback=_traceback_of(error),
        started=started.isoformat(timespec="seconds"),
        currency=market.currency,
        start_balance=start_balance,
        span_ns=span,
        synthetic=any(item.synthetic for item in market.sets),
        data=tuple(
            _data_result(dataset, replay, str(source.__struct_config__.tag))
            for dataset, replay, source in zip(
                market.sets, market.replays, plan.config.data, strict=True
            )
        ),
        events=main.events,
        events_per_s=main.events / main.run_s if main.run_s > 0 else 0.0,
        performance=_performance(main, curves[main.name]),
        strategies=tuple(
            _strategy_performance(main, name, market, span) for name in main.strategies
        ),
        baselines=tuple(_performance(other, curves[other.name]) for other in others),
        signals=_signal_results(plan, main),
        models=_model_results(plan),
        fills_sha256=main.fills_sha256,
        latency=main.sampler.histograms(max(main.events, 1)),
        wall=wall,
        seed=plan.config.seed,
        config=_config_shown(plan.config),
        config_sha256=config_sha256(plan.config),
        strategy_sha256=_strategy_hashes(plan),
        costs=costs,
        versions=_versions(),
        build_info=msgspec.to_builtins(build_info()),
        notes=(*_notes(plan, market, (main, *others)), *_outside_notes(told)),
        outside=told,
    )
    _write_tables(folder, main, curves, market, start_balance)
    write_result(result, folder)
    if error is not None:
        error.add_note(f"partial results: {folder}")
    return result, error


def _config_shown(config: RunConfig) -> dict[str, Any]:
    """Return the config as plain values, without the passwords that its URLs may have."""
    tree: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(config))
    for section in (tree["bus"], tree["records"]):
        if section is not None and section["url"] is not None:
            section["url"] = shown(section["url"])
    return tree


def _outside_notes(told: OutsideResult) -> Iterator[str]:
    """Say what did not reach the outside."""
    if told.bus is not None:
        if told.bus.problem is not None:
            yield f"the bus was left early: {told.bus.problem}"
        for kind, counts in told.bus.relay.items():
            if counts.dropped:
                total = counts.sent + counts.dropped
                yield f"{counts.dropped:,} of {total:,} copies of {kind} did not reach the bus"
    if told.records is not None and told.records.problem is not None:
        yield f"records: {told.records.problem}"
    if told.risk is not None:
        for limit, number in told.risk.refused.items():
            yield f"{number:,} orders were refused by [risk] {limit}"


def _performance(played: Played, curve: Curve) -> Performance:
    return performance_of(
        played.name,
        played.fills,
        curve,
        orders=len(played.orders),
        status=played.status,
        error=None if played.error is None else str(played.error) or type(played.error).__name__,
        fills_sha256=played.fills_sha256,
    )


def _strategy_performance(
    played: Played, strategy: str, market: Market, span: tuple[int, int]
) -> Performance:
    fills = [fill for fill in played.fills if fill.strategy == strategy]
    orders = sum(row["strategy"] == strategy for row in played.orders)
    return performance_of(strategy, fills, curve_of(fills, market.mids, span), orders=orders)


def _data_result(dataset: Dataset, replay: Replay, tag: str) -> DataSetResult:
    assert replay.span_ns is not None
    manifest = dataset.manifest
    left_out, added = _import_changes(dataset)
    return DataSetResult(
        instrument=dataset.instrument_id,
        source=tag,
        synthetic=dataset.synthetic,
        sha256={item["name"]: item["sha256"] for item in manifest.get("files", ())},
        source_counts=dict(dataset.source_counts),
        catalog_counts=dict(dataset.counts),
        left_out=left_out,
        added=added,
        replayed={
            name: replay.counts.get(name, 0) for name in ("quotes", "trades", "depth", "bars")
        },
        span_ns=replay.span_ns,
        notes=_data_notes(manifest),
    )


_DEPTH_LEFT_OUT = ("superseded_levels", "unsynchronised_levels", "damaged_levels")


def _import_changes(dataset: Dataset) -> tuple[dict[str, int], dict[str, int]]:
    """Events of the source that the import left out, and those it added, by type.

    Raises
    ------
    RunFailed
        They do not account for the catalog's counts.
    """
    depth = dataset.manifest.get("depth", {})
    damaged = dataset.manifest.get("damaged", {}).get("total", 0)
    left_out = {"depth": sum(depth.get(key, 0) for key in _DEPTH_LEFT_OUT)}
    added = {"depth": depth.get("clears_added", 0)}
    for name, source in dataset.source_counts.items():
        lost = source - left_out.get(name, 0) + added.get(name, 0) - dataset.counts[name]
        if not 0 <= lost <= damaged:
            raise RunFailed(
                f"{dataset.instrument_id}: {lost:,} {name} of the source are not accounted for; "
                f"delete {dataset.catalog_path} and run again"
            )
        left_out[name] = left_out.get(name, 0) + lost
    return (
        {name: number for name, number in left_out.items() if number},
        {name: number for name, number in added.items() if number},
    )


def _data_notes(manifest: dict[str, Any]) -> tuple[str, ...]:
    """Say in words what the import found and mended."""
    notes = []
    offset_ns = manifest.get("clock_offset_ns", 0)
    if offset_ns:
        notes.append(f"the recorder's clock was behind: {offset_ns / 1e6:g} ms added to its times")
    for kind, gaps in manifest.get("gaps", {}).items():
        if gaps.get("total"):
            missing = f" ({gaps['missing_bars']:,} missing)" if "missing_bars" in gaps else ""
            notes.append(f"{gaps['total']:,} gaps in {kind.replace('_', ' ')}{missing}")
    depth = manifest.get("depth", {})
    for key, words in (
        ("superseded_levels", "level changes older than the book snapshot left out"),
        ("unsynchronised_levels", "level changes left out: the book was not synchronised"),
        ("clears_added", "book clears added before snapshots"),
    ):
        if depth.get(key):
            notes.append(f"{depth[key]:,} {words}")
    damaged = manifest.get("damaged", {}).get("total", 0)
    if damaged:
        notes.append(f"{damaged:,} damaged rows left out")
    return tuple(notes)


def _signal_results(plan: Plan, main: Played) -> tuple[SignalResult, ...]:
    found = []
    for entry, model, actor in zip(plan.config.signals, plan.models, main.signals, strict=True):
        times = actor.published.times()
        end = model.metadata.train_end_ns
        outside = times[times > end]
        found.append(
            SignalResult(
                instrument=entry.instrument,
                model=entry.model,
                lead=entry.lead,
                in_sample=entry.in_sample,
                train_end_ns=end,
                quotes=actor.quotes,
                skipped_in_sample=actor.skipped_in_sample,
                not_warm=actor.not_warm,
                published=len(times),
                published_in_sample=len(times) - len(outside),
                out_of_sample_ns=(int(outside[0]), int(outside[-1])) if len(outside) else None,
                note=_signal_note(entry, actor, len(times) - len(outside), len(outside), end),
            )
        )
    return tuple(found)


def _signal_note(
    entry: SignalConfig, actor: SignalActor, inside: int, outside: int, end: int
) -> str:
    if inside:
        return (
            f"{inside:,} of {inside + outside:,} signals lie inside the model's training span "
            f"(in_sample = allow): what they earn says nothing about the future"
        )
    if not outside:
        return (
            f"no signal: the data ends before the model's training span ends ({iso(end)}) "
            "or the features never warmed up"
        )
    if actor.skipped_in_sample:
        return (
            f"silent for {actor.skipped_in_sample:,} quotes up to {iso(end)}, "
            "the end of the model's training span; all signals are out of sample"
        )
    return "all signals are out of sample"


def _model_results(plan: Plan) -> tuple[ModelResult, ...]:
    models = {str(model.path): (entry, model) for entry, model in _signalled(plan)}
    return tuple(
        ModelResult(
            path=entry.model,
            sha256=_file_sha256(model.path),
            kind=model.kind,
            train_end_ns=model.metadata.train_end_ns,
            metadata=msgspec.json.decode(msgspec.json.encode(model.metadata)),
        )
        for entry, model in models.values()
    )


def _signalled(plan: Plan) -> Iterator[tuple[SignalConfig, SignalModel]]:
    return zip(plan.config.signals, plan.models, strict=True)


def _strategy_hashes(plan: Plan) -> dict[str, str]:
    hashes = {}
    for loaded in (*plan.strategies, *plan.baselines):
        if loaded.file is not None:
            hashes[loaded.path] = _file_sha256(loaded.file)
    return hashes


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("qbtc", "nautilus_trader", "numpy", "pyarrow")
    }


def _traceback_of(error: BaseException | None) -> str | None:
    if error is None or isinstance(error, KeyboardInterrupt):
        return None
    return "".join(traceback.format_exception(error.__cause__ or error))


def _notes(plan: Plan, market: Market, played: Sequence[Played]) -> tuple[str, ...]:
    main = played[0]
    notes = [*_fill_notes(market, main), *_funding_notes(market, played)]
    if plan.config.venue.fill.queue_position and not market.has_trades:
        notes.append(
            "the data has no trades: queue positions cannot be tracked, limit orders fill when "
            "the market moves through their price"
        )
    if main.refusals:
        notes.append(
            f"{len(main.refusals):,} of {len(main.orders):,} orders were refused; "
            f"the first: {main.refusals[0]}"
        )
    for entry, model in _signalled(plan):
        if model.metadata.synthetic and not any(item.synthetic for item in market.sets):
            notes.append(f"{entry.model} was trained on synthetic data")
        if entry.instrument not in model.metadata.instrument.split(","):
            notes.append(
                f"{entry.model} was trained on {model.metadata.instrument}, "
                f"not on {entry.instrument}"
            )
    return tuple(notes)


def _fill_notes(market: Market, main: Played) -> Iterator[str]:
    """Say where fills are better than a market would give."""
    filled = {fill.instrument for fill in main.fills}
    for dataset, replay in zip(market.sets, market.replays, strict=True):
        if set(replay.counts) == {"bars"} and dataset.instrument_id in filled:
            yield (
                f"{dataset.instrument_id}: bars have no spread, and a market order fills at the "
                "last close before it arrives, which is the one its signal came from"
            )
    late = sum(fill.ts_event > main.stopped_ns for fill in main.fills)
    if late and main.error is None:
        yield (
            f"{late:,} of {len(main.fills):,} fills are of orders that arrived after the last "
            "event, in a market that stands still"
        )


FUNDING_NS = 8 * 3600 * 1_000_000_000
"""Binance settles funding at 00:00, 08:00 and 16:00 UTC."""


def _funding_notes(market: Market, played: Sequence[Played]) -> Iterator[str]:
    """Name the perpetuals that were held, possibly, when funding was due."""
    filled = {fill.instrument for item in played for fill in item.fills}
    due = market.span_ns[0] // FUNDING_NS != market.span_ns[1] // FUNDING_NS
    for dataset in market.sets:
        perpetual = isinstance(dataset.instrument, nt.CryptoPerpetual)
        if due and perpetual and dataset.instrument_id in filled:
            yield (
                f"{dataset.instrument_id}: the span crosses a funding time (00:00, 08:00 or 16:00 "
                "UTC); funding is not in the data and is neither paid nor earned"
            )


def _write_tables(
    folder: Path,
    main: Played,
    curves: dict[str, Curve],
    market: Market,
    start_balance: float,
) -> None:
    fills = [
        {
            "ts_event": fill.ts_event,
            "strategy": fill.strategy,
            "instrument": fill.instrument,
            "side": "BUY" if fill.is_buy else "SELL",
            "price": fill.price,
            "quantity": fill.quantity,
            "commission": fill.commission,
            "liquidity": "MAKER" if fill.is_maker else "TAKER",
            "mid": mid,
            "order_id": fill.order_id,
        }
        for fill, mid in zip(main.fills, _mids_of(main.fills, market), strict=True)
    ]
    signals = [actor.published.table() for actor in main.signals]
    tables = {
        "orders": pa.Table.from_pylist(main.orders, schema=ORDERS),
        "fills": pa.Table.from_pylist(fills, schema=FILLS),
        "positions": pa.Table.from_pylist(main.positions, schema=POSITIONS),
        "equity": pa.concat_tables(
            [_equity_table(name, curve, start_balance) for name, curve in curves.items()]
        ),
        "prices": pa.concat_tables(
            [_price_table(name, mids, main.stopped_ns) for name, mids in market.mids.items()]
        ),
        "signals": pa.concat_tables(signals) if signals else SIGNALS.empty_table(),
    }
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd")


def _mids_of(fills: Sequence[Fill], market: Market) -> Iterator[float | None]:
    """Find the mid each fill is measured against; None where there are no quotes.

    The engine fills a market order at the quote that follows its arrival and stamps the fill with
    that quote's time: its mid. What fills a resting order may itself move the mid: the one before.
    """
    quoted = {
        dataset.instrument_id: market.mids[dataset.instrument_id]
        for dataset, replay in zip(market.sets, market.replays, strict=True)
        if "quotes" in replay.counts
    }
    for fill in fills:
        mids = quoted.get(fill.instrument)
        if mids is None:
            yield None
            continue
        side: Literal["left", "right"] = "left" if fill.is_maker else "right"
        at = int(np.searchsorted(mids.ts, fill.ts_event, side)) - 1
        yield float(mids.mid[at]) if at >= 0 else None


def _equity_table(name: str, curve: Curve, start_balance: float) -> Any:
    equity = start_balance + curve.pnl_after_costs
    rows = thin((equity,), len(curve.ts), CHART_ROWS_MAX)
    columns = [
        pa.array(curve.ts[rows]),
        pa.array([name] * len(rows), pa.string()),
        pa.array(equity[rows]),
        pa.array(curve.pnl_before_costs[rows]),
        pa.array(curve.fees[rows]),
        pa.array(curve.net_position[rows]),
    ]
    return pa.Table.from_arrays(columns, schema=EQUITY)


def _price_table(name: str, mids: Mids, stopped_ns: int) -> Any:
    n = int(np.searchsorted(mids.ts, stopped_ns, side="right"))
    rows = thin((mids.mid[:n],), n, CHART_ROWS_MAX)
    columns = [
        pa.array(mids.ts[rows]),
        pa.array([name] * len(rows), pa.string()),
        pa.array(mids.mid[rows]),
    ]
    return pa.Table.from_arrays(columns, schema=PRICES)
