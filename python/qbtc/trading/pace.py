"""Hold a replay back to the wall clock, so that what answers over a bus can keep up with it."""

import time
from collections.abc import Callable
from typing import Self

from nautilus_trader.common import DataActor, DataActorConfig, TimeEvent
from nautilus_trader.model import ActorId

__all__ = ["Pacer"]

STEP_S = 0.001
"""Wall time between two looks at the clock."""


class Pacer(DataActor):
    """Lets market time run at most ``speed`` times as fast as the wall clock.

    Parameters
    ----------
    start_ns
        Time of the first event.
    speed
        Market seconds per second, above 0.
    clock, sleep
        Wall clock in seconds, and how to wait.
    """

    def __new__(cls, start_ns: int, speed: float, **_: object) -> Self:
        """Hand Nautilus its own config; it takes the id here, not in ``__init__``."""
        config = DataActorConfig(actor_id=ActorId("Pacer-000"), log_events=False)
        return super().__new__(cls, config)  # type: ignore[call-arg]

    def __init__(
        self,
        start_ns: int,
        speed: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._start_ns = start_ns
        self._speed = speed
        self._now = clock
        self._sleep = sleep
        self._began = 0.0

    def on_start(self) -> None:
        """Set the timer."""
        self._began = self._now()
        self.clock.set_timer_ns("pace", max(round(self._speed * STEP_S * 1e9), 1_000))

    def on_time_event(self, event: TimeEvent) -> None:
        """Wait until the wall clock has come as far."""
        ahead_s = (event.ts_event - self._start_ns) / 1e9 / self._speed
        wait_s = self._began + ahead_s - self._now()
        if wait_s > 0:
            self._sleep(wait_s)
        else:
            # What was late stays late: to catch up would be faster than anybody was promised.
            self._began -= wait_s
