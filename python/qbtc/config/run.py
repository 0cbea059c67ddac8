"""What one node runs: data, venue and costs, signals, strategies.

``mode`` is all that differs between backtest, paper and live.
"""

from typing import Any, Literal

import msgspec

from qbtc.config.data import DataSource


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class FillConfig(_Section, frozen=True, kw_only=True):
    """How resting and crossing orders fill."""

    probability_fill_on_limit: float = 0.0
    """Chance that a limit order fills when its price is only touched, where no queue is tracked."""
    probability_slippage: float = 0.0
    """Chance that a market order on a top-of-book venue slips one tick."""
    queue_position: bool = True
    """Track the size ahead of a resting order where the data carries trades: it fills when they
    have used that size up, or when the market moves through its price."""


class VenueConfig(_Section, frozen=True, kw_only=True):
    """The simulated venue. Costs are on by default; to turn one off, write it."""

    name: str = "BINANCE"
    account: Literal["margin", "cash"] = "margin"
    starting_balances: tuple[str, ...] = ("100000 USDT",)
    leverage: int = 10
    maker_fee: str = "0.0002"
    taker_fee: str = "0.0005"
    latency_ms: float = 5.0
    book: Literal["L1", "L2"] = "L1"
    fill: FillConfig = FillConfig()


class SignalConfig(_Section, frozen=True, kw_only=True):
    """One signal actor: features of one instrument, one model."""

    instrument: str
    model: str
    """Path of a ``.safetensors`` model made by ``qbtc train``."""
    lead: str | None = None
    """Instrument whose quotes lead (basis, lead return); absent = missing features."""
    in_sample: Literal["skip", "allow"] = "skip"
    """Before the end of the model's training span: stay silent, or signal and report it."""


class StrategyConfig(_Section, frozen=True, kw_only=True):
    """One strategy by file path and class name."""

    path: str
    """``strategies/ema_cross.py:EmaCross``, relative to the config file, or a dotted path."""
    params: dict[str, Any] = {}


class RunConfig(_Section, frozen=True, kw_only=True):
    """A run."""

    name: str
    data: tuple[DataSource, ...]
    strategies: tuple[StrategyConfig, ...]
    mode: Literal["backtest", "paper", "live"] = "backtest"
    seed: int = 1
    start: str | None = None
    end: str | None = None
    output_dir: str = "runs"
    """Parent of the run directory, relative to the working directory."""
    venue: VenueConfig = VenueConfig()
    signals: tuple[SignalConfig, ...] = ()
    baselines: tuple[StrategyConfig, ...] = ()
    """Each runs alone on the same data, venue and costs, and stands beside the result."""
