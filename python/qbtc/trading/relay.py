"""Copies of a run's signals, order events and fills on their way to the bus.

On the node's thread a copy is an append to a bounded queue; where it is full, the oldest makes
room and is counted. The rest happens in ``run``, on the thread of the bus: a broker that is slow or
away costs copies, never time. Orders and fills have a queue of their own, so that a flood of
signals does not push them out.
"""

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from qbtc.bus import Bus
from qbtc.core.signal_model import SignalModel
from qbtc.errors import BusError, MessageError
from qbtc.messages import Signal
from qbtc.messages.envelope import Message, message
from qbtc.messages.events import OrderEvent, TradingSignal, likeliest
from qbtc.trading.desk import signal_id
from qbtc.trading.journal import OrderState
from qbtc.trading.result import RelayCounts

__all__ = ["Relay", "price_text", "signal_message"]

IN_FLIGHT_MAX = 64
"""Messages that wait for the broker's word at the same time."""
POLL_S = 0.002
"""How often the queues are looked at while they are empty."""
PUBLISH_S_MAX = 10.0


class Relay:
    """Sends copies.

    Parameters
    ----------
    run_id, source
        Of the run; who sends.
    kinds
        Of ``signals``, ``orders`` and ``fills``.
    queue_max
        Signals, and order events, that wait.
    signal_every_ns
        Event time between two copies of an instrument's signals, at least.
    """

    def __init__(
        self,
        *,
        run_id: str,
        source: str,
        kinds: Collection[str],
        queue_max: int,
        signal_every_ns: int = 0,
    ) -> None:
        self._run_id = run_id
        self._source = source
        self._kinds = frozenset(kinds)
        self._every_ns = signal_every_ns
        self._signals: deque[tuple[Signal, Callable[[Signal], TradingSignal]]] = deque(
            maxlen=queue_max
        )
        self._events: deque[OrderEvent] = deque(maxlen=queue_max)
        # Each count belongs to one thread; what was offered and not taken, the queue has dropped.
        self._offered = [0]  # signals; a list, so that a closure counts without an attribute
        self._happened: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._flying: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        """What nobody foresaw; it ends the relay."""

    @property
    def kinds(self) -> frozenset[str]:
        """What is copied."""
        return self._kinds

    def signal_handler(
        self, instrument: str, model: SignalModel, model_sha256: str
    ) -> Callable[[Signal, object], None]:
        """Make the handler that copies an instrument's signals."""
        append, offered = self._signals.append, self._offered
        run_id, horizon_ns = self._run_id, model.metadata.label_horizon_ns

        def convert(signal: Signal) -> TradingSignal:
            return signal_message(
                signal,
                run_id=run_id,
                instrument=instrument,
                horizon_ns=horizon_ns,
                model=model.path.name,
                model_sha256=model_sha256,
            )

        def copy(signal: Signal, _: object) -> None:
            offered[0] += 1
            append((signal, convert))

        every_ns = self._every_ns
        if not every_ns:
            return copy
        due_ns = 0

        def copy_some(signal: Signal, _: object) -> None:
            nonlocal due_ns
            ts = signal.ts_event
            if ts >= due_ns:
                due_ns = ts + every_ns
                copy(signal, _)

        return copy_some

    def order_event(self, event: OrderEvent, _: OrderState) -> None:
        """Copy what happened to an order."""
        kind = _kind(event)
        if kind in self._kinds:
            self._happened[kind] += 1
            self._events.append(event)

    async def run(self, bus: Bus, stopped: asyncio.Event) -> None:
        """Send until told to stop and the queues are empty; cancel it to give up on what is left.

        Every copy that was not sent is counted as dropped.
        """
        try:
            while True:
                while len(self._flying) >= IN_FLIGHT_MAX:
                    await asyncio.wait(self._flying, return_when=asyncio.FIRST_COMPLETED)
                if self._error is not None:
                    raise self._error
                item = self._next()
                if item is not None:
                    kind, copy = item
                    task = asyncio.create_task(bus.publish(copy, timeout_s=PUBLISH_S_MAX))
                    self._flying.add(task)
                    task.add_done_callback(partial(self._landed, kind))
                elif stopped.is_set():
                    if self._flying:
                        await asyncio.wait(self._flying)
                    if self._error is not None:
                        raise self._error
                    return
                else:
                    await asyncio.sleep(POLL_S)
        finally:
            flying = tuple(self._flying)
            for task in flying:
                task.cancel()
            await asyncio.gather(*flying, return_exceptions=True)

    def counts(self) -> dict[str, RelayCounts]:
        """Count by kind, after the end; what still waits is dropped."""
        offered = self._happened | Counter(signals=self._offered[0])
        return {
            kind: RelayCounts(
                sent=self._sent[kind],
                dropped=offered[kind] - self._taken[kind] + self._failed[kind],
            )
            for kind in ("signals", "orders", "fills")
            if kind in self._kinds
        }

    def _next(self) -> tuple[str, Message] | None:
        """Take the oldest order event, or else the oldest signal, as a message."""
        try:
            event = self._events.popleft()
        except IndexError:
            pass
        else:
            named = f"{event.run_id}|{event.order_id}|{event.sequence}"
            identity = hashlib.blake2b(named.encode(), digest_size=16).hexdigest()
            self._taken[_kind(event)] += 1
            return _kind(event), self._message(event, identity, event.instrument)
        try:
            signal, convert = self._signals.popleft()
        except IndexError:
            return None
        self._taken["signals"] += 1
        data = convert(signal)
        return "signals", self._message(data, data.signal_id, data.instrument)

    def _message(self, data: Any, identity: str, subject: str) -> Message:
        return message(
            data, source=self._source, subject=subject, id=identity, correlationid=self._run_id
        )

    def _landed(self, kind: str, task: asyncio.Task[None]) -> None:
        """Count a copy."""
        self._flying.discard(task)
        error = None if task.cancelled() else task.exception()
        sent = not task.cancelled() and error is None
        (self._sent if sent else self._failed)[kind] += 1
        if error is not None and not isinstance(error, BusError | MessageError):
            self._error = self._error or error


def signal_message(
    signal: Signal,
    *,
    run_id: str,
    instrument: str,
    horizon_ns: int,
    model: str = "",
    model_sha256: str = "",
) -> TradingSignal:
    """Say a model's signal as a message; it is good for the horizon that it speaks of."""
    action, confidence = likeliest(signal.p_down, signal.p_flat, signal.p_up)
    return TradingSignal(
        signal_id=signal_id(run_id, instrument, signal),
        instrument=instrument,
        action=action,
        confidence=confidence,
        p_down=signal.p_down,
        p_flat=signal.p_flat,
        p_up=signal.p_up,
        price=price_text(signal.mid),
        ts_event=signal.ts_event,
        ts_init=signal.ts_event,
        valid_until=signal.ts_event + horizon_ns,
        horizon_ns=horizon_ns,
        model=model,
        model_sha256=model_sha256,
        run_id=run_id,
    )


def price_text(price: float) -> str:
    """Write a mid to a hundred-millionth."""
    return f"{price:.8f}".rstrip("0").rstrip(".")


def _kind(event: OrderEvent) -> str:
    return "orders" if event.fill is None else "fills"
