"""Hold nothing: the baseline that pays no costs."""

from nautilus_trader.model import InstrumentId

from qbtc.trading.strategy import QbtcStrategy, StrategyParams


class FlatParams(StrategyParams, frozen=True):
    """Parameters of ``Flat``."""

    instrument: str
    """Nautilus id of the instrument not to trade."""


class Flat(QbtcStrategy[FlatParams]):
    """Do nothing."""

    def on_start(self) -> None:
        """Check that the instrument exists, as every strategy should."""
        self.instrument_or_fail(InstrumentId.from_str(self.params.instrument))
