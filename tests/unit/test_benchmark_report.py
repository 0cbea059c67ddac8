"""The benchmark report says who is ahead, by how much, and whether a target is met."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from benchmarks.reporting import Report, Target, commit, machine
from benchmarks.timing import Samples


def _samples(*rounds: float) -> Samples:
    return Samples(tuple(np.full(10, value) for value in rounds))


@pytest.fixture
def report() -> Report:
    return Report(machine="a machine", git="abc")


def test_a_row_has_exactly_the_documented_fields(report: Report, tmp_path: Path) -> None:
    report.add("g", "ours", _samples(100.0), ("theirs", _samples(250.0)))
    report.write(tmp_path)
    (row,) = msgspec.json.decode((tmp_path / "report.json").read_bytes())
    assert row == {
        "name": "g: ours",
        "value": 100.0,
        "unit": "ns",
        "p50": 100.0,
        "p99": 100.0,
        "peer": "theirs",
        "peer_value": 250.0,
        "ratio": 2.5,
        "better": "lower",
        "machine": "a machine",
        "git": "abc",
    }


@pytest.mark.parametrize("unit", ["ns", "us", "M events/s"])
def test_a_ratio_above_one_means_that_we_are_ahead_whatever_the_unit(
    report: Report, unit: str
) -> None:
    row = report.add("g", "n", _samples(100.0), ("p", _samples(300.0)), unit=unit)
    assert row.ratio == pytest.approx(3.0)
    assert (row.value < row.peer_value) == (row.better == "lower")


def test_a_rate_is_the_reciprocal_and_its_p99_is_the_slow_end(report: Report) -> None:
    row = report.add("g", "n", _samples(50.0, 100.0, 200.0), unit="M events/s")
    assert (row.value, row.better) == (10.0, "higher")
    assert row.p99 < row.p50


def test_the_ratio_is_formed_inside_each_round(report: Report) -> None:
    # The machine slows down threefold on the way: both sides feel it, the ratio does not.
    row = report.add("g", "n", _samples(10.0, 20.0, 30.0), ("p", _samples(40.0, 80.0, 120.0)))
    assert row.ratio == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("target", "verdict"),
    [
        (Target("ratio", 2.0), "met"),
        (Target("ratio", 4.0), "missed"),
        (Target("value", 100.0), "met"),
        (Target("value", 99.0), "missed"),
        (None, ""),
    ],
)
def test_a_target_is_met_or_missed(report: Report, target: Target | None, verdict: str) -> None:
    report.add("g", "n", _samples(100.0), ("p", _samples(300.0)), target=target)
    assert report.entries[0].verdict == verdict


def test_a_ratio_target_without_a_peer_is_missed(report: Report) -> None:
    report.add("g", "n", _samples(100.0), target=Target("ratio", 1.0))
    assert report.entries[0].verdict == "missed"


def test_the_markdown_tells_what_was_not_measured_and_why(report: Report) -> None:
    report.add("kernels", "n", _samples(100.0), note="How it was done.")
    report.missing["test_replay"] = "no recording"
    text = report.markdown()
    assert "## kernels" in text
    assert "n: How it was done." in text
    assert "- test_replay: no recording" in text


def test_two_rows_of_one_name_are_refused(report: Report) -> None:
    report.add("g", "n", _samples(1.0))
    with pytest.raises(ValueError, match="two rows"):
        report.add("g", "n", _samples(1.0))


def test_what_a_thing_costs_above_another_is_taken_round_by_round() -> None:
    cost = _samples(15.0, 130.0).minus(_samples(10.0, 100.0))
    assert list(cost.medians) == [5.0, 30.0]


def test_machine_and_commit_are_one_line_each(tmp_path: Path) -> None:
    assert "\n" not in machine()
    assert commit(tmp_path) == "unknown"
