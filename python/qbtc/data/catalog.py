"""Any data source as a Nautilus Parquet catalog, made once and kept by content.

``open_source`` reads a source (``recording``, ``klines``, ``archive``, ``synthetic``) and writes
it below ``.qbtc/catalog/<key>``; the key is a hash of the source's settings, its files' SHA-256
and ``IMPORTER_VERSION``, so an edited file or a newer importer makes a new catalog and anything
else reuses the old one. A catalog appears in one rename; ``manifest.json`` in it says where every
row came from and what is missing.

Order at equal times: within a source no two messages share ``ts_init`` (``rows.separate_ties``;
all levels of one book message do share it). Foreign catalogs may have ties between types; a node
then takes them in the order of its data configs, and ``columns`` in ``REPLAY_ORDER``.
"""

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from nautilus_trader.model import NautilusDataType
from nautilus_trader.persistence import (
    BarDataWrangler,
    OrderBookDeltaDataWrangler,
    ParquetDataCatalog,
    QuoteTickDataWrangler,
    TradeTickDataWrangler,
)

from qbtc.config.data import (
    ArchiveSource,
    CatalogSource,
    DataSource,
    KlinesSource,
    RecordingSource,
    SyntheticSource,
)
from qbtc.config.load import resolve_path
from qbtc.core.columns import EventColumns
from qbtc.data.archive import read_archive
from qbtc.data.instruments import Instrument, instrument_for, split_id
from qbtc.data.klines import read_klines
from qbtc.data.recording import read_recording
from qbtc.data.rows import (
    CLEAR,
    Bars,
    Depth,
    Float64,
    Numbers,
    Parsed,
    Quotes,
    Trades,
    sha256_of,
)
from qbtc.data.synthetic import make_synthetic
from qbtc.errors import DataError

__all__ = [
    "CACHE_DIR",
    "DATA_TYPES",
    "REPLAY_ORDER",
    "Dataset",
    "bar_type_of",
    "list_catalogs",
    "open_source",
]

IMPORTER_VERSION = 1
CACHE_DIR = Path(".qbtc") / "catalog"
MANIFEST = "manifest.json"
KEY_CHARACTERS = 12
CHUNK_ROWS = 1_000_000
"""Rows per catalog file, cut where ``ts_init`` changes."""

NAUTILUS_DECIMALS = 16
NAUTILUS_VALUE_MAX = 17 * 10**12
"""The largest price or size that Nautilus's fixed point holds."""
_DECIMAL = pa.decimal128(38, NAUTILUS_DECIMALS)
_TIME = pa.timestamp("ns", "UTC")
_CODES = pa.dictionary(pa.int8(), pa.string())
_ACTIONS = pa.array(["CLEAR", "UPDATE", "DELETE", "ADD"])
_SIDES = pa.array(["NO_ORDER_SIDE", "BUY", "SELL"])
_AGGRESSORS = pa.array(["BUY", "SELL"])

DATA_TYPES = {
    "depth": NautilusDataType.OrderBookDelta,
    "trades": NautilusDataType.TradeTick,
    "quotes": NautilusDataType.QuoteTick,
    "bars": NautilusDataType.Bar,
}
"""Nautilus data type by name."""
EVENT_FOLDERS = {"order_book_deltas", "trades", "quotes", "bars"}
REPLAY_ORDER = ("depth", "trades", "quotes", "bars")
"""Order at equal times, if a node is given its data configs in this order."""
QUOTE, TRADE, DEPTH, DEPTH_CLEAR = 0, 1, 2, 3
"""Kinds of ``EventColumns``."""


