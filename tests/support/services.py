"""The servers that tests talk to for real, on loopback: PostgreSQL, Redis, RabbitMQ.

A server that does not answer skips its tests with a reason; with ``QBTC_REQUIRE_SERVICES=1`` it
fails them. Each run has its own database, key prefix and queue prefix and removes them.
"""

import asyncio
import contextlib
import os
import secrets
import socket
from typing import Final
from urllib.parse import urlsplit

import pytest

REQUIRED: Final = os.environ.get("QBTC_REQUIRE_SERVICES", "") not in ("", "0")
AMQP_URL: Final = os.environ.get("QBTC_TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/")
POSTGRES_URL: Final = os.environ.get(
    "QBTC_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres"
)
REDIS_URL: Final = os.environ.get("QBTC_TEST_REDIS_URL", "redis://127.0.0.1:6379/0")

RUN_ID: Final = f"qbtc_test_{secrets.token_hex(4)}"


def need(url: str, what: str) -> None:
    """Skip, or fail where servers are required, if nothing listens at a URL."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10).close()
    except OSError as error:
        reason = f"no {what} at {parts.hostname}:{parts.port} ({error.strerror or error})"
        if REQUIRED:
            pytest.fail(f"{reason}, and QBTC_REQUIRE_SERVICES is set")
        pytest.skip(reason)


def create_database(name: str) -> str:
    """Create a database; return its URL."""
    _execute(f'CREATE DATABASE "{name}"')
    return POSTGRES_URL.rpartition("/")[0] + f"/{name}"


def drop_database(name: str) -> None:
    """Drop a database, also one that is in use."""
    _execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def _execute(statement: str) -> None:
    import asyncpg

    async def go() -> None:
        connection = await asyncpg.connect(POSTGRES_URL, timeout=60)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(go())


def delete_keys(prefix: str) -> None:
    """Delete the Redis keys of a prefix; without a server there are none."""
    from redis import ConnectionError, Redis

    with Redis.from_url(REDIS_URL) as redis, contextlib.suppress(ConnectionError):
        for key in redis.scan_iter(match=f"{prefix}*", count=1000):
            redis.delete(key)
