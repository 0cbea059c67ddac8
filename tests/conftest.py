"""Fixtures that several rooms' tests share."""

import os
from pathlib import Path

import pytest

from qbtc.config.load import REAL_DATA_DEFAULT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real recordings; tests that need it are marked ``realdata``."""
    folder = Path(os.environ.get("QBTC_REAL_DATA", REAL_DATA_DEFAULT))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set QBTC_REAL_DATA to run this test")
    return folder
