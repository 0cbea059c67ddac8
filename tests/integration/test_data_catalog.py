"""A catalog holds what the source held, and a node replays exactly what ``columns`` says."""

import json
from decimal import Decimal
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from nautilus_trader.backtest import (
    BacktestDataConfig,
    BacktestEngineConfig,
    BacktestNode,
    BacktestRunConfig,
    BacktestVenueConfig,
)
from nautilus_trader.common import DataActor, ImportableActorConfig, LoggerConfig
from nautilus_trader.execution import MakerTakerFeeModel
from nautilus_trader.model import (
    AggressorSide,
    BookAction,
    BookType,
    InstrumentId,
    OrderBookDeltas,
    OrderSide,
    Price,
    QuoteTick,
    TradeTick,
)
from nautilus_trader.persistence import ParquetDataCatalog

from qbtc.config.data import (
    ArchiveSource,
    CatalogSource,
    KlinesSource,
    RecordingSource,
    SyntheticSource,
)
from qbtc.core.columns import EventColumns
from qbtc.data.catalog import (
    DATA_TYPES,
    MANIFEST,
    REPLAY_ORDER,
    Dataset,
    _decimals,
    _floats,
    list_catalogs,
    open_source,
)
from qbtc.data.instruments import instrument_for, split_id
from qbtc.data.rows import Numbers
from qbtc.errors import DataError

START_NS = 1_700_000_000_000_000_000
L2_FILES = ("usdm_btcusdt", "usdm_ethusdt", "spot_btcusdt", "spot_ethusdt")

_SEEN: list[tuple[int, int, int, float, float, float, float]] = []
_WATCHED: list[InstrumentId] = []


class Watcher(DataActor):
    """Writes down everything the node replays, in ``EventColumns`` order of fields."""

    def on_start(self) -> None:
        for instrument_id in _WATCHED:
            self.subscribe_quotes(instrument_id)
            self.subscribe_trades(instrument_id)
            self.subscribe_book_deltas(instrument_id, BookType.L2_MBP)

    def on_quote(self, quote: QuoteTick) -> None:
        prices = (float(quote.bid_price), float(quote.bid_size))
        _SEEN.append((quote.ts_init, 0, 0, *prices, float(quote.ask_price), float(quote.ask_size)))

    def on_trade(self, trade: TradeTick) -> None:
        side = int(trade.aggressor_side == AggressorSide.SELL)
        _SEEN.append((trade.ts_init, 1, side, float(trade.price), float(trade.size), 0.0, 0.0))

    def on_book_deltas(self, deltas: OrderBookDeltas) -> None:
        for delta in deltas.deltas:
            if delta.action == BookAction.CLEAR:
                _SEEN.append((delta.ts_init, 3, 0, 0.0, 0.0, 0.0, 0.0))
                continue
            order = delta.order
            side = int(order.side == OrderSide.SELL)
            size = 0.0 if delta.action == BookAction.DELETE else float(order.size)
            _SEEN.append((delta.ts_init, 2, side, float(order.price), size, 0.0, 0.0))


def replay(
    dataset: Dataset,
    *,
    chunk_size: int | None,
    batch_deltas: bool,
    order: tuple[str, ...] = ("quotes", "trades", "depth"),
) -> None:
    """Run the data set through a node; what the actor saw is left in ``_SEEN``."""
    _SEEN.clear()
    _WATCHED[:] = [dataset.instrument.id]
    venue = BacktestVenueConfig(
        name="BINANCE",
        oms_type="NETTING",
        account_type="MARGIN",
        starting_balances=["1000 USDT"],
        book_type="L2_MBP",
        default_leverage=Decimal(1),
        fee_model=MakerTakerFeeModel(Decimal(0), Decimal(0)),
    )
    data = [
        BacktestDataConfig(
            data_type=kind,
            catalog_path=str(dataset.catalog_path),
            instrument_id=dataset.instrument.id,
            batch_deltas=batch_deltas,
        )
        for kind in (DATA_TYPES[name] for name in order)
    ]
    node = BacktestNode(
        [
            BacktestRunConfig(
                venues=[venue],
                data=data,
                id="replay",
                chunk_size=chunk_size,
                raise_exception=True,
                engine=BacktestEngineConfig(logging=LoggerConfig.from_spec("stdout=Off")),
            )
        ]
    )
    node.build()
    node.add_actor_from_config(
        "replay",
        ImportableActorConfig(f"{__name__}:Watcher", "nautilus_trader.common:DataActorConfig", {}),
    )
    node.run()


