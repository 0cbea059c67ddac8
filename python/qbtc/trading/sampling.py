"""How long callbacks take, sampled; and a pulse in event time.

A sample must not slow what it measures. At every pulse each listener is timed for the next
``CALLS_PER_PULSE`` calls, and then called plainly again: between samples nothing is added to an
event. Durations include about 40 ns for the clock, and a listener's own calls of others (a signal
actor's include those of the strategies it signals to).
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, Self

import numpy as np
from nautilus_trader.common import DataActor, DataActorConfig, TimeEvent
from nautilus_trader.model import ActorId

from qbtc.trading.feeds import CALLS_PER_PULSE, Feed
from qbtc.trading.result import Histogram
from qbtc.trading.strategy import SignalBoard, SignalHandler

__all__ = ["PULSES", "DurationSampler", "Pulse"]

PULSES = 1000
"""Pulses per run: the resolution of the progress bar and of Ctrl-C."""


class DurationSampler:
    """Times of the callbacks of a node.

    Parameters
    ----------
    feeds
        Their listeners are timed.
    board, instruments
        So are the handlers of these instruments' signals.
    """

    def __init__(
        self,
        feeds: Iterable[Feed] = (),
        board: SignalBoard | None = None,
        instruments: Iterable[str] = (),
    ) -> None:
        self._feeds = tuple(feeds)
        self._boards = (
            [] if board is None else [(name, board.handlers(name)) for name in instruments]
        )
        self._durations: dict[str, list[int]] = {}

    def pulse(self) -> None:
        """Time the next few calls."""
        for feed in self._feeds:
            feed.time_next_calls()
        for name, handlers in self._boards:
            durations = self._durations.setdefault(f"{name}.on_model_signal", [])
            for index, handler in enumerate(handlers):
                if not hasattr(handler, "__wrapped__"):
                    handlers[index] = _timed(handler, durations, handlers, index)

    def histograms(self, events: int) -> dict[str, Histogram]:
        """Sum up what was sampled in a run of so many events."""
        durations = dict(self._durations)
        for feed in self._feeds:
            durations |= feed.durations
        return {name: _histogram(ns, events) for name, ns in sorted(durations.items()) if ns}


class Pulse(DataActor):
    """Calls a function at regular event times.

    Parameters
    ----------
    span_ns
        First and last event; ``PULSES`` pulses are spread over it.
    beat
        Called with the event time in ns.
    """

    def __new__(cls, span_ns: tuple[int, int], beat: Callable[[int], None]) -> Self:
        """Hand Nautilus its own config; it takes the id here, not in ``__init__``."""
        config = DataActorConfig(actor_id=ActorId("Pulse-000"), log_events=False)
        return super().__new__(cls, config)  # type: ignore[call-arg]

    def __init__(self, span_ns: tuple[int, int], beat: Callable[[int], None]) -> None:
        self._end = span_ns[1]
        self._interval = max((span_ns[1] - span_ns[0]) // PULSES, 1_000)
        self._beat = beat

    def at_end(self) -> bool:
        """Say whether event time has reached the end of the span."""
        return self.clock.timestamp_ns() >= self._end

    def on_start(self) -> None:
        """Set the timer."""
        self.clock.set_timer_ns("pulse", self._interval)

    def on_time_event(self, event: TimeEvent) -> None:
        """Beat."""
        self._beat(event.ts_event)


def _timed(
    handler: SignalHandler, durations: list[int], handlers: list[SignalHandler], index: int
) -> Any:
    left = CALLS_PER_PULSE
    clock = time.perf_counter_ns

    def timed(signal: Any, quote: Any) -> None:
        nonlocal left
        begin = clock()
        handler(signal, quote)
        durations.append(clock() - begin)
        left -= 1
        if left <= 0:
            handlers[index] = handler

    timed.__wrapped__ = handler  # type: ignore[attr-defined]
    return timed


def _histogram(durations: list[int], events: int) -> Histogram:
    ns = np.asarray(durations, dtype=np.int64)
    bins = np.bincount(np.log2(np.maximum(ns, 1)).astype(np.int64))
    p50, p99 = np.percentile(ns, [50, 99])
    return Histogram(
        counts=tuple(int(count) for count in bins),
        samples=len(ns),
        sampled_every=max(1, round(events / len(ns))),
        p50_ns=float(p50),
        p99_ns=float(p99),
        max_ns=float(ns.max()),
    )
