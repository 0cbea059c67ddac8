"""What a run leaves behind: ``runs/<run id>/`` with one JSON file and a few Parquet tables.

=====================  ======================================================================
file                   what
=====================  ======================================================================
``result.json``        one ``RunResult``: everything a reader needs to judge the run
``orders.parquet``     ``ORDERS``: one row per order, in the order of submission
``fills.parquet``      ``FILLS``: one row per fill, in the order of time
``positions.parquet``  ``POSITIONS``: one row per position
``equity.parquet``     ``EQUITY``: equity over time, marked to mid, for the run and its baselines
``prices.parquet``     ``PRICES``: mid over time per instrument, thinned, for charts
``signals.parquet``    ``SIGNALS``: every signal that was published, with the mid at that time
=====================  ======================================================================

Times are UNIX nanoseconds of event time, money is in ``RunResult.currency``, prices and sizes in
the instrument's own units. ``fills_sha256`` is a hash over the canonical fill rows
(``fills_digest``), free of random ids: the same config, data and seed give the same hash in any
process and with any number of threads.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec
import pyarrow as pa

__all__ = [
    "EQUITY",
    "FILLS",
    "ORDERS",
    "POSITIONS",
    "PRICES",
    "RUN_SERIES",
    "SIGNALS",
    "BusResult",
    "DataSetResult",
    "Histogram",
    "ModelResult",
    "OutsideResult",
    "Performance",
    "RecordsResult",
    "RelayCounts",
    "RiskResult",
    "RunResult",
    "SignalResult",
    "WallTime",
    "fills_digest",
    "read_result",
    "write_result",
]

RUN_SERIES = "run"
"""Name of the run's own curve in ``equity.parquet``; the others are named by their baseline."""

ORDERS = pa.schema(
    [
        ("ts_init", pa.int64()),
        ("strategy", pa.string()),
        ("instrument", pa.string()),
        ("side", pa.string()),  # BUY | SELL
        ("type", pa.string()),  # MARKET | LIMIT | ...
        ("quantity", pa.float64()),
        ("filled", pa.float64()),
        ("price", pa.float64()),  # null where the order has none
        ("average_price", pa.float64()),  # null until filled
        ("status", pa.string()),
        ("ts_last", pa.int64()),
        ("order_id", pa.string()),
    ]
)

FILLS = pa.schema(
    [
        ("ts_event", pa.int64()),
        ("strategy", pa.string()),
        ("instrument", pa.string()),
        ("side", pa.string()),  # BUY | SELL
        ("price", pa.float64()),
        ("quantity", pa.float64()),
        ("commission", pa.float64()),
        ("liquidity", pa.string()),  # MAKER | TAKER
        (
            "mid",
            pa.float64(),
        ),  # at a taker's fill, before a maker's; null without quotes
        ("order_id", pa.string()),
    ]
)

POSITIONS = pa.schema(
    [
        ("ts_opened", pa.int64()),
        ("ts_closed", pa.int64()),  # null while open
        ("strategy", pa.string()),
        ("instrument", pa.string()),
        ("entry", pa.string()),  # BUY | SELL
        ("peak_quantity", pa.float64()),
        ("average_open", pa.float64()),
        ("average_close", pa.float64()),  # null while nothing is closed
        ("realized_pnl", pa.float64()),  # after commissions, as the venue's account books it
        ("open_quantity", pa.float64()),  # signed; 0 when closed
    ]
)

EQUITY = pa.schema(
    [
        ("ts", pa.int64()),
        ("series", pa.string()),  # RUN_SERIES or the baseline's name
        ("equity", pa.float64()),  # start balance + P&L after costs
        ("pnl_before_costs", pa.float64()),
        ("fees", pa.float64()),  # paid so far
        ("net_position", pa.float64()),  # notional at mid, signed, all instruments together
    ]
)

PRICES = pa.schema([("ts", pa.int64()), ("instrument", pa.string()), ("mid", pa.float64())])

