"""A replay that is held back to the wall clock."""

from types import SimpleNamespace

from qbtc.trading.pace import Pacer

START_NS = 1_704_067_200_000_000_000


class Wall:
    """A clock that moves when it is slept on, or told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_market_time_is_never_faster_than_told_also_after_a_stall() -> None:
    wall = Wall()
    pacer = Pacer(START_NS, 10.0, clock=lambda: wall.now, sleep=wall.sleep)
    pacer._began = wall.now

    def reach(market_s: float) -> float:
        pacer.on_time_event(SimpleNamespace(ts_event=START_NS + round(market_s * 1e9)))
        return wall.now

    assert reach(10.0) == 101.0
    wall.now = 105.0  # the machine was busy with something else
    assert reach(20.0) == 105.0
    assert reach(30.0) == 106.0