@dataclass(frozen=True)
class Dataset:
    """One instrument's data, in a Nautilus Parquet catalog."""

    catalog_path: Path
    instrument: Instrument
    instrument_id: str
    counts: dict[str, int]
    """Rows in the catalog: quotes, trades, depth (level changes and clears), bars."""
    source_counts: dict[str, int]
    """Events in the source files; the manifest accounts for every difference."""
    synthetic: bool
    span_ns: tuple[int, int]
    """First and last ``ts_init``."""
    manifest: dict[str, Any] = field(repr=False)
    types: tuple[str, ...] = ("quotes", "trades", "depth", "bars")
    """What of the catalog belongs to this data set."""

    @property
    def bar_type(self) -> str | None:
        """Nautilus bar type of the bars, if any."""
        value = self.manifest.get("bar_type")
        return value if self.counts["bars"] else None

    def columns(self) -> EventColumns:
        """Read quotes, trades and depth back from the catalog, in the order the node replays.

        Values are the doubles that ``float()`` gives of the Nautilus price or size.

        Raises
        ------
        DataError
            The source holds bars only: features need quotes, trades or depth.
        """
        catalog = ParquetDataCatalog(str(self.catalog_path))
        readers = {"depth": _depth_part, "trades": _trade_part, "quotes": _quote_part}
        parts = [
            readers[name](_table(catalog, self.catalog_path, name, self.instrument_id))
            for name in REPLAY_ORDER
            if name in readers and name in self.types and self.counts[name]
        ]
        if not parts:
            raise DataError(
                f"{self.instrument_id}: this source holds bars only; "
                "features need quotes, trades or depth"
            )
        merged = {
            name: np.concatenate([part[name] for part in parts])
            for name in ("ts", "kind", "side", "a", "b", "c", "d")
        }
        if len(parts) > 1:
            order = np.argsort(merged["ts"], kind="stable")
            merged = {name: values[order] for name, values in merged.items()}
        return EventColumns(
            **merged,
            instrument=self.instrument_id,
            price_increment=float(self.instrument.price_increment),
            size_increment=float(self.instrument.size_increment),
            synthetic=self.synthetic,
        )


def open_source(source: DataSource, base: Path, *, cache_dir: Path | None = None) -> Dataset:
    """Open a data source, importing it unless that was done before.

    Parameters
    ----------
    source
        Which data.
    base
        Folder that its relative paths are against (the config file's).
    cache_dir
        Where catalogs are kept; default ``.qbtc/catalog`` in the working directory.

    Raises
    ------
    DataError
        The source is missing, empty, damaged or not of the instrument.
    """
    split_id(source.instrument)
    if isinstance(source, CatalogSource):
        return _open_catalog(source, resolve_path(source.path, base))
    files = [resolve_path(path, base) for path in _paths(source)]
    facts = [
        {"name": file.name, "sha256": sha256_of(file), "bytes": file.stat().st_size}
        for file in files
    ]
    key = _key(source, facts)
    home = (Path.cwd() / CACHE_DIR if cache_dir is None else cache_dir).absolute()
    path = home / key
    if not (path / MANIFEST).is_file():
        parsed = _parse(source, files)
        manifest = {
            "key": key,
            "importer_version": IMPORTER_VERSION,
            "source": _settings(source),
            "files": facts,
        }
        _write(parsed, source.instrument, path, manifest)
    return _load(path, source.instrument)


def list_catalogs(cache_dir: Path | None = None) -> list[dict[str, Any]]:
    """Manifests of all kept catalogs, by instrument and start."""
    home = Path.cwd() / CACHE_DIR if cache_dir is None else cache_dir
    manifests = [
        _read_manifest(path.parent) | {"path": str(path.parent)}
        for path in sorted(home.glob(f"*/{MANIFEST}"))
        if not path.parent.name.startswith(".")
    ]
    return sorted(manifests, key=lambda facts: (facts["instrument"], facts["span_ns"]))


def bar_type_of(instrument_id: str, interval: str) -> str:
    """Nautilus bar type of external klines, e.g. ``BTCUSDT.BINANCE-1-MINUTE-LAST-EXTERNAL``."""
    if interval == "1mo":
        return f"{instrument_id}-1-MONTH-LAST-EXTERNAL"
    units = {"s": "SECOND", "m": "MINUTE", "h": "HOUR", "d": "DAY", "w": "WEEK"}
    return f"{instrument_id}-{interval[:-1]}-{units[interval[-1]]}-LAST-EXTERNAL"


def _paths(source: DataSource) -> tuple[str, ...]:
    match source:
        case RecordingSource() | KlinesSource():
            return (source.path,)
        case ArchiveSource():
            return source.paths
        case _:
            return ()


def _settings(source: DataSource) -> dict[str, Any]:
    """Leave out the paths: the same bytes elsewhere are the same data."""
    settings: dict[str, Any] = msgspec.to_builtins(source)
    settings.pop("path", None)
    settings.pop("paths", None)
    return settings


