"""Nautilus instruments by id: ``BTCUSDT-PERP.BINANCE`` is USD-M, ``BTCUSDT.BINANCE`` is spot.

A new Binance instrument needs no code: its grid is read from its data. The table below only pins
the grids of common ones, so that a short or lucky stretch of round numbers cannot coarsen them.
"""

import re
from decimal import Decimal

from nautilus_trader.model import (
    CryptoPerpetual,
    Currency,
    CurrencyPair,
    InstrumentId,
    Price,
    Quantity,
    Symbol,
)

from qbtc.errors import DataError

__all__ = ["Instrument", "instrument_for", "split_id"]

type Instrument = CurrencyPair | CryptoPerpetual

GRIDS: dict[str, tuple[int, int]] = {
    "BTCUSDT-PERP": (1, 3),
    "ETHUSDT-PERP": (2, 3),
    "SOLUSDT-PERP": (2, 0),
    "BNBUSDT-PERP": (2, 2),
    "XRPUSDT-PERP": (4, 1),
    "DEXEUSDT-PERP": (3, 2),
    "BTCUSDT": (2, 5),
    "ETHUSDT": (2, 4),
    "SOLUSDT": (2, 3),
    "BNBUSDT": (2, 3),
    "XRPUSDT": (4, 1),
}
"""Decimals of (price, size)."""

QUOTE_CURRENCIES = ("USDT", "USDC", "FDUSD", "TUSD", "BUSD", "BTC", "ETH", "BNB", "EUR", "TRY")
PERPETUAL = "-PERP"
MARGIN_INIT = Decimal("0.05")
MARGIN_MAINT = Decimal("0.025")

_ID = re.compile(r"(?P<symbol>[^\s./\\-]{2,30})(?P<perp>-PERP)?\.(?P<venue>[A-Z][A-Z0-9_]{1,19})")


def split_id(instrument_id: str) -> tuple[str, bool]:
    """Split an id into the exchange's symbol and whether it is a perpetual.

    Raises
    ------
    DataError
        It is not ``SYMBOL.VENUE`` or ``SYMBOL-PERP.VENUE``.
    """
    match = _ID.fullmatch(instrument_id)
    if match is None:
        raise DataError(
            f"instrument {instrument_id!r} is not like BTCUSDT.BINANCE (spot) "
            "or BTCUSDT-PERP.BINANCE (USD-M)"
        )
    return match["symbol"], match["perp"] is not None


def instrument_for(
    instrument_id: str, *, price_decimals: int | None = None, size_decimals: int | None = None
) -> Instrument:
    """Build the Nautilus instrument of an id.

    Parameters
    ----------
    instrument_id
        ``SYMBOL.VENUE`` (spot) or ``SYMBOL-PERP.VENUE`` (linear perpetual).
    price_decimals, size_decimals
        Decimals seen in the data. They decide for an unknown instrument, and win over the table
        where the data is finer (old data on an older grid).

    Raises
    ------
    DataError
        The id is malformed, or unknown and no data says its grid.
    """
    symbol, perpetual = split_id(instrument_id)
    known = GRIDS.get(symbol + PERPETUAL if perpetual else symbol)
    if known is None and (price_decimals is None or size_decimals is None):
        raise DataError(
            f"instrument {instrument_id}: its price and size steps are not known; "
            "import data of it first"
        )
    prices = max(known[0] if known else 0, price_decimals or 0)
    sizes = max(known[1] if known else 0, size_decimals or 0)
    base, quote = _currencies(symbol)
    step = Quantity.from_str(_increment(sizes))
    if perpetual:
        return CryptoPerpetual(
            instrument_id=InstrumentId.from_str(instrument_id),
            raw_symbol=Symbol(symbol),
            base_currency=base,
            quote_currency=quote,
            settlement_currency=quote,
            is_inverse=False,
            price_precision=prices,
            size_precision=sizes,
            price_increment=Price.from_str(_increment(prices)),
            size_increment=step,
            lot_size=step,
            min_quantity=step,
            margin_init=MARGIN_INIT,
            margin_maint=MARGIN_MAINT,
            ts_event=0,
            ts_init=0,
        )
    return CurrencyPair(
        instrument_id=InstrumentId.from_str(instrument_id),
        raw_symbol=Symbol(symbol),
        base_currency=base,
        quote_currency=quote,
        price_precision=prices,
        size_precision=sizes,
        price_increment=Price.from_str(_increment(prices)),
        size_increment=step,
        lot_size=step,
        min_quantity=step,
        margin_init=MARGIN_INIT,
        margin_maint=MARGIN_MAINT,
        ts_event=0,
        ts_init=0,
    )


def _currencies(symbol: str) -> tuple[Currency, Currency]:
    for quote in QUOTE_CURRENCIES:
        if symbol.endswith(quote) and len(symbol) > len(quote):
            return Currency.from_str(symbol.removesuffix(quote)), Currency.from_str(quote)
    raise DataError(
        f"symbol {symbol!r}: quote currency is none of {', '.join(QUOTE_CURRENCIES)}; "
        "only such Binance symbols are supported"
    )


def _increment(decimals: int) -> str:
    return "1" if decimals == 0 else f"0.{'0' * (decimals - 1)}1"
