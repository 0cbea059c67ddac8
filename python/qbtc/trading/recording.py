"""Rows of a run for the records: signals, orders, what happened to them, fills.

A backtest gives its orders and trades the same ids every time, so their ``scope`` is the run.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import Protocol

import msgspec

from qbtc.messages import Signal
from qbtc.messages.events import OrderEvent, TradingSignal
from qbtc.store.records import FillRecord, OrderEventRecord, OrderRecord, Record, SignalRecord
from qbtc.trading.desk import signal_id
from qbtc.trading.journal import OrderState, decimal_text
from qbtc.trading.relay import signal_message

__all__ = ["RecordSink", "RunRecords"]

_PRICE_STEP = Decimal("1e-12")
_NODE = "node"


class RecordSink(Protocol):
    """Takes records without waiting (a ``Recorder``)."""

    def put(self, record: Record) -> None:
        """Take one."""
        ...


class RunRecords:
    """Writes rows of one run.

    Parameters
    ----------
    sink
        Takes them.
    run_id, venue
        Of the run.
    """

    def __init__(self, sink: RecordSink, *, run_id: str, venue: str) -> None:
        self._sink = sink
        self._run_id = run_id
        self._venue = venue

    def order_event(self, event: OrderEvent, order: OrderState) -> None:
        """Write what happened, the order after it, and the fill if it is one."""
        put, scope = self._sink.put, self._run_id
        rest = msgspec.to_builtins(event)
        for name in ("order_id", "sequence", "kind", "ts_event", "ts_init", "reason"):
            del rest[name]
        put(
            OrderRecord(
                order_id=event.order_id,
                scope=scope,
                sequence=event.sequence,
                run_id=self._run_id,
                signal_id=event.signal_id,
                strategy=event.strategy,
                instrument=event.instrument,
                side=event.side,
                order_type=event.order_type,
                quantity=event.quantity,
                price=event.price,
                filled=event.filled,
                average_price=_average(order),
                status=event.status,
                ts_init=order.ts_init,
                ts_last=event.ts_event,
            )
        )
        put(
            OrderEventRecord(
                order_id=event.order_id,
                scope=scope,
                sequence=event.sequence,
                kind=event.kind,
                ts_event=event.ts_event,
                ts_init=event.ts_init,
                reason=event.reason,
                data=rest,
            )
        )
        if event.fill is not None:
            put(
                FillRecord(
                    venue=self._venue,
                    trade_id=event.fill.trade_id,
                    order_id=event.order_id,
                    scope=scope,
                    run_id=self._run_id,
                    strategy=event.strategy,
                    instrument=event.instrument,
                    side=event.side,
                    price=event.fill.price,
                    quantity=event.fill.quantity,
                    commission=event.fill.commission,
                    commission_currency=event.fill.commission_currency,
                    liquidity=event.fill.liquidity,
                    ts_event=event.ts_event,
                )
            )

    def acted(self, identity: str, instrument: str, signal: Signal) -> None:
        """Write a signal of the run's own models that an order acts on."""
        assert identity == signal_id(self._run_id, instrument, signal)
        self._model_signal(instrument, signal, "acted")

    def published(self, instrument: str) -> Callable[[Signal, object], None]:
        """Make a handler that writes every signal of an instrument."""
        return lambda signal, _: self._model_signal(instrument, signal, "published")

    def bus_signal(self, signal: TradingSignal, sender: str, outcome: str) -> None:
        """Write a signal from the bus and what became of it."""
        self._sink.put(_row(signal, self._run_id, sender, outcome))

    def _model_signal(self, instrument: str, signal: Signal, outcome: str) -> None:
        said = signal_message(signal, run_id=self._run_id, instrument=instrument, horizon_ns=1)
        self._sink.put(_row(said, self._run_id, _NODE, outcome))


def _row(signal: TradingSignal, run_id: str, source: str, outcome: str) -> SignalRecord:
    return SignalRecord(
        signal_id=signal.signal_id,
        ts_event=signal.ts_event,
        ts_init=signal.ts_init,
        run_id=run_id,
        instrument=signal.instrument,
        action=signal.action,
        confidence=signal.confidence,
        p_down=signal.p_down,
        p_flat=signal.p_flat,
        p_up=signal.p_up,
        price=signal.price,
        model=signal.model,
        source=source,
        outcome=outcome,
    )


def _average(order: OrderState) -> str | None:
    if not order.filled:
        return None
    return decimal_text((order.value / order.filled).quantize(_PRICE_STEP).normalize())
