"""The feature engine against its slow twin, and its two paths against each other.

Tolerance: values are float32, so one rounding is 6e-8 of the value; the leaky sums add up over up
to 1e5 decays of 1e-16 each, and sums of both signs may cancel, which leaves an absolute error of
about 1e-9 of what was added. 1e-5 relative and 2e-6 absolute leave two orders of room.
"""

from pathlib import Path

import numpy as np
import pytest
from feature_streams import random_columns, synthetic_columns

from qbtc.config.data import RecordingSource
from qbtc.core.columns import EventColumns, EventKind
from qbtc.core.features import FEATURE_NAMES, FeatureEngine, bulk_features, feature_table
from qbtc.core.reference import STALE_S, WARM_UP_S, reference_features
from qbtc.data.catalog import open_source

RTOL, ATOL = 1e-5, 2e-6


def assert_equals_reference(columns: EventColumns, every: int, warm_rows_min: int) -> None:
    bulk = bulk_features(columns)
    rows, want = reference_features(columns, every)
    got = bulk.X[rows]
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    assert bulk.warm[rows].sum() >= warm_rows_min
    for i, name in enumerate(FEATURE_NAMES):
        np.testing.assert_allclose(got[:, i], want[:, i], rtol=RTOL, atol=ATOL, err_msg=name)


def event_rows(columns: EventColumns) -> np.ndarray:
    """Features at every quote by the event path, (n_quotes, 26)."""
    engine = FeatureEngine(columns.price_increment, columns.size_increment)
    rows = []
    arrays = (
        getattr(columns, name).tolist() for name in ("ts", "kind", "side", "a", "b", "c", "d")
    )
    for ts, kind, side, a, b, c, d in zip(*arrays, strict=True):
        match kind:
            case EventKind.QUOTE:
                engine.on_quote(ts, a, b, c, d)
                rows.append(engine.values())
            case EventKind.TRADE:
                engine.on_trade(ts, a, b, side)
            case EventKind.DEPTH:
                engine.on_depth_batch(ts, [(side, a, b)])
            case EventKind.DEPTH_CLEAR:
                engine.on_depth_clear(ts)
            case _:
                engine.on_lead_quote(ts, a, c)
    return np.array(rows)


@pytest.fixture(scope="module")
def recording(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> EventColumns:
    """The BTC perpetual with the spot market as its lead."""
    cache = tmp_path_factory.mktemp("catalog")

    def columns(file: str, instrument: str, types: tuple[str, ...]) -> EventColumns:
        source = RecordingSource(path=f"l2/{file}_20240808.gz", instrument=instrument, types=types)
        return open_source(source, real_data, cache_dir=cache).columns()

    perpetual = columns("usdm_btcusdt", "BTCUSDT-PERP.BINANCE", ("quotes", "trades", "depth"))
    return perpetual.with_lead(columns("spot_btcusdt", "BTCUSDT.BINANCE", ("quotes",)))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_harsh_random_stream_equals_the_reference(seed: int) -> None:
    assert_equals_reference(random_columns(seed, 20_000), every=17, warm_rows_min=100)


def test_a_synthetic_market_equals_the_reference() -> None:
    assert_equals_reference(synthetic_columns(7, 120.0), every=97, warm_rows_min=100)


@pytest.mark.realdata
def test_a_real_recording_equals_the_reference(recording: EventColumns) -> None:
    assert_equals_reference(recording, every=997, warm_rows_min=40)


@pytest.mark.parametrize("seed", [4, 5])
def test_event_and_bulk_path_give_equal_bits_on_a_random_stream(seed: int) -> None:
    columns = random_columns(seed, 30_000)
    assert event_rows(columns).tobytes() == bulk_features(columns).X.tobytes()


@pytest.mark.realdata
def test_event_and_bulk_path_give_equal_bits_on_a_real_recording(recording: EventColumns) -> None:
    assert event_rows(recording).tobytes() == bulk_features(recording).X.tobytes()


@pytest.mark.realdata
def test_a_real_recording_with_every_source_has_every_feature(recording: EventColumns) -> None:
    bulk = bulk_features(recording)
    assert bulk.warm.mean() > 0.7
    assert np.isfinite(bulk.X[bulk.warm]).all()
    assert (np.nanstd(bulk.X[bulk.warm], axis=0) > 0).all()


def test_the_reference_keeps_the_time_limits_of_the_table() -> None:
    for row in feature_table():
        assert WARM_UP_S[row.update_class] == row.warm_up_s
        assert STALE_S[row.update_class] == row.stale_s
