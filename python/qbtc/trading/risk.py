"""Limits on orders, checked before they are sent.

``RiskGate`` knows positions and working orders from what happens to the orders themselves. It is
asked once for every order; market events never reach it. A reduce-only order is never refused, nor
is any other that only reduces its strategy's position: a limit must not keep anybody in the market.
Money is in the account's currency, and an order is valued at the worst of the market's price and
those that it names.

Positions are kept by strategy, as the venue keeps them: reduce-only means that the strategy's own
position is not opened or enlarged, and the venue sees to that.

``bus_signal_refusal`` says whether a signal from the bus may be acted on at all.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from qbtc.config import RiskConfig
from qbtc.messages.events import TradingSignal

__all__ = ["RiskGate", "bus_signal_refusal"]

MINUTE_NS = 60_000_000_000
_ZERO = Decimal(0)


@dataclass(slots=True)
class _Working:
    """An order that may still fill."""

    strategy: str
    sign: int
    leaves: Decimal
    worst: Decimal
    """Price that it names; 0: none."""
    reduce_only: bool
    changes: int = 0
    """Asked for and not answered yet."""


@dataclass(slots=True)
class _Book:
    """Positions and working orders in one instrument."""

    multiplier: Decimal
    positions: dict[str, Decimal] = field(default_factory=dict)
    mark: Decimal = _ZERO
    working: dict[str, _Working] = field(default_factory=dict)

    def position(self) -> Decimal:
        """Return the signed sum of the strategies' positions."""
        return sum(self.positions.values(), _ZERO)

    def closable(self, strategy: str, sign: int) -> Decimal:
        """Return what an order may close of a position, after all that closes it already."""
        position = -sign * self.positions.get(strategy, _ZERO)
        closing = sum(
            item.leaves
            for item in self.working.values()
            if item.strategy == strategy and item.sign == sign
        )
        return max(position - closing, _ZERO)

    def reach(self, sign: int, price: Decimal) -> Decimal:
        """Return the value of a side if all that waits there fills.

        Nothing is set off: an opposite position may be closed before, by another order. What is
        reduce-only opens nothing.
        """
        held = sum((max(sign * size, _ZERO) for size in self.positions.values()), _ZERO)
        waiting = sum(
            item.leaves * max(price, item.worst)
            for item in self.working.values()
            if item.sign == sign and not item.reduce_only
        )
        return (held * price + waiting) * self.multiplier


