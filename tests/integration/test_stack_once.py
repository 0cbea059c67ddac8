"""How a background command ended is kept, also when it was told to end."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qbtc.stack.once import ended


def once(file: Path, code: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "qbtc.stack.once", str(file), sys.executable, "-c", code]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_code_is_kept_and_passed_on(code: int, tmp_path: Path) -> None:
    file = tmp_path / "ended"
    assert ended(file) is None
    with once(file, f"raise SystemExit({code})") as process:
        assert process.wait(60) == code
    assert ended(file) == code


def test_a_signal_reaches_the_command(tmp_path: Path) -> None:
    file = tmp_path / "ended"
    with once(file, "import time; print('there', flush=True); time.sleep(600)") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert ended(file) == -signal.SIGTERM
