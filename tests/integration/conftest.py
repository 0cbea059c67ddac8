"""Fixtures of the tests that run on real files and real servers."""

import asyncio
from collections.abc import Iterator

import pytest
from tests.support import services, ways

from qbtc.bus.admin import remove_topology


@pytest.fixture(scope="session")
def shared_way(amqp_url: str) -> Iterator[ways.Way]:
    """A way through RabbitMQ whose queues are made once; every test leaves them empty."""
    way = ways.Way(amqp_url, f"{services.RUN_ID}.ways.")
    yield way
    asyncio.run(remove_topology(amqp_url, way.prefix))


@pytest.fixture(params=["direct", "memory", "rabbitmq"])
def every_way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test with its engine in the gateway's process, and behind either bus."""
    taken = {"direct": ways.DIRECT, "memory": ways.MEMORY}.get(request.param)
    token = ways.way.set(taken or request.getfixturevalue("shared_way"))
    yield request.param
    ways.way.reset(token)
