"""The synthetic market in a catalog is the generator's, event by event, and says so."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qbtc.config.data import CatalogSource, SyntheticSource
from qbtc.core.market import simulate_market
from qbtc.data.catalog import open_source
from qbtc.errors import DataError

NS_PER_S = 1_000_000_000


def synthetic(**options: Any) -> SyntheticSource:
    return SyntheticSource(
        **{"instrument": "BTCUSDT-PERP.BINANCE", "seed": 4, "duration_s": 20.0} | options
    )


def test_the_catalog_holds_the_generators_events_in_their_order(tmp_path: Path) -> None:
    dataset = open_source(synthetic(), tmp_path, cache_dir=tmp_path)
    columns = dataset.columns()
    start_ns = 1_704_067_200 * NS_PER_S
    made = simulate_market(
        seed=4,
        duration_s=20.0,
        start_ns=start_ns,
        edge=1.0,
        price=60_000.0,
        price_increment=0.1,
        size_increment=0.001,
    )
    assert dataset.counts == dataset.source_counts
    assert np.array_equal(columns.kind, made["kind"])
    assert np.array_equal(columns.side, made["side"])
    for name in "abcd":
        np.testing.assert_allclose(getattr(columns, name), made[name], rtol=1e-15)
    late = columns.ts - made["ts"]
    assert late.min() >= 0
    assert late.max() < 1_000, "only ties move, by nanoseconds"


def test_it_is_labelled_synthetic_everywhere(tmp_path: Path) -> None:
    dataset = open_source(synthetic(), tmp_path, cache_dir=tmp_path)
    assert dataset.synthetic
    assert dataset.columns().synthetic
    assert dataset.manifest["synthetic"] is True
    assert dataset.manifest["source"]["seed"] == 4
    again = CatalogSource(instrument="BTCUSDT-PERP.BINANCE", path=str(dataset.catalog_path))
    assert open_source(again, tmp_path).synthetic


def test_settings_make_different_data_and_the_same_settings_the_same(tmp_path: Path) -> None:
    one = open_source(synthetic(), tmp_path, cache_dir=tmp_path / "a")
    same = open_source(synthetic(), tmp_path, cache_dir=tmp_path / "b")
    other = open_source(synthetic(seed=5), tmp_path, cache_dir=tmp_path / "a")
    assert np.array_equal(one.columns().a, same.columns().a)
    assert one.catalog_path.name == same.catalog_path.name != other.catalog_path.name


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"duration_s": 0.0}, "duration"),
        ({"duration_s": float("nan")}, "duration"),
        ({"edge": -1.0}, "edge"),
        ({"seed": -1}, "synthetic market"),
        ({"start": "yesterday"}, "is not a time like"),
    ],
)
def test_an_impossible_market_is_refused(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        open_source(synthetic(**options), tmp_path, cache_dir=tmp_path)