class RiskGate:
    """Limits of a run.

    Parameters
    ----------
    limits
        The run's ``[risk]``.
    multipliers
        Contract size of every instrument that may be traded.
    """

    def __init__(self, limits: RiskConfig, multipliers: Mapping[str, Decimal]) -> None:
        self.refused: dict[str, int] = {}
        """Orders refused, by the limit."""
        self._books = {name: _Book(multiplier=size) for name, size in multipliers.items()}
        self._order_max = Decimal(str(limits.order_notional_max))
        self._position_max = Decimal(str(limits.position_notional_max))
        self._rate_max = limits.orders_per_minute_max
        self._fall_max = None if limits.drawdown_max is None else Decimal(str(limits.drawdown_max))
        self._sent: deque[int] = deque()  # times of the last minute's orders
        self._cash = _ZERO
        self._peak = _ZERO
        self._latched = False

    @property
    def latched(self) -> bool:
        """Whether the drawdown was too large: nothing is opened any more."""
        return self._latched

    def position(self, instrument: str) -> Decimal:
        """Return the signed position that the fills add up to."""
        return self._books[instrument].position()

    def mark(self, instrument: str, price: Decimal) -> None:
        """Value a position at a price; latch when equity has fallen too far."""
        self._books[instrument].mark = price
        equity = self._cash + sum(
            (book.position() * book.mark * book.multiplier for book in self._books.values()), _ZERO
        )
        self._peak = max(self._peak, equity)
        if self._fall_max is not None and self._peak - equity > self._fall_max:
            self._latched = True

    def admit(
        self,
        order_id: str,
        *,
        strategy: str,
        instrument: str,
        is_buy: bool,
        quantity: Decimal,
        price: Decimal | None,
        worst: Decimal | None,
        reduce_only: bool,
        at_once: bool,
        now_ns: int,
    ) -> str | None:
        """Let an order through, and count it from now on, or say why not.

        Parameters
        ----------
        order_id
            Unique; the same id again is a change of a working order, which counts with the larger
            of its two sizes and the worse of its two prices until ``changed`` says that it is done.
        quantity
            What may still fill, in base units.
        price
            Of the market now; None: there is none.
        worst
            The highest price that the order itself names (limit, trigger), if it names one.
        reduce_only
            The venue keeps it from opening anything.
        at_once
            It fills or ends as it arrives. An order that may rest can meet another position than
            that of today, so what it would close is not set off, and it is no exit once the
            drawdown was too large.
        now_ns
            Event time; never back.
        """
        book = self._books.get(instrument)
        if book is None:
            return self.refuse("instrument", f"{instrument} is not of this run")
        if quantity <= 0:
            return self.refuse("quantity", f"nothing to fill: the quantity is {quantity}")
        if price is not None:
            self.mark(instrument, price)
        before = book.working.pop(order_id, None)
        order = _Working(strategy, 1 if is_buy else -1, quantity, worst or _ZERO, reduce_only)
        if before is not None:
            order.changes = before.changes + 1
            if before.changes:  # an earlier change may be what the venue has when this one comes
                order.leaves = max(quantity, before.leaves)
                order.worst = max(order.worst, before.worst)
        reason = self._reason(book, order, price, at_once, now_ns)
        if reason is None:
            self._sent.append(now_ns)
            if before is not None:
                order.leaves = max(order.leaves, before.leaves)
                order.worst = max(order.worst, before.worst)
            book.working[order_id] = order
        elif before is not None:
            book.working[order_id] = before
        return reason

    def filled(
        self,
        order_id: str,
        *,
        strategy: str,
        instrument: str,
        is_buy: bool,
        quantity: Decimal,
        price: Decimal,
        commission: Decimal,
    ) -> None:
        """Count an execution."""
        book = self._books[instrument]
        signed = quantity if is_buy else -quantity
        book.positions[strategy] = book.positions.get(strategy, _ZERO) + signed
        self._cash -= signed * price * book.multiplier + commission
        working = book.working.get(order_id)
        if working is not None:
            working.leaves -= quantity
            if working.leaves <= 0:
                del book.working[order_id]
        self.mark(instrument, price)

    def sent(
        self,
        order_id: str,
        *,
        strategy: str,
        instrument: str,
        is_buy: bool,
        quantity: Decimal,
        reduce_only: bool,
    ) -> None:
        """Count an order that nobody asked for (Nautilus closes a position by one of its own)."""
        book = self._books[instrument]
        book.working.setdefault(
            order_id, _Working(strategy, 1 if is_buy else -1, quantity, _ZERO, reduce_only)
        )

    def changed(
        self, order_id: str, *, instrument: str, leaves: Decimal, worst: Decimal | None
    ) -> None:
        """Note what an order is after a change was made or refused by the venue."""
        book = self._books[instrument]
        working = book.working.get(order_id)
        if working is None:
            return
        working.changes = max(working.changes - 1, 0)
        if working.changes:
            working.leaves = max(working.leaves, leaves)
            working.worst = max(working.worst, worst or _ZERO)
        elif leaves > 0:
            working.leaves, working.worst = leaves, worst or _ZERO
        else:
            del book.working[order_id]

    def closed(self, order_id: str, *, instrument: str) -> None:
        """Note that an order will not fill any more."""
        self._books[instrument].working.pop(order_id, None)

    def refuse(self, limit: str, reason: str) -> str:
        """Count a refusal, and return what the strategy is told."""
        self.refused[limit] = self.refused.get(limit, 0) + 1
        return f"risk: {reason}"

    def _reason(
        self, book: _Book, order: _Working, price: Decimal | None, at_once: bool, now_ns: int
    ) -> str | None:
        while self._sent and now_ns - self._sent[0] >= MINUTE_NS:
            self._sent.popleft()
        if order.reduce_only:
            return None
        closes = min(book.closable(order.strategy, order.sign), order.leaves)
        if closes == order.leaves and (at_once or not self._latched):
            return None
        if self._latched:
            return self.refuse("drawdown_max", "equity has fallen by more than drawdown_max")
        if price is None:
            return self.refuse("price", "no market price to value the order at")
        value = max(price, order.worst) * book.multiplier
        if order.leaves * value > self._order_max:
            return self.refuse(
                "order_notional_max",
                f"order of {order.leaves * value:.2f} is above order_notional_max "
                f"{self._order_max}",
            )
        opens = order.leaves - closes if at_once else order.leaves
        after = book.reach(order.sign, price) + opens * value
        if after > self._position_max:
            return self.refuse(
                "position_notional_max",
                f"position of {after:.2f} would be above position_notional_max "
                f"{self._position_max}",
            )
        if len(self._sent) >= self._rate_max:
            return self.refuse(
                "orders_per_minute_max",
                f"{len(self._sent)} orders in 60 s; orders_per_minute_max is {self._rate_max}",
            )
        return None


def bus_signal_refusal(
    signal: TradingSignal, limits: RiskConfig, *, now_ns: int, mid: float
) -> str | None:
    """Say why a signal must not be acted on now; None: it may.

    Parameters
    ----------
    signal
        From the bus, of the instrument that ``mid`` is of.
    limits
        Age and distance allowed.
    now_ns
        The node's clock, which is the clock of ``ts_event`` too.
    mid
        Of the last quote.
    """
    if signal.valid_until is None:
        return "expired: it has no valid_until"
    if now_ns > signal.valid_until:
        return "expired"
    if signal.ts_event > now_ns:
        return "risk: it is from the future"
    if now_ns - signal.ts_event > limits.signal_age_ms_max * 1e6:
        return "expired: older than signal_age_ms_max"
    if signal.price is None:
        return "risk: it names no price"
    off_bp = abs(float(signal.price) / mid - 1.0) * 1e4
    if not off_bp <= limits.price_deviation_bp_max:
        return f"risk: its price is {off_bp:.1f} bp off the mid"
    return None