def _key(source: DataSource, files: list[dict[str, Any]]) -> str:
    what = {
        "version": IMPORTER_VERSION,
        "source": _settings(source),
        "files": [facts["sha256"] for facts in files],
    }
    return hashlib.sha256(msgspec.json.encode(what, order="sorted")).hexdigest()[:KEY_CHARACTERS]


def _parse(source: DataSource, files: list[Path]) -> Parsed:
    symbol, perpetual = split_id(source.instrument)
    match source:
        case RecordingSource():
            return read_recording(
                files[0],
                symbol,
                perpetual=perpetual,
                types=source.types,
                clock_offset_ms=source.clock_offset_ms,
                damaged_rows_max=source.damaged_rows_max,
            )
        case KlinesSource():
            return read_klines(files[0], source.interval)
        case ArchiveSource():
            return read_archive(files, symbol, source.kind, source.interval)
        case SyntheticSource():
            grid = instrument_for(source.instrument, price_decimals=1, size_decimals=3)
            return make_synthetic(
                seed=source.seed,
                duration_s=source.duration_s,
                edge=source.edge,
                start=source.start,
                price=source.price,
                price_decimals=grid.price_precision,
                size_decimals=grid.size_precision,
            )
        case CatalogSource():
            raise AssertionError("a catalog is opened, not parsed")