def assert_seen(columns: EventColumns) -> None:
    seen = np.array([row[1:] for row in _SEEN])
    assert len(seen) == len(columns)
    assert np.array_equal([row[0] for row in _SEEN], columns.ts)
    for at, name in enumerate(("kind", "side", "a", "b", "c", "d")):
        assert np.array_equal(seen[:, at], getattr(columns, name)), name


def write_recording(path: Path, n: int = 300) -> Path:
    """Everything at one receive time per group of three lines, so that order is at stake."""
    rng = np.random.default_rng(3)
    lines = []
    snapshot = {
        "lastUpdateId": 1,
        "bids": [[f"{100 - i / 10:.1f}", "1.000"] for i in range(50)],
        "asks": [[f"{100.1 + i / 10:.1f}", "2.000"] for i in range(50)],
    }
    lines.append((START_NS, snapshot))
    for i in range(n):
        at, ms = START_NS + (i + 1) * 1_000_000, START_NS // 1_000_000 + i
        stamp = {"E": ms, "T": ms, "s": "BTCUSDT"}
        size = f"{rng.integers(0, 3000) / 1000:.3f}"
        quote = {"e": "bookTicker", "u": i, "b": "100.0", "B": "1.500", "a": "100.1", "A": "2.001"}
        trade = {"e": "trade", "t": i, "p": "100.1", "q": "0.123", "m": bool(i % 2)}
        diff = {"e": "depthUpdate", "U": i + 2, "u": i + 2, "pu": i + 1}
        diff |= {"b": [["99.9", size]], "a": [["100.2", size], ["100.3", "0.000"]]}
        group = [quote | stamp, trade | stamp, diff | stamp]
        rng.shuffle(group)  # type: ignore[arg-type]
        lines += [(at, message) for message in group]
    path.write_text("".join(f"{ts} {json.dumps(message)}\n" for ts, message in lines))
    return path


def recording(path: Path) -> RecordingSource:
    return RecordingSource(instrument="BTCUSDT-PERP.BINANCE", path=str(path))


def test_a_catalog_of_many_files_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = recording(write_recording(tmp_path / "rec"))
    whole = open_source(source, tmp_path, cache_dir=tmp_path / "whole").columns()
    monkeypatch.setattr("qbtc.data.catalog.CHUNK_ROWS", 70)
    dataset = open_source(source, tmp_path, cache_dir=tmp_path / "parts")
    assert len(list((dataset.catalog_path / "data" / "order_book_deltas").rglob("*.parquet"))) > 9
    columns = dataset.columns()
    for name in ("ts", "kind", "side", "a", "b", "c", "d"):
        assert np.array_equal(getattr(columns, name), getattr(whole, name))
    replay(dataset, chunk_size=100, batch_deltas=True)
    assert_seen(columns)


@pytest.mark.parametrize(("chunk_size", "batch_deltas"), [(64, True), (None, True), (None, False)])
def test_a_node_replays_what_columns_says(
    tmp_path: Path, chunk_size: int | None, batch_deltas: bool
) -> None:
    source = recording(write_recording(tmp_path / "rec"))
    dataset = open_source(source, tmp_path, cache_dir=tmp_path / "cache")
    assert dataset.counts == {"quotes": 300, "trades": 300, "depth": 1001, "bars": 0}
    assert dataset.source_counts == {"quotes": 300, "trades": 300, "depth": 1000, "bars": 0}
    replay(dataset, chunk_size=chunk_size, batch_deltas=batch_deltas)
    assert_seen(dataset.columns())