SIGNALS = pa.schema(
    [
        ("ts", pa.int64()),
        ("instrument", pa.string()),
        ("p_down", pa.float64()),
        ("p_flat", pa.float64()),
        ("p_up", pa.float64()),
        ("ood", pa.float64()),  # of a sample of the signals, null for the others
        ("mid", pa.float64()),
    ]
)


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    pass


class DataSetResult(_Record, frozen=True, kw_only=True):
    """One data source as it was replayed."""

    instrument: str
    source: str
    """Kind of source: recording, klines, archive, synthetic, catalog."""
    synthetic: bool
    sha256: dict[str, str]
    """Source file (by name) to its SHA-256; empty for synthetic data."""
    source_counts: dict[str, int]
    """Events in the source files: quotes, trades, depth, bars."""
    catalog_counts: dict[str, int]
    left_out: dict[str, int]
    """Source events that the import left out, for a reason in ``notes``."""
    added: dict[str, int]
    """Events that the import added (book clears): source - left_out + added = catalog."""
    replayed: dict[str, int]
    """Events given to the engine; fewer than the source where ``start``/``end`` cut the span."""
    span_ns: tuple[int, int]
    """First and last event replayed."""
    notes: tuple[str, ...] = ()
    """Gaps, corrections and rejected rows, in words."""


class ModelResult(_Record, frozen=True, kw_only=True):
    """A signal model that was used."""

    path: str
    sha256: str
    kind: str
    train_end_ns: int | None
    metadata: dict[str, Any]


class SignalResult(_Record, frozen=True, kw_only=True):
    """What one signal actor did."""

    instrument: str
    model: str
    lead: str | None
    in_sample: Literal["skip", "allow"]
    train_end_ns: int | None
    quotes: int
    """Quotes of the instrument that were seen."""
    skipped_in_sample: int
    """Quotes up to the end of the training span: fed to the features, not signalled."""
    not_warm: int
    """Quotes, at any time, at which the features were not warmed up."""
    published: int
    published_in_sample: int
    """Of ``published``, those inside the training span (only with ``in_sample = "allow"``)."""
    out_of_sample_ns: tuple[int, int] | None
    """First and last signal outside the training span: claims hold for this span only."""
    note: str


class Performance(_Record, frozen=True, kw_only=True):
    """Figures of a run, of one strategy in it or of a baseline; money in the result's currency."""

    name: str
    orders: int
    fills: int
    fees: float
    pnl_before_costs: float
    """``pnl_after_costs + fees``; open positions are marked to the last mid."""
    pnl_after_costs: float
    turnover: float
    """Sum of the notional of all fills."""
    max_drawdown: float
    """Largest fall of equity from an earlier high, at event resolution; positive."""
    exposure: float
    """Share of the time span with a position, 0 to 1."""
    maker_share: float | None
    """Share of turnover that was resting liquidity; None without fills."""
    open_positions: int
    """Positions still open at the end."""
    status: Literal["complete", "partial", "failed"] = "complete"
    error: str | None = None
    fills_sha256: str | None = None


class Histogram(_Record, frozen=True, kw_only=True):
    """Durations of one kind of callback, sampled. Bin ``i`` counts ``[2**i, 2**(i+1))`` ns."""

    counts: tuple[int, ...]
    samples: int
    sampled_every: int
    """About one call in so many was timed."""
    p50_ns: float
    p99_ns: float
    max_ns: float


class WallTime(_Record, frozen=True, kw_only=True):
    """Where the wall-clock time went, seconds."""

    open_data_s: float
    build_s: float
    run_s: float
    baselines_s: float
    total_s: float


class RelayCounts(_Record, frozen=True, kw_only=True):
    """What became of the copies of one kind that were meant for the bus."""

    sent: int
    dropped: int
    """Oldest in a full queue, refused by the bus, or left at the end."""