def _write(parsed: Parsed, instrument_id: str, path: Path, manifest: dict[str, Any]) -> None:
    """Write a catalog aside and move it to its place in one rename."""
    price_decimals, size_decimals = parsed.decimals()
    instrument = instrument_for(
        instrument_id, price_decimals=price_decimals, size_decimals=size_decimals
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".making-", dir=path.parent))
    except OSError as error:
        raise DataError(
            f"{path.parent}: cannot be written: {error.strerror}; make room for it there"
        ) from None
    try:
        catalog = ParquetDataCatalog(str(work))
        catalog.write_instruments([instrument])
        _write_rows(catalog, parsed, instrument)
        manifest |= {
            "instrument": instrument_id,
            "price_increment": str(instrument.price_increment),
            "size_increment": str(instrument.size_increment),
            "synthetic": parsed.synthetic,
            "counts": parsed.counts(),
            "source_counts": {"quotes": 0, "trades": 0, "depth": 0, "bars": 0}
            | parsed.source_counts,
            "span_ns": _span(parsed),
            **parsed.facts,
        }
        if parsed.bars is not None:
            manifest["bar_type"] = bar_type_of(instrument_id, parsed.bars.interval)
        (work / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        work.chmod(0o755)
        _publish(work, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(work: Path, path: Path) -> None:
    try:
        os.replace(work, path)
    except OSError:
        if not (path / MANIFEST).is_file():  # otherwise another process was quicker: same content
            raise


def _span(parsed: Parsed) -> tuple[int, int]:
    times = [
        rows.ts_init
        for rows in (parsed.quotes, parsed.trades, parsed.depth)
        if rows is not None and len(rows.ts_init)
    ]
    if parsed.bars is not None:
        times.append(parsed.bars.ts)
    return min(int(ts[0]) for ts in times), max(int(ts[-1]) for ts in times)


def _write_rows(catalog: ParquetDataCatalog, parsed: Parsed, instrument: Instrument) -> None:
    args = (str(instrument.id), instrument.price_precision, instrument.size_precision)
    if parsed.quotes is not None:
        quotes = QuoteTickDataWrangler(*args)
        for batch in _chunks(_quote_table(parsed.quotes, instrument)):
            catalog.write_quote_ticks(quotes.process_record_batch_bytes(batch))
    if parsed.trades is not None:
        trades = TradeTickDataWrangler(*args)
        for batch in _chunks(_trade_table(parsed.trades, instrument)):
            catalog.write_trade_ticks(trades.process_record_batch_bytes(batch))
    if parsed.depth is not None:
        deltas = OrderBookDeltaDataWrangler(*args)
        for batch in _chunks(_depth_table(parsed.depth, instrument)):
            catalog.write_order_book_deltas(deltas.process_record_batch_bytes(batch))
    if parsed.bars is not None:
        bars = BarDataWrangler(
            bar_type_of(args[0], parsed.bars.interval),
            instrument.price_precision,
            instrument.size_precision,
        )
        for batch in _chunks(_bar_table(parsed.bars, instrument)):
            catalog.write_bars(bars.process_record_batch_bytes(batch))


def _chunks(table: pa.Table) -> Iterator[bytes]:
    """Arrow streams of at most about ``CHUNK_ROWS`` rows; equal times stay together."""
    ts = np.asarray(table["ts_init"].cast(pa.int64()))
    start = 0
    while start < len(ts):
        end = min(start + CHUNK_ROWS, len(ts))
        if end < len(ts):
            end = int(np.searchsorted(ts, ts[end - 1], side="right"))
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(start, end - start).combine_chunks())
        yield sink.getvalue()
        start = end


def _quote_table(rows: Quotes, instrument: Instrument) -> pa.Table:
    prices, sizes = instrument.price_precision, instrument.size_precision
    return _arrow(
        {
            "bid_price": _decimals(rows.bid, prices),
            "ask_price": _decimals(rows.ask, prices),
            "bid_size": _decimals(rows.bid_size, sizes),
            "ask_size": _decimals(rows.ask_size, sizes),
            "ts_event": pa.array(rows.ts_event, _TIME),
            "ts_init": pa.array(rows.ts_init, _TIME),
        },
        instrument,
    )


def _trade_table(rows: Trades, instrument: Instrument) -> pa.Table:
    return _arrow(
        {
            "price": _decimals(rows.price, instrument.price_precision),
            "size": _decimals(rows.size, instrument.size_precision),
            "aggressor_side": _coded(rows.sell.astype(np.int8), _AGGRESSORS),
            "trade_id": pa.array(rows.trade_id).cast(pa.string()),
            "ts_event": pa.array(rows.ts_event, _TIME),
            "ts_init": pa.array(rows.ts_init, _TIME),
        },
        instrument,
    )


def _depth_table(rows: Depth, instrument: Instrument) -> pa.Table:
    side = np.where(rows.action == CLEAR, 0, 1 + rows.ask).astype(np.int8)
    return _arrow(
        {
            "action": _coded(rows.action, _ACTIONS),
            "side": _coded(side, _SIDES),
            "price": _decimals(rows.price, instrument.price_precision),
            "size": _decimals(rows.size, instrument.size_precision),
            "order_id": pa.array(np.zeros(len(side), dtype=np.uint64)),
            "flags": pa.array(rows.flags),
            "sequence": pa.array(rows.sequence.astype(np.uint64)),
            "ts_event": pa.array(rows.ts_event, _TIME),
            "ts_init": pa.array(rows.ts_init, _TIME),
        },
        instrument,
    )


def _bar_table(rows: Bars, instrument: Instrument) -> pa.Table:
    prices = instrument.price_precision
    return _arrow(
        {
            "open": _decimals(rows.open, prices),
            "high": _decimals(rows.high, prices),
            "low": _decimals(rows.low, prices),
            "close": _decimals(rows.close, prices),
            "volume": _decimals(rows.volume, instrument.size_precision),
            "ts_event": pa.array(rows.ts, _TIME),
            "ts_init": pa.array(rows.ts, _TIME),
        },
        instrument,
    )


def _arrow(columns: dict[str, pa.Array], instrument: Instrument) -> pa.Table:
    fields = [pa.field(name, array.type, nullable=False) for name, array in columns.items()]
    metadata = {
        "instrument_id": str(instrument.id),
        "price_precision": str(instrument.price_precision),
        "size_precision": str(instrument.size_precision),
    }
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields, metadata))


def _coded(codes: "np.ndarray[Any, np.dtype[np.int8]]", names: pa.Array) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes), names)


