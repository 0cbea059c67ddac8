"""docs/language-models.md keeps its word: its Python runs, its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "language-models.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    set(re.findall(r"^(?:.* \| )?qbtc ((?:chat|eval [a-z]+|models [a-z]+))\b", TEXT, re.MULTILINE))
)


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
    assert "Paris" in done.stdout


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
    assert COMMANDS == ["chat", "eval llm", "eval score", "models list", "models pull"]
