"""The base of every strategy: a Nautilus strategy with typed parameters and model signals.

A strategy file holds one frozen parameter struct and one class::

    class FlatParams(StrategyParams, frozen=True):
        instrument: str

    class Flat(QbtcStrategy[FlatParams]):
        def on_start(self) -> None:
            self.subscribe_quotes(InstrumentId.from_str(self.params.instrument))

All Nautilus callbacks (``on_quote``, ``on_trade``, ``on_book_deltas``, ``on_bar``,
``on_order_filled``, ``on_time_event``, ...) keep their names and meaning; see
https://nautilustrader.io/docs. Added here are ``params``, ``subscribe_model_signals`` with
``on_model_signal``, ``subscribe_bus_signals`` with ``on_bus_signal``, ``instrument_or_fail``,
``quantity_or_fail`` and ``bar_type_for``. An order that is sent while a signal is heard is known to
act on it; of one that is sent later, ``acts_on`` says so. With ``[risk]`` in the config an order
beyond the limits is not sent: ``on_order_denied`` is called at once. An exception in any callback
ends the run (``qbtc.trading.trap``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

import msgspec
from nautilus_trader.model import (
    BarType,
    BookType,
    ClientId,
    ClientOrderId,
    InstrumentId,
    OmsType,
    PositionId,
    Price,
    Quantity,
    QuoteTick,
    StrategyId,
)
from nautilus_trader.trading import Strategy, StrategyConfig

from qbtc.errors import ConfigError
from qbtc.messages import Signal
from qbtc.messages.events import TradingSignal
from qbtc.trading.desk import OrderDesk
from qbtc.trading.feeds import FeedKind, Feeds, Handler

__all__ = [
    "BusSignalHandler",
    "HostLinks",
    "QbtcStrategy",
    "SignalBoard",
    "SignalHandler",
    "StrategyParams",
]

type SignalHandler = Callable[[Signal, QuoteTick], None]
type BusSignalHandler = Callable[[TradingSignal], None]


class StrategyParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of a strategy: the ``params`` table of its ``[[strategies]]`` entry."""


class SignalBoard:
    """Who listens to which instrument's signals.

    A plain list of bound methods per instrument. Handing a signal to one strategy this way costs
    0.15-0.25 us; Nautilus's ``publish_message`` to a ``subscribe_topic`` handler costs 0.4-0.5 us
    (measured on the same engine run, 200k quotes). Both run on the engine's thread at the event,
    so the order of things is the same; actor and strategy still know only the board.
    """

    def __init__(self, instruments: tuple[str, ...] = ()) -> None:
        self._handlers: dict[str, list[SignalHandler]] = {name: [] for name in instruments}

    def handlers(self, instrument: str) -> list[SignalHandler]:
        """Return the live list of an instrument's handlers."""
        return self._handlers[instrument]

    def listen(self, instrument: str, handler: SignalHandler) -> None:
        """Add a handler.

        Raises
        ------
        ConfigError
            No signal actor serves the instrument.
        """
        if instrument not in self._handlers:
            served = ", ".join(self._handlers) or "none"
            raise ConfigError(
                f"a strategy wants signals of {instrument}, but the run has signals of: {served}; "
                f'add [[signals]] with instrument = "{instrument}"'
            )
        self._handlers[instrument].append(handler)


@dataclass(frozen=True, slots=True)
class HostLinks:
    """What the host lends to a strategy."""

    board: SignalBoard = field(default_factory=SignalBoard)
    feeds: Feeds = field(default_factory=Feeds)
    """Who hears which data, in what order."""
    bar_types: Mapping[str, str] = MappingProxyType({})
    """Bars in the run's data, by instrument."""
    watch_handler: Callable[[Callable[..., object]], None] = lambda handler: None
    """Told of every function that a strategy hands to Nautilus (``qbtc.trading.trap``)."""
    desk: OrderDesk | None = None
    """Knows and admits orders, where somebody must."""
    bus_board: Mapping[str, list[BusSignalHandler]] = MappingProxyType({})
    """Who hears which instrument's signals from the bus."""