def _decimals(numbers: Numbers, decimals: int) -> pa.Array:
    """Nautilus's fixed-point column (n,): value x 10**16 in 128 bits, never negative.

    64 x 64 bit multiplication by halves: units < 10**15 and the factor <= 10**16.
    """
    if numbers.units.max(initial=0) > NAUTILUS_VALUE_MAX * 10**numbers.decimals:
        raise DataError(f"a price or size is beyond {NAUTILUS_VALUE_MAX}, the trading host's limit")
    units = numbers.at(decimals).astype(np.uint64)
    factor = 10 ** (NAUTILUS_DECIMALS - decimals)
    half, mask = np.uint64(32), np.uint64(0xFFFF_FFFF)
    low, high = units & mask, units >> half
    by_low, by_high = np.uint64(factor & 0xFFFF_FFFF), np.uint64(factor >> 32)
    cross_1, cross_2 = high * by_low, low * by_high
    carry = (low * by_low >> half) + (cross_1 & mask) + (cross_2 & mask)
    words = np.empty((len(units), 2), dtype=np.uint64)
    words[:, 0] = units * np.uint64(factor)
    words[:, 1] = high * by_high + (cross_1 >> half) + (cross_2 >> half) + (carry >> half)
    return pa.Array.from_buffers(_DECIMAL, len(units), [None, pa.py_buffer(words)])


def _floats(column: pa.ChunkedArray, decimals: int) -> Float64:
    """Give what ``float()`` gives of Nautilus prices (n,): the raw integer as double / 10**16.

    The raw integer is ``units * 10**(16 - decimals)``: both factors are exact doubles, so their
    product is the correctly rounded raw integer.
    """
    if column.null_count:
        column = column.fill_null(0)
    units = np.concatenate([np.empty(0), *(_units(chunk, decimals) for chunk in column.chunks)])
    result: Float64 = units * 10.0 ** (NAUTILUS_DECIMALS - decimals) / 10.0**NAUTILUS_DECIMALS
    return result


def _units(chunk: pa.Array, decimals: int) -> Float64:
    """Integers on the grid (n,) from 128-bit fixed point, by exact division.

    Dividing by 10**k = 2**k 5**k is a shift and, as nothing remains, a multiplication by the
    inverse of 5**k modulo 2**64.
    """
    k = NAUTILUS_DECIMALS - decimals
    words = np.frombuffer(chunk.buffers()[1], dtype=np.uint64).reshape(-1, 2)
    low, high = words[chunk.offset : chunk.offset + len(chunk)].T
    shifted = low >> np.uint64(k)
    if k:
        shifted = shifted | (high << np.uint64(64 - k))
    units: Float64 = (shifted * np.uint64(pow(5**k, -1, 2**64))).astype(np.float64)
    return units


def _table(
    catalog: ParquetDataCatalog, path: Path, name: str, identifier: str
) -> tuple[pa.Table, int, int]:
    """All rows of one type, in time order, with the decimals of its prices and sizes."""
    files = sorted(catalog.query_files(DATA_TYPES[name], [identifier]))
    tables = [pq.read_table(_local(path, file), partitioning=None) for file in files]
    metadata = {key.decode(): value.decode() for key, value in tables[0].schema.metadata.items()}
    return (
        pa.concat_tables(tables, promote_options="permissive"),
        int(metadata["price_precision"]),
        int(metadata["size_precision"]),
    )


def _local(path: Path, file: str) -> Path:
    return Path(file) if Path(file).is_absolute() else path / file


def _part(table: pa.Table, **columns: Any) -> dict[str, Any]:
    n = len(table)
    part: dict[str, Any] = {
        "ts": np.asarray(table["ts_init"].cast(pa.int64())),
        "kind": np.zeros(n, dtype=np.uint8),
        "side": np.zeros(n, dtype=np.uint8),
        **{name: np.zeros(n) for name in "abcd"},
    }
    return part | columns


def _quote_part(read: tuple[pa.Table, int, int]) -> dict[str, Any]:
    table, prices, sizes = read
    return _part(
        table,
        a=_floats(table["bid_price"], prices),
        b=_floats(table["bid_size"], sizes),
        c=_floats(table["ask_price"], prices),
        d=_floats(table["ask_size"], sizes),
    )


def _trade_part(read: tuple[pa.Table, int, int]) -> dict[str, Any]:
    table, prices, sizes = read
    return _part(
        table,
        kind=np.full(len(table), TRADE, dtype=np.uint8),
        side=_is(table["aggressor_side"], "SELL").astype(np.uint8),
        a=_floats(table["price"], prices),
        b=_floats(table["size"], sizes),
    )


