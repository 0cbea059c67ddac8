"""Fixtures that several rooms' tests share."""

import os
import signal
from pathlib import Path

import pytest

from qbtc.config.load import REAL_DATA_DEFAULT


def pytest_configure() -> None:
    """Let tests of Ctrl-C interrupt where the shell runs pytest in the background.

    Such a shell lets its jobs ignore SIGINT, and a training that waits for it would never end.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real recordings; tests that need it are marked ``realdata``."""
    folder = Path(os.environ.get("QBTC_REAL_DATA", REAL_DATA_DEFAULT))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set QBTC_REAL_DATA to run this test")
    return folder
