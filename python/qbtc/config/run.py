"""What one node runs: data, venue and costs, signals, strategies.

``mode`` is all that differs between backtest, paper and live.
"""

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from qbtc.config.data import DataSource
from qbtc.config.outside import (
    BusConfig,
    BusSignalConfig,
    RecordsConfig,
    ReplayConfig,
    RiskConfig,
)

FEE_MAX = Decimal("0.1")
"""Above 10 % of the value traded it is a slip: 5 basis points are 0.0005."""
BALANCE_MAX = Decimal(10) ** 15
NAME_CHARS_MAX = 80

type Probability = Annotated[float, Meta(ge=0, le=1)]


_FEE = "{} = {!r}; write a share of the value traded from {} to 0.1, in quotes"


def _decimal(text: str) -> Decimal | None:
    """Read a finite number."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class FillConfig(_Section, frozen=True, kw_only=True):
    """How resting and crossing orders fill."""

    probability_fill_on_limit: Probability = 0.0
    """Chance that a limit order fills when its price is only touched, where no queue is tracked."""
    probability_slippage: Probability = 0.0
    """Chance that a market order on a top-of-book venue slips one tick."""
    queue_position: bool = True
    """Track the size ahead of a resting order where the data carries trades: it fills when they
    have used that size up, or when the market moves through its price."""


class VenueConfig(_Section, frozen=True, kw_only=True):
    """The simulated venue. Costs are on by default; to turn one off, write it."""

    name: str = "BINANCE"
    account: Literal["margin", "cash"] = "margin"
    starting_balances: Annotated[tuple[str, ...], Meta(min_length=1)] = ("100000 USDT",)
    leverage: Annotated[int, Meta(ge=1, le=1000)] = 10
    maker_fee: str = "0.0002"
    """Share of the value traded; below 0 is a rebate."""
    taker_fee: str = "0.0005"
    latency_ms: Annotated[float, Meta(ge=0, le=3_600_000)] = 5.0
    """Between sending an order message and its arrival."""
    book: Literal["L1", "L2"] = "L1"
    fill: FillConfig = FillConfig()

    def __post_init__(self) -> None:
        """Check what is written as text."""
        taker = _decimal(self.taker_fee)
        if taker is None or not 0 <= taker <= FEE_MAX:
            raise ValueError(_FEE.format("taker_fee", self.taker_fee, 0))
        maker = _decimal(self.maker_fee)
        if maker is None or not -taker <= maker <= FEE_MAX:
            raise ValueError(_FEE.format("maker_fee", self.maker_fee, "minus taker_fee"))
        for balance in self.starting_balances:
            amount, _, currency = balance.partition(" ")
            number = _decimal(amount)
            if number is None or not 0 < number <= BALANCE_MAX or not currency.isalnum():
                raise ValueError(
                    f"starting_balances has {balance!r}; "
                    'write an amount and a currency, like "100000 USDT"'
                )


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
    """First part of the run directory's name."""
    data: tuple[DataSource, ...]
    strategies: tuple[StrategyConfig, ...]
    mode: Literal["backtest", "paper", "live"] = "backtest"
    seed: Annotated[int, Meta(ge=0, le=2**53)] = 1
    start: str | None = None
    end: str | None = None
    output_dir: str = "runs"
    """Parent of the run directory, relative to the working directory."""
    venue: VenueConfig = VenueConfig()
    signals: tuple[SignalConfig, ...] = ()
    baselines: tuple[StrategyConfig, ...] = ()
    """Each runs alone on the same data, venue and costs, and stands beside the result."""
    replay: ReplayConfig | None = None
    risk: RiskConfig | None = None
    bus: BusConfig | None = None
    bus_signals: tuple[BusSignalConfig, ...] = ()
    records: RecordsConfig | None = None

    def __post_init__(self) -> None:
        """Check that the name can be part of a directory's name."""
        good = (
            self.name.isprintable() and self.name.strip(". ") and len(self.name) <= NAME_CHARS_MAX
        )
        if not good or "/" in self.name or "\\" in self.name:
            raise ValueError(
                f"name = {self.name!r} cannot name the run directory; "
                f"write 1 to {NAME_CHARS_MAX} characters without a slash"
            )
