"""Features from Python: columns, errors, the table and its documents, no look into the future."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from qbtc import _core
from qbtc.core.columns import EventColumns
from qbtc.core.features import (
    FEATURE_NAMES,
    N_FEATURES,
    FeatureEngine,
    bulk_features,
    feature_table,
    schema_sha256,
)
from qbtc.errors import DataError
from qbtc.evaluate.commands import features as features_command

START_NS = 1_700_000_000_000_000_000
ROOT = Path(__file__).parents[2]


def market(seed: int = 3, duration_s: float = 90.0) -> EventColumns:
    arrays = _core.simulate_market(seed=seed, duration_s=duration_s, start_ns=START_NS)
    arrays.pop("latent")
    return EventColumns(
        **arrays,
        instrument="SYNTHETIC.TEST",
        price_increment=0.1,
        size_increment=0.001,
        synthetic=True,
    )


@pytest.fixture(scope="module")
def columns() -> EventColumns:
    return market()


def cut(columns: EventColumns, rows: slice) -> EventColumns:
    names = ("ts", "kind", "side", "a", "b", "c", "d")
    return dataclasses.replace(columns, **{n: getattr(columns, n)[rows].copy() for n in names})


def test_there_is_one_row_per_quote_and_it_is_missing_until_warm(columns: EventColumns) -> None:
    bulk = bulk_features(columns)
    assert bulk.X.shape == (columns.counts()["quotes"], N_FEATURES)
    assert bulk.X.dtype == np.float32
    np.testing.assert_array_equal(bulk.ts, columns.ts[columns.kind == 0])
    assert np.isnan(bulk.X[~bulk.warm]).all()
    warm_from = columns.ts[0] + int(feature_table()[0].warm_up_s * 1e9)
    np.testing.assert_array_equal(bulk.warm, bulk.ts >= max(warm_from, bulk.ts[0] + 60 * 10**9))
    carried = [row.update_class != "lead" for row in feature_table()]
    assert np.isfinite(bulk.X[bulk.warm][:, carried]).all()
    assert np.isnan(bulk.X[:, ~np.array(carried)]).all()


def test_the_past_does_not_see_the_future(columns: EventColumns) -> None:
    whole = bulk_features(columns)
    middle = int(len(columns) * 0.9)
    shorter = bulk_features(cut(columns, slice(0, middle)))
    changed_columns = cut(columns, slice(None))
    changed_columns.b[middle:] *= 2.0
    changed = bulk_features(changed_columns)
    n = len(shorter.ts)
    assert shorter.warm.any()
    assert shorter.X.tobytes() == whole.X[:n].tobytes() == changed.X[:n].tobytes()
    assert whole.X[n:].tobytes() != changed.X[n:].tobytes()


def test_the_features_follow_the_market_and_not_the_number_of_calls(columns: EventColumns) -> None:
    again = bulk_features(columns)
    assert again.X.tobytes() == bulk_features(columns).X.tobytes()
    other = bulk_features(market(seed=4))
    n = min(len(again.ts), len(other.ts))
    assert again.X[n - 10 : n].tobytes() != other.X[n - 10 : n].tobytes()


def test_a_batch_of_levels_is_all_or_nothing() -> None:
    one, many = FeatureEngine(0.1, 0.001), FeatureEngine(0.1, 0.001)
    for i in range(700):
        ts = START_NS + i * 100_000_000
        for engine in (one, many):
            engine.on_quote(ts, 60_000.0, 1.0, 60_000.1, 2.0)
        one.on_depth(ts, 0, 59_999.9, 0.5 + i % 3)
        one.on_depth(ts, 1, 60_000.2, 0.7)
        many.on_depth_batch(ts, [(0, 59_999.9, 0.5 + i % 3), (1, 60_000.2, 0.7)])
    assert one.is_warm()
    assert one.values().tobytes() == many.values().tobytes()
    with pytest.raises(_core.CoreInputError, match=r"^size: must be finite, got NaN"):
        many.on_depth_batch(ts, [(0, 59_999.9, 9.0), (1, 60_000.2, float("nan"))])
    with pytest.raises(ValueError, match=r"^side: must be 0 \(bid\) or 1 \(ask\), got 2"):
        many.on_depth_batch(ts, [(0, 59_999.9, 9.0), (2, 60_000.2, 1.0)])
    assert one.values().tobytes() == many.values().tobytes()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("a", float("nan"), "bid: must be finite, got NaN"),
        ("a", float("inf"), "bid: must be finite, got inf"),
        ("a", -1.0, "bid: must be positive, got -1"),
        ("a", 60_000.05, "bid: is not on the price grid of 0.1, got 60000.05"),
        ("b", 0.0, "bid_size: must be at least one size increment, got 0"),
        ("b", -2.0, "bid_size: must not be negative, got -2"),
        ("c", 10_000.0, "bid: must lie below the ask"),
        ("d", float("nan"), "ask_size: must be finite, got NaN"),
        ("kind", 7, "kind: must be 0 to 4, got 7"),
        ("side", 1, "side: 1 does not exist for events of kind 0"),
    ],
)
def test_a_bad_event_is_refused_by_field_and_row(
    columns: EventColumns, column: str, value: float, message: str
) -> None:
    bad = cut(columns, slice(None))
    row = int(np.flatnonzero(bad.kind == 0)[50])
    getattr(bad, column)[row] = value
    with pytest.raises(DataError) as error:
        bulk_features(bad)
    assert str(error.value).startswith(f"SYNTHETIC.TEST: {message}")
    assert str(error.value).endswith(f"(row {row})")


def swapped(columns: EventColumns) -> dict[str, Any]:
    return {"ts": columns.ts[::-1].copy()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swapped, "column ts: time runs backwards at row"),
        (lambda c: {"a": c.a[:-1]}, "column a: has"),
        (lambda c: {"kind": c.kind.astype(np.int64)}, "column kind: must be a one-dim"),
        (lambda c: {"d": np.stack([c.d, c.d], axis=1)[:, 0]}, "column d: must be contiguous"),
        (lambda c: {"b": c.b.tolist()}, "column b: must be a one-dimensional array of float64"),
    ],
)
def test_columns_that_do_not_fit_are_refused(
    columns: EventColumns, change: Callable[[EventColumns], dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        dataclasses.replace(columns, **change(columns))


def test_duplicate_times_are_kept_in_their_order(columns: EventColumns) -> None:
    flat = dataclasses.replace(columns, ts=np.full(len(columns), START_NS))
    assert len(bulk_features(flat).ts) == columns.counts()["quotes"]


def test_a_slice_holds_its_start_and_not_its_end(columns: EventColumns) -> None:
    start, end = int(columns.ts[1000]), int(columns.ts[5000])
    part = columns.slice_time(start, end)
    assert part.ts[0] == start
    assert part.ts[-1] < end
    assert len(columns.slice_time(0, 1)) == 0
    assert bulk_features(columns.slice_time(0, 1)).X.shape == (0, N_FEATURES)


def test_lead_quotes_are_merged_after_own_events_of_the_same_time(columns: EventColumns) -> None:
    both = columns.with_lead(columns)
    assert both.counts() == {**columns.counts(), "lead_quotes": columns.counts()["quotes"]}
    assert (np.diff(both.ts) >= 0).all()
    own = both.kind != 4
    for name in ("ts", "kind", "side", "a", "b", "c", "d"):
        np.testing.assert_array_equal(getattr(both, name)[own], getattr(columns, name))
    lead_rows = np.flatnonzero(~own)
    assert not np.isin(lead_rows[both.ts[lead_rows] == both.ts[0]], [0]).any()
    assert both.with_lead(columns).counts() == both.counts()
    bulk = bulk_features(both)
    assert np.isfinite(bulk.X[bulk.warm]).all()


def test_the_document_is_generated_from_the_core() -> None:
    result = CliRunner().invoke(features_command, ["--markdown"])
    assert result.exit_code == 0
    document = (ROOT / "docs" / "features.md").read_text()
    assert result.output == document, "run: qbtc features --markdown > docs/features.md"


def test_the_command_lists_every_feature() -> None:
    listed = json.loads(CliRunner().invoke(features_command, ["--json"]).stdout)
    assert [row["name"] for row in listed["features"]] == list(FEATURE_NAMES)
    assert listed["schema_sha256"] == schema_sha256()
    table = CliRunner().invoke(features_command, [], env={"COLUMNS": "250"})
    assert all(name in table.stderr for name in FEATURE_NAMES)