def test_a_node_replays_the_synthetic_market_in_order(tmp_path: Path) -> None:
    source = SyntheticSource(instrument="BTCUSDT-PERP.BINANCE", seed=2, duration_s=3)
    dataset = open_source(source, tmp_path, cache_dir=tmp_path)
    replay(dataset, chunk_size=500, batch_deltas=True)
    assert_seen(dataset.columns())


def test_an_import_is_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_recording(tmp_path / "rec", 5)
    cache = tmp_path / "cache"
    first = open_source(recording(path), tmp_path, cache_dir=cache)
    monkeypatch.setattr("qbtc.data.catalog.read_recording", None)
    moved = path.rename(tmp_path / "elsewhere")
    assert (
        open_source(recording(moved), tmp_path, cache_dir=cache).catalog_path == first.catalog_path
    )
    assert [entry["key"] for entry in list_catalogs(cache)] == [first.catalog_path.name]
    assert not list(cache.glob(".making-*"))
    monkeypatch.undo()
    changed = write_recording(path, 6)
    assert (
        open_source(recording(changed), tmp_path, cache_dir=cache).catalog_path
        != first.catalog_path
    )


def test_a_failed_import_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_recording(tmp_path / "rec", 5)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qbtc.data.catalog._write_rows", fail)
    with pytest.raises(KeyboardInterrupt):
        open_source(recording(path), tmp_path, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_manifest_says_what_to_delete(tmp_path: Path) -> None:
    source = recording(write_recording(tmp_path / "rec", 5))
    dataset = open_source(source, tmp_path, cache_dir=tmp_path / "cache")
    (dataset.catalog_path / MANIFEST).write_text("{")
    with pytest.raises(DataError, match="delete"):
        open_source(source, tmp_path, cache_dir=tmp_path / "cache")


def test_a_damaged_or_missing_file_says_what_to_delete(tmp_path: Path) -> None:
    source = recording(write_recording(tmp_path / "rec", 5))
    dataset = open_source(source, tmp_path, cache_dir=tmp_path / "cache")
    file = next(dataset.catalog_path.glob("data/quotes/**/*.parquet"))
    whole = file.read_bytes()
    for damage in (b"", whole[:100]):
        file.write_bytes(damage)
        with pytest.raises(DataError, match=r"damaged; delete .* and make it again"):
            open_source(source, tmp_path, cache_dir=tmp_path / "cache")
    file.unlink()
    with pytest.raises(DataError, match=r"rows where its manifest counts .* delete it"):
        open_source(source, tmp_path, cache_dir=tmp_path / "cache")


def test_the_manifest_says_where_the_rows_came_from(tmp_path: Path) -> None:
    source = recording(write_recording(tmp_path / "rec", 5))
    dataset = open_source(source, tmp_path, cache_dir=tmp_path / "cache")
    manifest = msgspec.json.decode((dataset.catalog_path / MANIFEST).read_bytes())
    assert manifest["source"]["source"] == "recording"
    assert manifest["files"][0]["name"] == "rec"
    assert len(manifest["files"][0]["sha256"]) == 64
    assert manifest["synthetic"] is False
    assert manifest["counts"] == dataset.counts
    assert str(tmp_path) not in json.dumps(manifest), "a manifest names no machine's folders"


@pytest.mark.parametrize("chunk_size", [7, None])
def test_ties_of_a_foreign_catalog_have_an_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_size: int | None
) -> None:
    monkeypatch.setattr("qbtc.data.recording.separate_ties", lambda ts: ts)
    source = recording(write_recording(tmp_path / "rec", 20))
    dataset = open_source(source, tmp_path, cache_dir=tmp_path / "cache")
    columns = dataset.columns()
    assert len(np.unique(columns.ts)) < len(columns) / 3
    order = tuple(name for name in REPLAY_ORDER if name != "bars")
    replay(dataset, chunk_size=chunk_size, batch_deltas=True, order=order)
    assert_seen(columns)


