"""Fixtures that several rooms' tests share."""

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support import services

from qbtc.config.load import REAL_DATA_DEFAULT

if TYPE_CHECKING:
    from tests.clients.served import Process

MODEL_LOAD_S_MAX = 60.0


def pytest_configure() -> None:
    """Let tests of Ctrl-C interrupt where the shell runs pytest in the background.

    Such a shell lets its jobs ignore SIGINT, and a training that waits for it would never end.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _records_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what servers and runs of tests record out of the user's own folder."""
    folder = tmp_path_factory.mktemp("records")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QBTC_DATABASE_URL", f"sqlite:///{folder / 'records.db'}")
        patch.setenv("XDG_DATA_HOME", str(folder))
        for name in ("QBTC_AMQP_URL", "QBTC_REDIS_URL", "QBTC_BUS_PREFIX"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real recordings; tests that need it are marked ``realdata``."""
    folder = Path(os.environ.get("QBTC_REAL_DATA", REAL_DATA_DEFAULT))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set QBTC_REAL_DATA to run this test")
    return folder


@pytest.fixture(scope="session")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Process]":
    """`qbtc serve` with the default models, for all tests of clients."""
    import httpx
    from tests.clients.served import REAL, process

    with process(tmp_path_factory.mktemp("serve"), "--no-snapshot", command=REAL) as server:
        # The first answer waits for the model.
        httpx.get(f"{server.url}/v1/models", timeout=MODEL_LOAD_S_MAX).raise_for_status()
        yield server


@pytest.fixture(scope="session")
def amqp_url() -> str:
    """A RabbitMQ server; whoever uses it also takes ``queue_prefix`` and removes what it makes."""
    services.need(services.AMQP_URL, "RabbitMQ")
    return services.AMQP_URL


@pytest.fixture
def queue_prefix() -> str:
    """What this test's exchanges and queues begin with."""
    return f"{services.RUN_ID}.{secrets.token_hex(3)}."


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """An empty PostgreSQL database of this test's own."""
    services.need(services.POSTGRES_URL, "PostgreSQL")
    name = f"{services.RUN_ID}_{secrets.token_hex(3)}"
    yield services.create_database(name)
    services.drop_database(name)


@pytest.fixture(scope="session")
def redis_url() -> str:
    """A Redis server; whoever uses it also takes ``key_prefix``."""
    services.need(services.REDIS_URL, "Redis")
    return services.REDIS_URL


@pytest.fixture
def key_prefix() -> Iterator[str]:
    """What this test's Redis keys begin with."""
    prefix = f"{services.RUN_ID}:{secrets.token_hex(3)}:"
    yield prefix
    services.delete_keys(prefix)
