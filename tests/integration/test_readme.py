"""The README keeps its word: its Python runs, its commands exist, its configs load."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qbtc.config import RunConfig, load_config

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", _blocks("python"))
def test_its_python_runs(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\(\d+, 26\) [1-9]\d*", done.stdout)


@pytest.mark.parametrize("text", _blocks("toml"))
def test_its_config_loads(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    assert load_config(path, RunConfig).signals


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"`qbtc ((?:[a-z]+)(?: [a-z]+)*)(?=[ `])", README)))
)
def test_its_commands_exist(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qbtc", *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: qbtc {command.strip()}")
