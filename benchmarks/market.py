"""What the benchmarks run on: a synthetic market, the same for everybody, and the real recording.

Kernels are timed on the synthetic market (seeded, 1100 events a second, mostly depth), the bulk
path on the recording, since there the peer's file is given.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qbtc import _core
from qbtc.config.data import RecordingSource, SyntheticSource
from qbtc.core.columns import EventColumns, EventKind
from qbtc.data.catalog import Dataset, open_source

SEED = 7
START_NS = 1_704_067_200_000_000_000
HORIZON_NS = 1_000_000_000
INSTRUMENT = "BTCUSDT-PERP.BINANCE"
RECORDING = "l2/usdm_btcusdt_20240808.gz"
_COLUMNS = ("ts", "kind", "side", "a", "b", "c", "d")


def synthetic(duration_s: float) -> EventColumns:
    """Return ``duration_s`` of the synthetic market."""
    columns = _core.simulate_market(seed=SEED, duration_s=duration_s, start_ns=START_NS)
    del columns["latent"]
    return EventColumns(
        **columns,
        instrument=INSTRUMENT,
        price_increment=0.1,
        size_increment=0.001,
        synthetic=True,
    )


def synthetic_catalog(duration_s: float, folder: Path) -> Dataset:
    """Import ``duration_s`` of the synthetic market into a catalog below ``folder``."""
    source = SyntheticSource(instrument=INSTRUMENT, seed=SEED, duration_s=duration_s)
    return open_source(source, folder, cache_dir=folder)


def only(columns: EventColumns, kind: EventKind) -> EventColumns:
    """Return the events of one kind, after the first quote (trades need a market to be in)."""
    keep = columns.kind == kind
    keep[np.flatnonzero(columns.kind == EventKind.QUOTE)[0]] = True
    return replace(columns, **{name: getattr(columns, name)[keep] for name in _COLUMNS})


def labels(ts: NDArray[np.int64], mid: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return 0 (down), 1 (flat), 2 (up): the sign of the move of the mid over one second."""
    last = np.searchsorted(ts, ts + HORIZON_NS, side="right") - 1
    return np.sign(mid[last] - mid).astype(np.int64) + 1


def recording_path() -> Path:
    """Return the real depth recording; skips the benchmark where the data folder is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("QBTC_REAL_DATA", default)) / RECORDING
    if not path.is_file():
        pytest.skip(f"no {RECORDING} in the real data folder (QBTC_REAL_DATA)")
    return path


def recording(folder: Path) -> Dataset:
    """Import the real depth recording into a catalog below ``folder``, or reuse it."""
    source = RecordingSource(instrument=INSTRUMENT, path=str(recording_path()))
    return open_source(source, folder, cache_dir=folder)
