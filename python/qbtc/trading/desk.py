"""Between a strategy and the venue: which signal an order acts on, and whether it may be sent.

A run has a desk only where it has ``[risk]``, ``[bus]`` or ``[records]``; without one a strategy's
orders go straight to Nautilus.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import nautilus_trader.model as nt
from nautilus_trader.core import UUID4

from qbtc.messages import Signal
from qbtc.messages.events import OrderEvent, TradingSignal
from qbtc.trading.journal import Journal, OrderState
from qbtc.trading.risk import RiskGate

__all__ = ["OrderDesk", "signal_id"]

_CLOSED = ("DENIED", "REJECTED", "CANCELED", "EXPIRED", "FILLED")


def signal_id(run_id: str, instrument: str, signal: Signal) -> str:
    """Return the id of a signal of a run's own model: the same for the same signal.

    The probabilities take part, since two quotes may carry the same time.
    """
    text = f"{run_id}|{instrument}|{signal.ts_event}|{signal.p_down!r}|{signal.p_up!r}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class OrderDesk:
    """Admits orders.

    Parameters
    ----------
    run_id
        Of the run.
    journal
        Told which signal an order acts on.
    gate
        Limits; None: there are none.
    currency
        Of the account.
    acted
        Called at the first order that acts on a signal of the run's own models.
    """

    def __init__(
        self,
        *,
        run_id: str,
        journal: Journal,
        gate: RiskGate | None,
        currency: str,
        acted: Callable[[str, str, Signal], None] = lambda identity, instrument, signal: None,
    ) -> None:
        self._run_id = run_id
        self._journal = journal
        self._gate = gate
        self._currency = currency
        self._now_ns = 0
        self._acted = acted
        self._model: tuple[str, Signal] | None = None
        self._bus: TradingSignal | None = None
        self._last_acted = ""
        self._orders = 0
        self._refusal: str | None = None
        self._refusing = False  # a change that the venue never hears of
        journal.change_refused.append(self._note_change_refused)

    @property
    def signal_id(self) -> str | None:
        """Id of the signal that a strategy is hearing now."""
        if self._bus is not None:
            return self._bus.signal_id
        if self._model is not None:
            return signal_id(self._run_id, *self._model)
        return None

    def hearing_model[Event](
        self, instrument: str, handler: Callable[[Signal, Event], None]
    ) -> Callable[[Signal, Event], None]:
        """Make a handler of model signals whose orders are known to act on them."""

        def heard(signal: Signal, event: Event) -> None:
            self._model = (instrument, signal)
            handler(signal, event)
            self._model = None  # an exception ends the run

        return heard

    @contextmanager
    def hearing_bus(self, signal: TradingSignal) -> Iterator[Callable[[], str]]:
        """Let orders act on a signal from the bus; yield what asks for the outcome so far."""
        self._bus, self._orders, self._refusal = signal, 0, None
        try:
            yield lambda: "acted" if self._orders else (self._refusal or "ignored")
        finally:
            self._bus = None

    def admit(self, strategy: Any, orders: Sequence[Any], acts_on: str | None) -> bool:
        """Take orders that are about to be sent together, or deny them all.

        Parameters
        ----------
        strategy
            Who sends them; it is told of a denial, and its cache has the market's price.
        acts_on
            Id of the signal; None: the one that is being heard, if any.
        """
        acts_on = acts_on or self.signal_id
        refusal = None
        for order in orders:
            if acts_on is not None:
                self._journal.tag(str(order.client_order_id), acts_on)
            self._now_ns = max(self._now_ns, order.ts_init)
            refusal = refusal or self._ask_for(strategy, order)
        if refusal is not None:
            self._refusal = self._refusal or refusal
            for order in orders:
                _deny(strategy, order, refusal)
            return False
        self._orders += len(orders)
        if self._model is not None and acts_on is not None and acts_on != self._last_acted:
            instrument, signal = self._model
            if acts_on == signal_id(self._run_id, instrument, signal):
                self._last_acted = acts_on
                self._acted(acts_on, instrument, signal)
        return True

    def admit_change(
        self,
        strategy: Any,
        order_id: Any,
        quantity: Any | None,
        price: Any | None,
        trigger_price: Any | None,
    ) -> bool:
        """Take a change of a working order, or refuse it and tell the strategy.

        What can open nothing is left to Nautilus, which drops a change of a closed order and
        refuses to make one smaller than what it has filled.
        """
        state = self._journal.state(str(order_id))
        if state is None or state.status in _CLOSED:
            return True
        leaves = (state.quantity if quantity is None else quantity.as_decimal()) - state.filled
        if leaves <= 0:
            return True
        refusal = self._ask(
            strategy,
            str(order_id),
            instrument=nt.InstrumentId.from_str(state.instrument),
            is_buy=state.is_buy,
            quantity=leaves,
            worst=_worst(
                state.price if price is None else price.as_decimal(),
                state.trigger_price if trigger_price is None else trigger_price.as_decimal(),
            ),
            reduce_only=state.reduce_only,
            at_once=False,
        )
        if refusal is not None:
            self._refusing = True
            _refuse_change(strategy, order_id, refusal)
            self._refusing = False  # an exception ends the run
        return refusal is None

    def note(self, event: OrderEvent, state: OrderState) -> None:
        """Tell the limits what happened to an order."""
        gate = self._gate
        if gate is None:
            return
        self._now_ns = max(self._now_ns, event.ts_init)
        if event.fill is not None:
            price, commission = Decimal(event.fill.price), Decimal(event.fill.commission)
            if event.fill.commission_currency != self._currency:
                commission *= price  # a fee in the asset bought is worth the fill's own price
            gate.filled(
                event.order_id,
                strategy=event.strategy,
                instrument=event.instrument,
                is_buy=state.is_buy,
                quantity=Decimal(event.fill.quantity),
                price=price,
                commission=commission,
            )
            if state.filled >= state.quantity:  # also where a change to a larger size is on its way
                gate.closed(event.order_id, instrument=event.instrument)
        elif event.kind == "initialized":
            gate.sent(
                event.order_id,
                strategy=event.strategy,
                instrument=event.instrument,
                is_buy=state.is_buy,
                quantity=state.quantity,
                reduce_only=state.reduce_only,
            )
        elif event.kind == "updated":
            self._settle(event.order_id, state)
        elif event.kind in ("denied", "rejected", "cancelled", "expired"):
            gate.closed(event.order_id, instrument=event.instrument)

    def _note_change_refused(self, order_id: str, state: OrderState) -> None:
        if not self._refusing:
            self._settle(order_id, state)

    def _settle(self, order_id: str, state: OrderState) -> None:
        """Tell the limits what an order is now that a change was made or refused."""
        if self._gate is not None:
            self._gate.changed(
                order_id,
                instrument=state.instrument,
                leaves=state.quantity - state.filled,
                worst=_worst(state.price, state.trigger_price),
            )

    def _ask_for(self, strategy: Any, order: Any) -> str | None:
        if self._gate is not None and order.is_quote_quantity:
            return self._gate.refuse(
                "quote_quantity", "the size is in the quote currency; give it in base units"
            )
        return self._ask(
            strategy,
            str(order.client_order_id),
            instrument=order.instrument_id,
            is_buy=order.side == nt.OrderSide.BUY,
            quantity=order.quantity.as_decimal(),
            worst=_worst(_price_of(order, "price"), _price_of(order, "trigger_price")),
            reduce_only=order.is_reduce_only,
            at_once=_at_once(order),
        )

    def _ask(
        self,
        strategy: Any,
        order_id: str,
        *,
        instrument: nt.InstrumentId,
        is_buy: bool,
        quantity: Decimal,
        worst: Decimal | None,
        reduce_only: bool,
        at_once: bool,
    ) -> str | None:
        if self._gate is None:
            return None
        return self._gate.admit(
            order_id,
            strategy=str(strategy.strategy_id),
            instrument=str(instrument),
            is_buy=is_buy,
            quantity=quantity,
            price=_market_price(strategy.cache, instrument),
            worst=worst,
            reduce_only=reduce_only,
            at_once=at_once,
            now_ns=self._now_ns,
        )


def _deny(strategy: Any, order: Any, reason: str) -> None:
    """Tell of an order that is not sent, as Nautilus tells of one that its engine denies."""
    denied = nt.OrderDenied(
        order.trader_id,
        order.strategy_id,
        order.instrument_id,
        order.client_order_id,
        reason,
        UUID4(),
        order.ts_init,
        order.ts_init,
    )
    strategy.on_order_initialized(order.init_event)
    strategy.on_order_event(order.init_event)
    strategy.on_order_denied(denied)
    strategy.on_order_event(denied)


def _refuse_change(strategy: Any, order_id: Any, reason: str) -> None:
    order = strategy.cache.order(order_id)
    if order is None:
        return
    refused = nt.OrderModifyRejected(
        order.trader_id,
        order.strategy_id,
        order.instrument_id,
        order_id,
        reason,
        UUID4(),
        order.ts_last,
        order.ts_last,
        False,
        order.venue_order_id,
        order.account_id,
    )
    strategy.on_order_modify_rejected(refused)
    strategy.on_order_event(refused)


def _price_of(order: Any, name: str) -> Decimal | None:
    price = getattr(order, name, None)
    return None if price is None else Decimal(price.as_decimal())


def _worst(*prices: Decimal | None) -> Decimal | None:
    """Return the highest of the prices that an order names, if it names any."""
    return max((price for price in prices if price is not None), default=None)


def _at_once(order: Any) -> bool:
    """Return whether an order fills or ends as it arrives; a child waits for its parent."""
    return (
        order.order_type == nt.OrderType.MARKET
        and order.time_in_force not in (nt.TimeInForce.AT_THE_OPEN, nt.TimeInForce.AT_THE_CLOSE)
        and order.parent_order_id is None
        and order.exec_algorithm_id is None
    )


def _market_price(cache: Any, instrument: nt.InstrumentId) -> Decimal | None:
    """Return the mid, or the last price where there are no quotes."""
    quote = cache.quote(instrument)
    if quote is not None:
        return Decimal(quote.bid_price.as_decimal() + quote.ask_price.as_decimal()) / 2
    last = cache.price(instrument, nt.PriceType.LAST)
    return None if last is None else Decimal(last.as_decimal())
