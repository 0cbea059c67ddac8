"""Private servers for tests that kill them, in folders that a server's own user may enter."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.services import REQUIRED

from qbtc.errors import InputError
from qbtc.stack.servers import Server


@contextlib.contextmanager
def server_folder() -> Iterator[Path]:
    """Make a folder that other users may enter, which pytest's own does not let them."""
    folder = Path(tempfile.mkdtemp(prefix="qbtc-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def running[S: Server](server: S) -> Iterator[S]:
    """Run a server for the length of a block; skip the test where it is not installed."""
    try:
        server.start()
    except InputError as error:
        if REQUIRED:
            raise
        pytest.skip(str(error))
    try:
        yield server
    finally:
        server.stop()
