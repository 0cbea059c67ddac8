"""docs/bus.md keeps its word: its Python runs, its commands exist, its tables are the code's."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qbtc.bus import BusLimits
from qbtc.bus.topology import DELIVERY_LIMIT, EXCHANGES, QUEUE_MESSAGES_MAX, QUEUES

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "bus.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"^qbtc (bus(?: [a-z]+)+)\b", TEXT, re.MULTILINE)))


def test_its_python_runs(tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "HOLD\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_exist(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qbtc", *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: qbtc {command}")


def test_its_commands_are_found() -> None:
    assert COMMANDS == [
        "bus dead drop", "bus dead list", "bus dead replay", "bus dead show", "bus init",
        "bus status",
    ]  # fmt: skip


def test_its_tables_name_every_exchange_and_queue() -> None:
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| `?(\w+)", TEXT, re.MULTILINE))
    assert {name: rows[name] for name in EXCHANGES} == EXCHANGES
    assert set(QUEUES) <= set(rows)
    assert f"{QUEUE_MESSAGES_MAX:,} messages" in TEXT
    assert f"{DELIVERY_LIMIT + 1} times at most" in TEXT


def test_its_knobs_have_the_defaults_of_the_code() -> None:
    shown = {
        "outbox_messages_max": 10_000, "outbox_bytes_max": 256 * 2**20, "in_flight_max": 256,
        "stream_pending_max": 1024, "stream_pending_bytes_max": 64 * 2**20,
        "again_delay_s": 0.05, "again_delay_s_max": 5.0, "reconnect_s_min": 0.1,
        "reconnect_s_max": 2.0, "confirm_s_max": 15.0, "stop_s_max": 5.0, "close_s_max": 5.0,
    }  # fmt: skip
    for name, value in shown.items():
        assert f"`{name}`" in TEXT
        assert getattr(BusLimits(), name) == value
