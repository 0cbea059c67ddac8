"""The synthetic market: columns, calibration, the known edge, limits.

The runs are seeded, so every number here is exact; the bands say what the calibration means. That
quotes, trades and book agree row by row is proven in ``core-rs/core/tests/synth.rs``.
"""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from qbtc import _core

START_NS = 1_700_000_000_000_000_000
ARGUMENTS: dict[str, Any] = {"seed": 1, "duration_s": 5.0, "start_ns": START_NS}
PRICE_COLUMNS = "abcd"


@pytest.fixture(scope="module")
def calibrate() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "calibrate_synthetic.py"
    spec = importlib.util.spec_from_file_location("calibrate_synthetic", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def market(calibrate: ModuleType) -> dict[str, np.ndarray]:
    return calibrate.synthetic(seed=4, duration_s=1800.0)


def test_columns_have_the_layout_of_event_columns() -> None:
    market = _core.simulate_market(**ARGUMENTS)
    rows = len(market["ts"])
    quotes = int((market["kind"] == 0).sum())
    dtypes = {"ts": "int64", "kind": "uint8", "side": "uint8", "latent": "float32"}
    dtypes |= dict.fromkeys(PRICE_COLUMNS, "float64")
    assert {name: str(column.dtype) for name, column in market.items()} == dtypes
    for name, column in market.items():
        assert column.shape == ((quotes if name == "latent" else rows),)
        assert column.flags.c_contiguous
    assert market["ts"][0] == START_NS
    assert (np.diff(market["ts"]) >= 0).all()
    assert market["ts"][-1] < START_NS + 5 * 10**9
    assert market["kind"][0] == 3  # the book is emptied first, then filled, then quoted
    assert (market["kind"][market["ts"] == START_NS][1:-1] == 2).all()
    assert market["kind"][market["ts"] == START_NS][-1] == 0


def test_prices_and_sizes_are_the_doubles_nearest_to_their_decimals(
    market: dict[str, np.ndarray],
) -> None:
    quote = market["kind"] == 0
    for name, digits in zip(PRICE_COLUMNS, (1, 3, 1, 3), strict=True):
        column = market[name][quote]
        np.testing.assert_array_equal(column, [float(f"{x:.{digits}f}") for x in column])


def test_equal_arguments_give_equal_bits() -> None:
    one, two = (_core.simulate_market(**ARGUMENTS) for _ in range(2))
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    other = _core.simulate_market(**(ARGUMENTS | {"seed": 2}))
    assert other["ts"].tobytes() != one["ts"].tobytes()


BANDS = {
    # Statistic: lowest, highest. The recording lies inside too (tested where it is at hand).
    "quotes per s": (150, 230),
    "trades per s": (50, 80),
    "depth rows per s": (1000, 1500),
    "volume per s": (5, 9),
    "spread median, bp": (0.0155, 0.0175),
    "quotes with spread of 1 tick": (0.93, 0.98),
    "time with spread of 1 tick": (0.98, 0.995),
    "mid moves per s": (5, 8.5),
    "best size median": (2, 3),
    "trade size median": (0.014, 0.019),
    "return 1 s sigma, bp": (1.0, 1.5),
    "return 0.1 s kurtosis": (50, 400),
    "return 1 s kurtosis": (6, 50),
    "return 1 s autocorrelation": (-0.1, 0.2),
    "return 1 s autocorrelation of size": (0.05, 0.3),
    "imbalance IC 0.1 s": (0.09, 0.17),
    "imbalance IC 0.5 s": (0.12, 0.22),
    "imbalance IC 1 s": (0.13, 0.24),
    "imbalance IC 5 s": (0.08, 0.20),
}


def test_statistics_lie_in_the_bands_of_the_calibration(
    calibrate: ModuleType, market: dict[str, np.ndarray]
) -> None:
    measured = calibrate.statistics(market)
    outside = {
        name: measured[name]
        for name, (low, high) in BANDS.items()
        if not low <= measured[name] <= high
    }
    assert not outside


@pytest.mark.realdata
def test_the_recording_lies_in_the_same_bands(calibrate: ModuleType) -> None:
    path = calibrate.recording_path()
    if not path.exists():
        pytest.skip(f"no recording at {path}; set QBTC_REAL_DATA")
    measured = calibrate.statistics(calibrate.recording(path))
    outside = {
        name: measured[name]
        for name, (low, high) in BANDS.items()
        if not low <= measured[name] <= high
    }
    assert not outside


def test_the_signal_predicts_and_its_edge_decays(
    calibrate: ModuleType, market: dict[str, np.ndarray]
) -> None:
    near, later, far = (calibrate.signal_ic(market, 1.0, delay) for delay in (0.0, 3.0, 15.0))
    assert near > 0.15
    # One decay time of 3 s leaves 1/e of it.
    assert later / near == pytest.approx(np.exp(-1), abs=0.15)
    assert abs(far) < 0.06


def test_more_edge_predicts_more(calibrate: ModuleType) -> None:
    weak, strong = (
        calibrate.signal_ic(calibrate.synthetic(seed=4, duration_s=900.0, edge=edge), 1.0)
        for edge in (0.5, 1.5)
    )
    assert 0.05 < weak < strong - 0.1


def test_without_edge_the_signal_predicts_nothing(
    calibrate: ModuleType, market: dict[str, np.ndarray]
) -> None:
    blind = calibrate.synthetic(seed=4, duration_s=1800.0, edge=0.0)
    # 1800 independent returns: four standard errors of a correlation are 0.094.
    assert all(abs(calibrate.signal_ic(blind, 1.0, delay)) < 0.094 for delay in (0.0, 1.0, 3.0))
    # The same hidden signal, only unheeded.
    assert blind["latent"][0] == market["latent"][0]


def test_imbalance_still_predicts_without_edge(calibrate: ModuleType) -> None:
    # Thin queues go first whatever anybody knows: a short-lived, honest signal of the book.
    blind = calibrate.statistics(calibrate.synthetic(seed=4, duration_s=900.0, edge=0.0))
    assert blind["imbalance IC 0.5 s"] > 0.08


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("duration_s", 0.0),
        ("duration_s", float("nan")),
        ("duration_s", 1e6),
        ("edge", -1.0),
        ("edge", 2.5),
        ("start_ns", -1),
        ("price", 10.0),
        ("price", float("inf")),
        ("price_increment", 0.0),
        ("size_increment", -0.001),
    ],
)
def test_a_bad_argument_is_named(field: str, value: float) -> None:
    with pytest.raises(_core.CoreInputError, match=f"^{field}: "):
        _core.simulate_market(**(ARGUMENTS | {field: value}))
