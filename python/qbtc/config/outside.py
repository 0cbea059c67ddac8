"""What a run tells the outside and hears from it: bus, records, limits on orders, pace of a replay.

Every section is absent by default, and a run without them does nothing for them.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = ["BusConfig", "BusSignalConfig", "RecordsConfig", "ReplayConfig", "RiskConfig"]

type Positive = Annotated[float, Meta(gt=0, le=1e15)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class BusConfig(_Section, frozen=True, kw_only=True):
    """``[bus]``: the broker, and what the run tells it."""

    url: str | None = None
    """``amqp://...`` or ``memory://``; absent: the environment variable ``QBTC_AMQP_URL``."""
    prefix: str | None = None
    """Before the names of queues and exchanges; absent: ``QBTC_BUS_PREFIX``, or nothing."""
    relay: tuple[Literal["signals", "orders", "fills"], ...] = ("signals", "orders", "fills")
    """What is copied to the bus: signals of the run's own models, order events, fills."""
    signal_every_ms: Annotated[float, Meta(ge=0, le=3_600_000)] = 0.0
    """Copy a signal only when the last copy of its instrument is so old, in event time; 0: all."""
    queue_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    """Copies that wait for the bus, of signals and of order events; the oldest make room."""


class BusSignalConfig(_Section, frozen=True, kw_only=True):
    """``[[bus_signals]]``: signals of one instrument that strategies hear from the bus."""

    instrument: str
    topic: str | None = None
    """Absent: ``trading.signal.<instrument>``."""
    durable_name: str = ""
    """Queue that keeps signals while the run is away; empty: only those that come during it."""


class RecordsConfig(_Section, frozen=True, kw_only=True):
    """``[records]``: signals, orders and fills in a database."""

    url: str | None = None
    """``postgresql://...`` or ``sqlite:///...``; absent: ``QBTC_DATABASE_URL``, or the user's own
    SQLite file."""
    signals: Literal["acted", "all"] = "acted"
    """Signals that led to orders or were refused, or every one."""


class RiskConfig(_Section, frozen=True, kw_only=True):
    """``[risk]``: limits on every order of the run's strategies, and on signals from the bus.

    A reduce-only order is never refused. Money is in the account's currency.
    """

    order_notional_max: Positive
    """Value of one order."""
    position_notional_max: Positive
    """Value of one side of an instrument: positions there, with all its working orders filled."""
    orders_per_minute_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 60
    """Orders in any 60 seconds of event time."""
    drawdown_max: Positive | None = None
    """Loss from the highest equity seen, after which nothing is opened any more."""
    signal_age_ms_max: Positive = 1_000.0
    """Age of a signal from the bus, by the node's clock."""
    price_deviation_bp_max: Positive = 20.0
    """Distance of a bus signal's price from the mid, basis points."""


class ReplayConfig(_Section, frozen=True, kw_only=True):
    """``[replay]``: the pace of recorded or synthetic data."""

    speed: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    """Market time runs at most so many times as fast as the wall clock; 0: as fast as it can."""
