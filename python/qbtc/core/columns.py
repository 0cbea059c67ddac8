"""Market events of one instrument as columns: the input of the bulk path.

One row is one event, in the order in which a running node would see it. The same seven arrays go
into feature extraction, training and evaluation; what each kind of event keeps in ``a`` to ``d``
is said in :class:`EventColumns`. It is a value: nothing here is ever changed in place.
"""

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from qbtc.errors import DataError

__all__ = ["EventColumns", "EventKind"]


class EventKind(IntEnum):
    """What a row is."""

    QUOTE = 0
    TRADE = 1
    DEPTH = 2
    DEPTH_CLEAR = 3
    LEAD_QUOTE = 4


_DTYPES = {
    "ts": np.dtype(np.int64),
    "kind": np.dtype(np.uint8),
    "side": np.dtype(np.uint8),
    "a": np.dtype(np.float64),
    "b": np.dtype(np.float64),
    "c": np.dtype(np.float64),
    "d": np.dtype(np.float64),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class EventColumns:
    """Events of one instrument in columns of equal length ``n``.

    ======================= ======== ===== ======== ===== ========
    kind                    side     a     b        c     d
    ======================= ======== ===== ======== ===== ========
    0 quote                 0        bid   bid size ask   ask size
    1 trade                 0 buy,   price size     0     0
                            1 sell
    2 depth level           0 bid,   price size     0     0
                            1 ask
    3 depth clear           0        0     0        0     0
    4 lead quote            0        bid   0        ask   0
    ======================= ======== ===== ======== ===== ========

    Attributes
    ----------
    ts
        (n,) int64, UNIX ns at which the event became known (``ts_init``); never decreasing.
    kind, side
        (n,) uint8, see above; for a trade the side that took liquidity.
    a, b, c, d
        (n,) float64, prices in quote currency, sizes in base currency; size 0 removes a level.
    instrument
        Instrument id, such as ``BTCUSDT-PERP.BINANCE``.
    price_increment, size_increment
        The instrument's grid.
    synthetic
        The events come from a simulator.

    Raises
    ------
    DataError
        A column has another dtype or length, or time runs backwards. Prices and sizes are
        checked where they are used, by the core.
    """

    ts: npt.NDArray[np.int64]
    kind: npt.NDArray[np.uint8]
    side: npt.NDArray[np.uint8]
    a: npt.NDArray[np.float64]
    b: npt.NDArray[np.float64]
    c: npt.NDArray[np.float64]
    d: npt.NDArray[np.float64]
    instrument: str
    price_increment: float
    size_increment: float
    synthetic: bool

    def __post_init__(self) -> None:
        n = len(self.ts)
        for name, dtype in _DTYPES.items():
            column = getattr(self, name)
            if not isinstance(column, np.ndarray) or column.dtype != dtype or column.ndim != 1:
                raise DataError(f"column {name}: must be a one-dimensional array of {dtype}")
            if len(column) != n:
                raise DataError(f"column {name}: has {len(column)} rows, but ts has {n}")
            if not column.flags.c_contiguous:
                raise DataError(f"column {name}: must be contiguous (numpy.ascontiguousarray)")
        backwards = np.flatnonzero(np.diff(self.ts) < 0)
        if len(backwards):
            row = int(backwards[0]) + 1
            raise DataError(f"column ts: time runs backwards at row {row}; sort the events by ts")

    def __len__(self) -> int:
        return len(self.ts)

    def counts(self) -> dict[str, int]:
        """Events by kind: ``quotes``, ``trades``, ``depth``, ``clears``, ``lead_quotes``."""
        n = np.bincount(self.kind, minlength=len(EventKind))
        return {
            "quotes": int(n[EventKind.QUOTE]),
            "trades": int(n[EventKind.TRADE]),
            "depth": int(n[EventKind.DEPTH]),
            "clears": int(n[EventKind.DEPTH_CLEAR]),
            "lead_quotes": int(n[EventKind.LEAD_QUOTE]),
        }

    def slice_time(self, start: int, end: int) -> "EventColumns":
        """Events with ``start <= ts < end`` (UNIX ns), as views."""
        first, last = np.searchsorted(self.ts, [start, end])
        return self._select(slice(int(first), int(last)))

    def with_lead(self, other: "EventColumns") -> "EventColumns":
        """Merge the quotes of ``other`` in as lead quotes.

        Events of one moment keep their order, those of this instrument first. Lead quotes that
        this already has are dropped. Allocates new columns, O(n log n).
        """
        own = self._select(np.flatnonzero(self.kind != EventKind.LEAD_QUOTE))
        lead = other._select(np.flatnonzero(other.kind == EventKind.QUOTE))
        zero, zero_u8 = np.zeros(len(lead)), np.zeros(len(lead), dtype=np.uint8)
        order = np.argsort(np.concatenate([own.ts, lead.ts]), kind="stable")

        def merge[T: np.generic](ours: npt.NDArray[T], theirs: npt.NDArray[T]) -> npt.NDArray[T]:
            return np.ascontiguousarray(np.concatenate([ours, theirs])[order])

        lead_kind = np.full(len(lead), int(EventKind.LEAD_QUOTE), dtype=np.uint8)
        return replace(
            self,
            synthetic=self.synthetic or other.synthetic,
            ts=merge(own.ts, lead.ts),
            kind=merge(own.kind, lead_kind),
            side=merge(own.side, zero_u8),
            a=merge(own.a, lead.a),
            b=merge(own.b, zero),
            c=merge(own.c, lead.c),
            d=merge(own.d, zero),
        )

    def _select(self, rows: slice | npt.NDArray[np.intp]) -> "EventColumns":
        return replace(self, **{name: getattr(self, name)[rows] for name in _DTYPES})