class BusResult(_Record, frozen=True, kw_only=True):
    """What went to the bus and came from it."""

    relay: dict[str, RelayCounts]
    received: dict[str, int]
    """Signals ``received``; of those ``hold``, ``duplicate``, of an ``unknown_instrument``,
    ``dropped`` from a full queue; ``unmarked`` while the database of marks was away."""
    outcomes: dict[str, int]
    """Signals handed to the node: ``acted`` on, ``ignored`` by the strategies, ``expired``,
    refused by ``risk``, ``unheard`` at the end."""
    problem: str | None
    """Why the connection ended early."""


class RecordsResult(_Record, frozen=True, kw_only=True):
    """What was written to the database of records."""

    database: str
    """Its URL without a password."""
    counts: dict[str, int]
    problem: str | None
    """What is not in it, and why: rows that wait in the spool, and those that were dropped, refused
    by it or damaged on disk. None: nothing."""


class RiskResult(_Record, frozen=True, kw_only=True):
    """What the limits did."""

    refused: dict[str, int]
    """Orders refused, by the limit."""
    latched: bool
    """Whether ``drawdown_max`` was passed."""


class OutsideResult(_Record, frozen=True, kw_only=True):
    """What a run told the outside and heard from it; None: its config does not ask for it."""

    bus: BusResult | None = None
    records: RecordsResult | None = None
    risk: RiskResult | None = None


class RunResult(_Record, frozen=True, kw_only=True):
    """``result.json``."""

    schema: int = 1
    run_id: str
    name: str
    mode: str
    status: Literal["complete", "partial", "failed"]
    """``partial``: interrupted. ``failed``: an error stopped it."""
    partial: bool = False
    """The engine did not reach the end of the data; the figures hold up to ``span_ns[1]``."""
    error: str | None
    traceback: str | None
    started: str
    """Wall-clock start, ISO 8601 UTC."""
    currency: str
    start_balance: float
    span_ns: tuple[int, int]
    """Event time from the first to the last event that was processed."""
    synthetic: bool
    """True if any data set is synthetic: the figures then say nothing about a real market."""
    data: tuple[DataSetResult, ...]
    events: int
    """Events the engine processed."""
    events_per_s: float
    performance: Performance
    strategies: tuple[Performance, ...]
    baselines: tuple[Performance, ...]
    signals: tuple[SignalResult, ...]
    models: tuple[ModelResult, ...]
    fills_sha256: str
    latency: dict[str, Histogram]
    """``<strategy or actor>.<callback>`` to the durations of that callback."""
    wall: WallTime
    seed: int
    config: dict[str, Any]
    """The config as given, defaults filled in."""
    config_sha256: str
    strategy_sha256: dict[str, str] = {}
    """Strategy as written in the config to the SHA-256 of its file."""
    costs: dict[str, Any]
    """What the venue charged and simulated: fees, latency, fill model, queue position, book."""
    versions: dict[str, str]
    build_info: dict[str, Any]
    notes: tuple[str, ...] = ()
    outside: OutsideResult = OutsideResult()


def write_result(result: RunResult, folder: Path) -> Path:
    """Write ``result.json`` in ``folder`` and return its path."""
    path = folder / "result.json"
    text = msgspec.json.format(msgspec.json.encode(result), indent=2)
    path.write_bytes(text + b"\n")
    return path


def read_result(folder: Path) -> RunResult:
    """Read a run directory's ``result.json``.

    Raises
    ------
    msgspec.ValidationError
        The file is of another schema.
    """
    return msgspec.json.decode((folder / "result.json").read_bytes(), type=RunResult)


def fills_digest(rows: Iterable[tuple[str, ...]]) -> str:
    """SHA-256 over canonical fill rows, in the order given.

    Parameters
    ----------
    rows
        ``(ts_event, instrument, side, price, quantity, commission, liquidity, strategy)`` as
        decimal text exactly as the engine prints it. No random id takes part.
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update("|".join(row).encode())
        digest.update(b"\n")
    return digest.hexdigest()
