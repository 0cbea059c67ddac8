"""Random event streams for the feature tests: harsher than any market, but legal."""

import numpy as np

from qbtc import _core
from qbtc.core.columns import EventColumns, EventKind

START_NS = 1_700_000_000_000_000_000
COLUMNS = ("ts", "kind", "side", "a", "b", "c", "d")


def random_columns(seed: int, n: int, *, gap_s: float = 0.02) -> EventColumns:
    """``n`` events of all kinds: jumps, ties, silences, clears, levels on the wrong side."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(gap_s * 1e9, n) * rng.choice(
        [0, 1, 1, 1, 30], n, p=[0.2, 0.3, 0.3, 0.19, 0.01]
    )
    shares = {
        EventKind.QUOTE: 0.3,
        EventKind.TRADE: 0.15,
        EventKind.DEPTH: 0.4,
        EventKind.DEPTH_CLEAR: 0.001,
        EventKind.LEAD_QUOTE: 0.149,
    }
    kind = rng.choice(list(shares), n, p=list(shares.values())).astype(np.uint8)
    steps = rng.integers(-2, 3, n) * (rng.random(n) < 0.5)
    steps += (rng.random(n) < 0.003) * rng.integers(-900, 900, n)
    bid = 600_000 + np.cumsum(steps)
    side = rng.integers(0, 2, n)
    a, b = bid * 0.1, rng.integers(1, 3000, n) * 0.001
    c, d = (bid + rng.integers(1, 4, n)) * 0.1, rng.integers(1, 3000, n) * 0.001
    depth, lead = kind == EventKind.DEPTH, kind == EventKind.LEAD_QUOTE
    a[depth] = (bid + rng.integers(-250, 250, n))[depth] * 0.1
    b[depth & (rng.random(n) < 0.3)] = 0.0
    a[lead] = bid[lead] * 0.1 + rng.normal(5, 2, lead.sum())
    c[lead] = a[lead] + 0.01
    no_cd = ~((kind == EventKind.QUOTE) | lead)
    c[no_cd] = 0.0
    d[no_cd | lead] = 0.0
    b[lead] = 0.0
    sided = depth | (kind == EventKind.TRADE)
    return EventColumns(
        ts=START_NS + np.cumsum(gaps).astype(np.int64),
        kind=kind,
        side=np.where(sided, side, 0).astype(np.uint8),
        a=a,
        b=b,
        c=c,
        d=d,
        instrument="RANDOM.TEST",
        price_increment=0.1,
        size_increment=0.001,
        synthetic=True,
    )


def synthetic_columns(seed: int, duration_s: float) -> EventColumns:
    """Events of the synthetic market, with a second one as its lead."""

    def market(number: int) -> EventColumns:
        arrays = _core.simulate_market(seed=number, duration_s=duration_s, start_ns=START_NS)
        return EventColumns(
            **{name: arrays[name] for name in COLUMNS},
            instrument="SYNTHETIC.TEST",
            price_increment=0.1,
            size_increment=0.001,
            synthetic=True,
        )

    return market(seed).with_lead(market(seed + 1))
