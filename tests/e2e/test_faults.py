"""The fault harness: it sees damage, says so, and its cheapest rows hold, in their short form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults.__main__ import ROWS
from tests.faults.harness import DOCUMENT, Outcome, report, write_document
from tests.support import services

ROOT = Path(__file__).resolve().parents[2]
CHEAP = ("control-loss", "broker", "writer")


def test_an_effect_that_is_missing_or_repeated_is_counted() -> None:
    outcome = Outcome(fault="f")
    outcome.count(["a", "b", "c"], {"a": 1, "b": 3})
    assert (outcome.accepted, outcome.processed, outcome.lost, outcome.duplicated) == (3, 2, 1, 2)


@pytest.mark.parametrize(
    ("outcome", "good"),
    [
        (Outcome(fault="f", accepted=2), True),
        (Outcome(fault="f"), False),
        (Outcome(fault="f", accepted=2, lost=1), False),
        (Outcome(fault="f", accepted=2, duplicated=1), False),
        (Outcome(fault="f", accepted=2, wrong=["the consumer is dead"]), False),
        (Outcome(fault="f", accepted=2, control=True), False),
        (Outcome(fault="f", accepted=2, control=True, lost=1), True),
        (Outcome(fault="f", accepted=2, control=True, lost=1, wrong=["it is blind"]), False),
    ],
)
def test_a_row_is_good_without_damage_and_a_control_with_it(outcome: Outcome, good: bool) -> None:
    assert outcome.good is good


def test_the_table_of_a_run_goes_between_the_markers(tmp_path: Path) -> None:
    path = tmp_path / "faults.md"
    path.write_text(DOCUMENT.read_text(encoding="utf-8"), encoding="utf-8")
    outcome = Outcome(fault="a fault", accepted=1_234, lost=1, wrong=["a thing"], notes="note")
    for _ in range(2):  # a table replaces the one before
        write_document(report([outcome], {"seed": 1, "kills": 2, "short": False}), path)
    text = path.read_text(encoding="utf-8")
    assert text.count("| a fault | 1,234 | 0 | 1 | 0 | 0 | **wrong: a thing**; note |") == 1
    assert text.startswith("# What happens when things break")
    assert "## What this does not show" in text


def test_the_document_names_every_row() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in ROWS if f"`{name}`" not in text] == []


def test_an_unknown_row_is_refused_with_the_names_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--rows", "flood"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "no row flood" in done.stderr
    assert "control-loss" in done.stderr


@pytest.mark.timeout(600)
def test_nothing_is_lost_or_done_twice_when_servers_and_writers_are_killed(tmp_path: Path) -> None:
    services.need(services.AMQP_URL, "RabbitMQ")
    services.need(services.POSTGRES_URL, "PostgreSQL")
    found = tmp_path / "faults.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.faults", "--short", "--kills", "1"),
            *("--rows", ",".join(CHEAP), "--json", str(found)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(found.read_text())["rows"]
    assert [row["good"] for row in rows] == [True] * len(CHEAP)
    assert rows[0]["lost"] > 0, "the control must show a loss"
    assert [(row["lost"], row["duplicated"]) for row in rows[1:]] == [(0, 0)] * (len(CHEAP) - 1)
    assert all(row["accepted"] > 0 for row in rows)
