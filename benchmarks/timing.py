"""Time contenders against each other, fairly, on a machine that others use too.

A *burst* is one short measurement of one contender; it returns the time per operation of each
timed block. Contenders take turns, the order turns with every round, and a ratio is formed inside
each round before the median over rounds is taken: a slow second slows both sides of a pair.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

type Burst = Callable[[], NDArray[np.float64] | float]
"""One measurement: ns per operation of every timed block (or of the only one)."""


@dataclass(frozen=True)
class Samples:
    """What one contender needed: one array of ns per operation for each round."""

    rounds: tuple[NDArray[np.float64], ...]

    @property
    def p50(self) -> float:
        """Median over all blocks of all rounds, ns."""
        return float(np.percentile(np.concatenate(self.rounds), 50))

    @property
    def p99(self) -> float:
        """99th percentile over all blocks of all rounds, ns."""
        return float(np.percentile(np.concatenate(self.rounds), 99))

    @property
    def medians(self) -> NDArray[np.float64]:
        """Median of each round, ns (rounds,)."""
        return np.array([np.median(r) for r in self.rounds])

    def minus(self, other: "Samples") -> "Samples":
        """Return the differences of the round medians: what this costs above ``other``."""
        return Samples(tuple(np.array([d]) for d in self.medians - other.medians))

    def times_faster_than(self, other: "Samples") -> float:
        """Median over the rounds of (their median / our median)."""
        return float(np.median(other.medians / self.medians))


def interleave(
    benchmark: BenchmarkFixture, contenders: dict[str, Burst], *, rounds: int, warmup: int = 1
) -> dict[str, Samples]:
    """Run every contender once per round, in turning order; garbage collection is off.

    Parameters
    ----------
    benchmark
        pytest-benchmark's fixture; it sees one call per round.
    contenders
        Name to burst.
    rounds, warmup
        Measured rounds and those thrown away before.

    Returns
    -------
    dict of str to Samples
        In the order of ``contenders``.
    """
    names = list(contenders)
    taken: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    turn = 0

    def one_round() -> None:
        nonlocal turn
        order = names[turn % len(names) :] + names[: turn % len(names)]
        turn += 1
        for name in order:
            gc.collect()
            gc.disable()
            try:
                blocks = np.atleast_1d(np.asarray(contenders[name](), dtype=np.float64))
            finally:
                gc.enable()
            taken[name].append(blocks)

    benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=warmup, iterations=1)
    return {name: Samples(tuple(taken[name][-rounds:])) for name in names}


def python_calls(
    call: Callable[[object], object], rows: Sequence[object], *, blocks: int = 200, calls: int = 20
) -> Burst:
    """Return a burst of ``blocks`` timed blocks of ``calls`` calls, one row each.

    The loop around the call costs about 15 ns per call and is the same for every contender.
    """
    if len(rows) < calls:
        raise ValueError(f"need at least {calls} rows, got {len(rows)}")
    groups = [rows[i : i + calls] for i in range(0, len(rows) - calls + 1, calls)]

    def burst() -> NDArray[np.float64]:
        clock = time.perf_counter_ns
        out = np.empty(blocks)
        for block in range(blocks):
            group = groups[block % len(groups)]
            start = clock()
            for row in group:
                call(row)
            out[block] = (clock() - start) / calls
        return out

    return burst


def whole(call: Callable[[], object], operations: int) -> Burst:
    """Return a burst that times one call as ``operations`` operations."""

    def burst() -> float:
        start = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start) / operations

    return burst