class QbtcStrategy[Params: StrategyParams](Strategy):
    """A Nautilus strategy with typed parameters.

    Parameters
    ----------
    params
        The strategy's frozen parameters.
    strategy_id
        Nautilus id, ``<Name>-<tag>``, unique in a run.
    links
        What the host lends.
    """

    params: Params

    def __new__(cls, params: Params, *, strategy_id: str | None = None, **_: object) -> Self:
        """Hand Nautilus its own config; it takes the id here, not in ``__init__``."""
        config = StrategyConfig(
            strategy_id=StrategyId(strategy_id or f"{cls.__name__}-000"),
            oms_type=OmsType.NETTING,
            log_events=False,
            log_commands=False,
        )
        return super().__new__(cls, config)  # type: ignore[call-arg]

    def __init__(
        self,
        params: Params,
        *,
        strategy_id: str | None = None,
        links: HostLinks | None = None,
    ) -> None:
        self.params = params
        self.__links = links or HostLinks()

    def subscribe_model_signals(self, instrument_id: InstrumentId) -> None:
        """Ask for ``on_model_signal`` at every signal of an instrument.

        Raises
        ------
        ConfigError
            The run has no ``[[signals]]`` entry for the instrument.
        """
        name, desk = str(instrument_id), self.__links.desk
        handler: SignalHandler = self.on_model_signal
        if desk is not None:
            handler = desk.hearing_model(name, handler)
        self.__links.board.listen(name, handler)

    def on_model_signal(self, signal: Signal, quote: QuoteTick) -> None:
        """Receive a signal, before ``on_quote`` of the quote it was computed at."""

    def subscribe_bus_signals(self, instrument_id: InstrumentId) -> None:
        """Ask for ``on_bus_signal`` at every signal from the bus that may be acted on.

        Raises
        ------
        ConfigError
            The run has no ``[[bus_signals]]`` entry for the instrument.
        """
        board, name = self.__links.bus_board, str(instrument_id)
        if name not in board:
            raise ConfigError(
                f"a strategy wants signals of {name} from the bus, but the run has those of: "
                f'{", ".join(board) or "none"}; add [[bus_signals]] with instrument = "{name}"'
            )
        board[name].append(self.on_bus_signal)

    def on_bus_signal(self, signal: TradingSignal) -> None:
        """Receive a signal from the bus to buy or sell.

        It was not received before, is neither expired nor older than the limits allow, and its
        price is near the market's. Orders sent from here act on it.
        """

    @property
    def signal_id(self) -> str | None:
        """Id of the signal that is being heard; None also where the run keeps no ids."""
        desk = self.__links.desk
        return None if desk is None else desk.signal_id

    def submit_order(
        self,
        order: Any,
        position_id: PositionId | None = None,
        client_id: ClientId | None = None,
        params: dict[str, Any] | None = None,
        *,
        acts_on: str | None = None,
    ) -> None:
        """Send an order; ``on_order_denied`` follows at once if it is beyond the run's limits.

        ``acts_on`` is the id of the signal behind it, where that is not the one being heard.
        """
        desk = self.__links.desk
        if desk is None or desk.admit(self, [order], acts_on):
            super().submit_order(order, position_id, client_id, params)

    def submit_order_list(
        self,
        order_list: Any,
        position_id: PositionId | None = None,
        client_id: ClientId | None = None,
        params: dict[str, Any] | None = None,
    ) -> None:
        """Send orders that belong together; if one is beyond the run's limits, none is sent."""
        desk = self.__links.desk
        if desk is None or desk.admit(self, list(order_list), None):
            super().submit_order_list(order_list, position_id, client_id, params)

    def modify_order(
        self,
        client_order_id: ClientOrderId,
        quantity: Quantity | None = None,
        price: Price | None = None,
        trigger_price: Price | None = None,
        client_id: ClientId | None = None,
        params: dict[str, Any] | None = None,
    ) -> None:
        """Change an order; ``on_order_modify_rejected`` follows if that is beyond the limits."""
        desk = self.__links.desk
        if desk is None or desk.admit_change(self, client_order_id, quantity, price, trigger_price):
            super().modify_order(client_order_id, quantity, price, trigger_price, client_id, params)

    def modify_orders(
        self,
        updates: Sequence[tuple[ClientOrderId, Quantity | None, Price | None, Price | None]] = (),
        client_id: ClientId | None = None,
        params: dict[str, Any] | None = None,
    ) -> None:
        """Change several orders of one instrument."""
        if self.__links.desk is None:
            super().modify_orders(updates, client_id, params)
            return
        for order_id, quantity, price, trigger_price in updates:
            self.modify_order(order_id, quantity, price, trigger_price, client_id, params)

    def subscribe_quotes(
        self,
        instrument_id: InstrumentId,
        client_id: ClientId | None = None,
        params: dict[str, Any] | None = None,
    ) -> None:
        """Ask for ``on_quote``; strategies hear a quote in the order of the config."""
        if not self.__listen("quotes", instrument_id, self.on_quote):
            super().subscribe_quotes(instrument_id, client_id, params)

    def unsubscribe_quotes(
        self,
        instrument_id: InstrumentId,
        client_id: ClientId | None = None,
        params: dict[str, Any] | None = None,
    ) -> None:
        """Hear no more quotes."""
        if not self.__links.feeds.drop("quotes", str(instrument_id), self):
            super().unsubscribe_quotes(instrument_id, client_id, params)

    def subscribe_trades(
        self,
        instrument_id: InstrumentId,
        client_id: ClientId | None = None,
        params: dict[str, Any] | None = None,
    ) -> None:
        """Ask for ``on_trade``."""
        if not self.__listen("trades", instrument_id, self.on_trade):
            super().subscribe_trades(instrument_id, client_id, params)

    def unsubscribe_trades(
        self,
        instrument_id: InstrumentId,
        client_id: ClientId | None = None,
        params: dict[str, Any] | None = None,
    ) -> None:
        """Hear no more trades."""
        if not self.__links.feeds.drop("trades", str(instrument_id), self):
            super().unsubscribe_trades(instrument_id, client_id, params)

    def subscribe_book_deltas(
        self,
        instrument_id: InstrumentId,
        book_type: BookType = BookType.L2_MBP,
        depth: int | None = None,
        client_id: ClientId | None = None,
        managed: bool = False,
        params: dict[str, Any] | None = None,
    ) -> None:
        """Ask for ``on_book_deltas``; ``managed`` also keeps a book in the cache."""
        if managed or not self.__listen("depth", instrument_id, self.on_book_deltas):
            super().subscribe_book_deltas(
                instrument_id, book_type, depth, client_id, managed, params
            )

    def subscribe_bars(
        self,
        bar_type: BarType,
        client_id: ClientId | None = None,
        params: dict[str, Any] | None = None,
    ) -> None:
        """Ask for ``on_bar``."""
        if not self.__listen("bars", bar_type, self.on_bar):
            super().subscribe_bars(bar_type, client_id, params)

    def unsubscribe_bars(
        self,
        bar_type: BarType,
        client_id: ClientId | None = None,
        params: dict[str, Any] | None = None,
    ) -> None:
        """Hear no more bars."""
        if not self.__links.feeds.drop("bars", str(bar_type), self):
            super().unsubscribe_bars(bar_type, client_id, params)

    def __listen(self, kind: FeedKind, key: object, handler: Handler) -> bool:
        return self.__links.feeds.listen(kind, str(key), self, str(self.strategy_id), handler)

    def subscribe_topic(
        self, topic: str, handler: Callable[[object], None], priority: int = 0
    ) -> None:
        """Hear every ``publish_message`` on a topic; patterns like ``orders.*`` are understood."""
        self.__links.watch_handler(handler)
        super().subscribe_topic(topic, handler, priority)

    def bar_type_for(self, instrument_id: InstrumentId) -> BarType | None:
        """Return the type of the bars that the run replays for an instrument, if any."""
        name = self.__links.bar_types.get(str(instrument_id))
        return None if name is None else BarType.from_str(name)

    def instrument_or_fail(self, instrument_id: InstrumentId) -> Any:
        """Return the instrument's definition.

        Raises
        ------
        ConfigError
            The run's data does not contain the instrument.
        """
        instrument = self.cache.instrument(instrument_id)
        if instrument is None:
            known = ", ".join(str(name) for name in self.cache.instrument_ids()) or "none"
            raise ConfigError(
                f"{type(self).__name__}: no data for {instrument_id}; the run has: {known}"
            )
        return instrument

    def quantity_or_fail(self, instrument: Any, size: float) -> Quantity:
        """Return a size in base units on the instrument's grid.

        Raises
        ------
        ConfigError
            It is not positive, or rounds to zero.
        """
        try:
            if not size > 0:
                raise ValueError("not above 0")
            quantity: Quantity = instrument.make_qty(size)
        except ValueError as error:
            raise ConfigError(
                f"{type(self).__name__}: size {size} of {instrument.id}: {error};"
                f" use a multiple of {instrument.size_increment}"
            ) from None
        return quantity
