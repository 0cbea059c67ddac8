"""How long callbacks take, sampled; and a pulse in event time.

A sample must not slow what it measures. At every pulse the sampler shadows each watched callback
by a timed one for the next ``CALLS_PER_PULSE`` calls, which then takes itself away again, so that
between samples nothing is added to an event. Nautilus looks a callback up on the object at every
event, so a shadow on the instance is seen at once. Durations include about 40 ns for the clock.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import numpy as np
from nautilus_trader.common import DataActor, DataActorConfig, TimeEvent
from nautilus_trader.model import ActorId

from qbtc.trading.result import Histogram
from qbtc.trading.strategy import QbtcStrategy, SignalBoard

__all__ = ["CALLS_PER_PULSE", "PULSES", "DurationSampler", "Pulse"]

PULSES = 1000
"""Pulses per run: the resolution of the progress bar and of Ctrl-C."""
CALLS_PER_PULSE = 8
_CALLBACKS = ("on_quote", "on_trade", "on_book_deltas", "on_bar", "on_model_signal")

type _Callback = Callable[..., object]


class DurationSampler:
    """Times of the callbacks of the components it was given."""

    def __init__(self) -> None:
        self._durations: dict[str, list[int]] = {}
        self._shadows: list[Callable[[], None]] = []

    def add(self, name: str, component: Any) -> None:
        """Watch the callbacks that a component implements itself."""
        for callback in _CALLBACKS:
            own = callback in vars(component) or any(
                callback in vars(cls)
                for cls in type(component).__mro__
                if cls is not QbtcStrategy and not cls.__module__.startswith("nautilus_trader")
            )
            if own and callback != "on_model_signal":
                durations = self._durations.setdefault(f"{name}.{callback}", [])
                self._shadows.append(_attribute_shadow(component, callback, durations))

    def add_board(self, board: SignalBoard, instrument: str) -> None:
        """Watch the strategies' ``on_model_signal``, called through the board."""
        durations = self._durations.setdefault(f"{instrument}.on_model_signal", [])
        handlers = board.handlers(instrument)

        def shadow() -> None:
            for index, handler in enumerate(handlers):
                if not hasattr(handler, "__wrapped__"):
                    restore = partial(handlers.__setitem__, index, handler)
                    handlers[index] = _timed(handler, durations, restore)

        self._shadows.append(shadow)

    def pulse(self) -> None:
        """Time the next few calls of every watched callback."""
        for shadow in self._shadows:
            shadow()

    def histograms(self, events: int) -> dict[str, Histogram]:
        """Sum up what was sampled in a run of so many events."""
        return {name: _histogram(ns, events) for name, ns in self._durations.items() if ns}


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
        self._interval = max((span_ns[1] - span_ns[0]) // PULSES, 1_000)
        self._beat = beat

    def on_start(self) -> None:
        """Set the timer."""
        self.clock.set_timer_ns("pulse", self._interval)

    def on_time_event(self, event: TimeEvent) -> None:
        """Beat."""
        self._beat(event.ts_event)


def _attribute_shadow(component: Any, name: str, durations: list[int]) -> Callable[[], None]:
    own = vars(component)

    def shadow() -> None:
        before = own.get(name)
        if hasattr(before, "__wrapped__"):
            return
        target = getattr(component, name)

        def restore() -> None:
            if before is None:
                own.pop(name, None)
            else:
                own[name] = before

        own[name] = _timed(target, durations, restore)

    return shadow


def _timed(target: _Callback, durations: list[int], restore: Callable[[], None]) -> Any:
    left = CALLS_PER_PULSE
    clock = time.perf_counter_ns

    def timed(*args: object) -> None:
        nonlocal left
        begin = clock()
        target(*args)
        durations.append(clock() - begin)
        left -= 1
        if left <= 0:
            restore()

    timed.__wrapped__ = target  # type: ignore[attr-defined]
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