def test_an_existing_catalog_is_a_source(tmp_path: Path) -> None:
    source = recording(write_recording(tmp_path / "rec", 20))
    made = open_source(source, tmp_path, cache_dir=tmp_path / "cache")
    opened = open_source(
        CatalogSource(instrument="BTCUSDT-PERP.BINANCE", path=str(made.catalog_path)), tmp_path
    )
    assert opened.counts == made.counts
    assert opened.span_ns == made.span_ns
    assert np.array_equal(opened.columns().ts, made.columns().ts)
    some = CatalogSource(
        instrument="BTCUSDT-PERP.BINANCE", path=str(made.catalog_path), types=("quotes",)
    )
    assert open_source(some, tmp_path).columns().counts()["trades"] == 0
    for wrong, says in (
        ({"path": str(tmp_path)}, "not a Nautilus catalog"),
        ({"path": str(made.catalog_path), "instrument": "ETHUSDT.BINANCE"}, "no instrument"),
        ({"path": str(made.catalog_path), "types": ("bars",)}, "no bars"),
    ):
        fields = {"instrument": "BTCUSDT-PERP.BINANCE", **wrong}
        with pytest.raises(DataError, match=says):
            open_source(CatalogSource(**fields), tmp_path)  # type: ignore[arg-type]


def test_fixed_point_is_exact_both_ways() -> None:
    rng = np.random.default_rng(5)
    for decimals in range(9):
        units = rng.integers(0, 10 ** rng.integers(1, 14, 2_000), dtype=np.int64)
        column = _decimals(Numbers(units, decimals), decimals)
        exact = [Decimal(int(u)).scaleb(-decimals) for u in units[:200]]
        assert column.slice(0, 200).to_pylist() == exact
        floats = _floats(pa.chunked_array([column.slice(3, 500)]), decimals)
        texts = (f"{value:.{decimals}f}" for value in exact[3:])
        assert floats[:197].tolist() == [float(Price.from_str(text)) for text in texts]
    with pytest.raises(DataError, match="limit"):
        _decimals(Numbers(np.array([10**14]), 0), 0)


def test_instruments_have_the_exchanges_grid() -> None:
    perpetual = instrument_for("BTCUSDT-PERP.BINANCE")
    assert str(perpetual.price_increment) == "0.1"
    assert str(perpetual.size_increment) == "0.001"
    finer = instrument_for("BTCUSDT-PERP.BINANCE", price_decimals=3, size_decimals=0)
    assert (finer.price_precision, finer.size_precision) == (3, 3)
    new = instrument_for("DEXE2USDT.BINANCE", price_decimals=3, size_decimals=1)
    assert str(new.price_increment) == "0.001"
    assert split_id("1000PEPEUSDT-PERP.BINANCE") == ("1000PEPEUSDT", True)
    for wrong, says in (
        ("BTCUSDT", "is not like BTCUSDT.BINANCE"),
        ("../x.BINANCE", "is not like"),
        ("FOOUSDT.BINANCE", "not known"),
    ):
        with pytest.raises(DataError, match=says):
            instrument_for(wrong)
    with pytest.raises(DataError, match="quote currency"):
        instrument_for("FOOBAR.BINANCE", price_decimals=1, size_decimals=1)


