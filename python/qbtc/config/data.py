"""Where market data comes from: one tagged struct per kind of source.

Every source names one instrument and ends as one instrument's rows in a Nautilus Parquet catalog
(see ``qbtc.data``). ``source = "..."`` in the TOML picks the struct.
"""

from typing import Literal

import msgspec

type EventType = Literal["quotes", "trades", "depth"]


class _Source(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="source"
):
    instrument: str
    """Nautilus id: ``BTCUSDT-PERP.BINANCE`` is USD-M, ``BTCUSDT.BINANCE`` is spot."""


class RecordingSource(_Source, frozen=True, kw_only=True, tag="recording"):
    """A raw Binance web-socket recording: ``<receive ns> <json>`` per line, gzip or plain."""

    path: str
    types: tuple[EventType, ...] = (
        "quotes",
        "trades",
        "depth",
    )
    clock_offset_ms: float | None = None
    """Added to every receive time; absent = detected (0 unless events come before they happen)."""
    damaged_rows_max: int = 0
    """Damaged rows to leave out (each is listed in the manifest) before the import fails."""


class KlinesSource(_Source, frozen=True, kw_only=True, tag="klines"):
    """Packed kline Parquet (integers ``*_c`` and ``*_e8``, ``open_time_ms``) as bars."""

    path: str
    interval: str = "1m"


class ArchiveSource(_Source, frozen=True, kw_only=True, tag="archive"):
    """Files of the Binance bulk archive (zip or CSV): klines, trades or aggTrades."""

    paths: tuple[str, ...]
    kind: Literal["klines", "trades", "aggTrades"]
    interval: str = "1m"


class SyntheticSource(_Source, frozen=True, kw_only=True, tag="synthetic"):
    """The seeded synthetic market; labelled synthetic in everything made from it."""

    seed: int
    duration_s: float
    edge: float = 1.0
    """Strength of the informed flow, 0 = none (prices are then unpredictable by construction)."""
    start: str = "2024-01-01T00:00:00Z"
    price: float = 60_000.0
    """Start price, in quote currency."""


class CatalogSource(_Source, frozen=True, kw_only=True, tag="catalog"):
    """An existing Nautilus Parquet catalog."""

    path: str
    types: tuple[EventType | Literal["bars"], ...] = (
        "quotes",
        "trades",
        "depth",
    )


type DataSource = RecordingSource | KlinesSource | ArchiveSource | SyntheticSource | CatalogSource