def _depth_part(read: tuple[pa.Table, int, int]) -> dict[str, Any]:
    table, prices, sizes = read
    clear = _is(table["action"], "CLEAR")
    size = _floats(table["size"], sizes)
    size[_is(table["action"], "DELETE") | clear] = 0.0
    price = _floats(table["price"], prices)
    price[clear] = 0.0
    return _part(
        table,
        kind=np.where(clear, DEPTH_CLEAR, DEPTH).astype(np.uint8),
        side=_is(table["side"], "SELL").astype(np.uint8),
        a=price,
        b=size,
    )


def _is(column: pa.ChunkedArray, value: str) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    return np.asarray(pa.compute.equal(column.cast(pa.string()), value))


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = msgspec.json.decode((path / MANIFEST).read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"{path / MANIFEST}: cannot be read ({error}); delete {path}") from None
    if not isinstance(manifest, dict):
        raise DataError(f"{path / MANIFEST}: not a manifest; delete {path}")
    return manifest


def _count_rows(path: Path) -> int:
    """Rows of events that a catalog holds, from the files' footers; a damaged file is an error."""
    rows = 0
    for file in sorted(path.glob("data/*/*/*.parquet")):
        try:
            found = pq.read_metadata(file).num_rows
        except (OSError, pa.ArrowException):
            raise DataError(f"{file}: damaged; delete {path} and make it again") from None
        rows += found if file.parent.parent.name in EVENT_FOLDERS else 0
    return rows


def _load(path: Path, instrument_id: str) -> Dataset:
    manifest = _read_manifest(path)
    if (rows := _count_rows(path)) != (wanted := sum(manifest["counts"].values())):
        raise DataError(
            f"{path}: {rows:,} rows where its manifest counts {wanted:,}; "
            "delete it and make it again"
        )
    return Dataset(
        catalog_path=path,
        instrument=_instrument_in(path, instrument_id),
        instrument_id=instrument_id,
        counts=manifest["counts"],
        source_counts=manifest["source_counts"],
        synthetic=manifest["synthetic"],
        span_ns=(manifest["span_ns"][0], manifest["span_ns"][1]),
        manifest=manifest,
    )


def _instrument_in(path: Path, instrument_id: str) -> Instrument:
    found: list[Instrument] = ParquetDataCatalog(str(path)).instruments([instrument_id])
    if not found:
        raise DataError(f"{path}: no instrument {instrument_id} in this catalog")
    return found[-1]


def _open_catalog(source: CatalogSource, path: Path) -> Dataset:
    """Open a catalog that somebody else may have written."""
    if not (path / "data").is_dir():
        raise DataError(f"{path}: not a Nautilus catalog (no data folder); check the path")
    _count_rows(path)
    instrument = _instrument_in(path, source.instrument)
    catalog = ParquetDataCatalog(str(path))
    counts = dict.fromkeys(("quotes", "trades", "depth", "bars"), 0)
    spans: list[tuple[int, int]] = []
    bar_types = _bar_types(path, source.instrument)
    for name in source.types:
        identifiers = bar_types[:1] if name == "bars" else [source.instrument]
        for identifier in identifiers:
            files = catalog.query_files(DATA_TYPES[name], [identifier])
            counts[name] += sum(pq.read_metadata(_local(path, file)).num_rows for file in files)
            spans += catalog.get_intervals(DATA_TYPES[name], identifier)
    if not spans:
        raise DataError(
            f"{path}: no {' or '.join(source.types)} of {source.instrument} in this catalog"
        )
    known = _read_manifest(path) if (path / MANIFEST).is_file() else {}
    manifest = known | {
        "instrument": source.instrument,
        "counts": counts,
        "bar_type": bar_types[0] if bar_types else None,
        "synthetic": bool(known.get("synthetic", False)),
        "origin": "qbtc" if known else "unknown: this catalog has no manifest",
    }
    return Dataset(
        catalog_path=path,
        instrument=instrument,
        instrument_id=source.instrument,
        counts=counts,
        source_counts=dict(counts),
        synthetic=manifest["synthetic"],
        span_ns=(min(start for start, _ in spans), max(end for _, end in spans)),
        manifest=manifest,
        types=source.types,
    )


def _bar_types(path: Path, instrument_id: str) -> list[str]:
    folder = path / "data" / "bars"
    return sorted(entry.name for entry in folder.glob(f"{instrument_id}-*"))