@pytest.mark.realdata
@pytest.mark.parametrize("name", L2_FILES)
def test_a_real_recording_is_whole(name: str, real_data: Path, tmp_path: Path) -> None:
    market, symbol = name.split("_")
    perp = "-PERP" if market == "usdm" else ""
    source = RecordingSource(
        instrument=f"{symbol.upper()}{perp}.BINANCE", path=f"l2/{name}_20240808.gz"
    )
    dataset = open_source(source, real_data, cache_dir=tmp_path)
    facts = dataset.manifest
    assert dataset.counts["quotes"] == dataset.source_counts["quotes"]
    assert dataset.counts["trades"] == dataset.source_counts["trades"]
    lost = facts["depth"]["superseded_levels"]
    assert dataset.counts["depth"] - 1 + lost == dataset.source_counts["depth"]
    assert facts["depth"]["snapshots"] == facts["depth"]["clears_added"] == 1
    assert facts["gaps"]["sequence"]["total"] == facts["gaps"]["trade_id"]["total"] == 0
    assert facts["damaged"]["total"] == 0
    assert facts["clock_offset_ns"] == 1_275_000_000
    if name == "usdm_btcusdt":
        assert dataset.counts == {"quotes": 66_089, "trades": 21_313, "depth": 445_263, "bars": 0}
    columns = dataset.columns()
    if name == "spot_ethusdt":
        replay(dataset, chunk_size=20_000, batch_deltas=True)
        assert_seen(columns)


@pytest.mark.realdata
def test_a_year_of_real_minutes_keeps_its_gap(real_data: Path, tmp_path: Path) -> None:
    source = KlinesSource(instrument="BTCUSDT.BINANCE", path="klines/BTCUSDT-1m-2023.parquet")
    dataset = open_source(source, real_data, cache_dir=tmp_path)
    assert dataset.counts["bars"] == dataset.source_counts["bars"] == 525_520
    assert dataset.manifest["gaps"]["bars"]["missing_bars"] == 80
    assert dataset.manifest["zero_volume_bars"] == 72
    assert dataset.bar_type == "BTCUSDT.BINANCE-1-MINUTE-LAST-EXTERNAL"
    catalog = ParquetDataCatalog(str(dataset.catalog_path))
    first = catalog.query_bars(end=1_672_531_260_000_000_000)[0]
    assert (str(first.open), str(first.volume)) == ("16541.77", "83.08143")
    assert first.ts_event == 1_672_531_260_000_000_000
    with pytest.raises(DataError, match="bars only"):
        dataset.columns()


@pytest.mark.realdata
def test_real_quarter_hours_of_perpetuals_are_read(real_data: Path, tmp_path: Path) -> None:
    for symbol in ("ETH", "SOL"):
        source = KlinesSource(
            instrument=f"{symbol}USDT-PERP.BINANCE",
            path=f"klines/{symbol}USDT-PERP-15m-2022_2025-01.parquet",
            interval="15m",
        )
        dataset = open_source(source, real_data, cache_dir=tmp_path)
        assert dataset.counts["bars"] == dataset.source_counts["bars"] == 106_512
        assert dataset.manifest["gaps"]["bars"]["missing_bars"] == 0


@pytest.mark.realdata
def test_real_archive_files_are_whole(real_data: Path, tmp_path: Path) -> None:
    trades = ArchiveSource(
        instrument="DEXEUSDT-PERP.BINANCE",
        paths=tuple(f"aggtrades/DEXEUSDT-aggTrades-2026-04-{day:02}.zip" for day in range(6, 9)),
        kind="aggTrades",
    )
    dataset = open_source(trades, real_data, cache_dir=tmp_path)
    assert dataset.counts["trades"] == dataset.source_counts["trades"] == 467_202
    assert dataset.manifest["gaps"]["trade_id"]["total"] == 0
    spot = ArchiveSource(
        instrument="BTCUSDT.BINANCE",
        paths=tuple(
            f"vision/BTCUSDT-1m-{day}.csv"
            for day in ("2024-12-30", "2024-12-31", "2025-01-01", "2025-01-02")
        ),
        kind="klines",
    )
    dataset = open_source(spot, real_data, cache_dir=tmp_path)
    assert dataset.counts["bars"] == dataset.source_counts["bars"] == 5_760
    assert dataset.manifest["gaps"]["bars"]["missing_bars"] == 0, "ms become us between the files"
