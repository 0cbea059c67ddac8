"""After a thousand requests the broker has the queues it had before, counted by its own tool."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.private_servers import running, server_folder

from qbtc.bus import Delivery, WorkQueue, open_bus
from qbtc.bus.topology import LLM_REQUESTS, QUEUES
from qbtc.messages.envelope import Message, message, new_id
from qbtc.messages.events import LlmRequest, LlmResponse
from qbtc.stack.servers import RabbitServer

REQUESTS = 1_000


@pytest.fixture
def folder() -> Iterator[Path]:
    with server_folder() as path:
        yield path


def _queues(server: RabbitServer) -> set[str]:
    return set(server.control("list_queues", "name", "--no-table-headers").split())


def _request() -> Message:
    data = LlmRequest(request_id=new_id(), operation="models")
    return message(data, source="qbtc/test/1", subject="models")


async def _answer(delivery: Delivery) -> None:
    asked = delivery.message
    data = LlmResponse(request_id=asked.correlationid, attempt=delivery.attempt, status="success")
    answer = message(
        data, source="qbtc/test/2", subject="models", correlationid=asked.correlationid
    )
    await delivery.reply(answer)


def test_a_thousand_requests_leave_no_queue_behind(folder: Path) -> None:
    async def ask(server: RabbitServer) -> set[str]:
        asker = await open_bus(server.url, source="qbtc/test/1")
        worker = await open_bus(server.url, source="qbtc/test/2")
        try:
            await worker.subscribe(WorkQueue(LLM_REQUESTS), _answer)
            await asker.request(_request(), timeout_s=60)
            before = await asyncio.to_thread(_queues, server)
            places = asyncio.Semaphore(32)

            async def one() -> None:
                async with places:
                    answer = await asker.request(_request(), timeout_s=60)
                    assert isinstance(answer.data, LlmResponse)

            await asyncio.gather(*(one() for _ in range(REQUESTS)))
            assert await asyncio.to_thread(_queues, server) == before
            assert asker.counters()["pending"] == 0
            return before
        finally:
            await asker.close()
            await worker.close()

    with running(RabbitServer(folder / "rabbit")) as server:
        during = asyncio.run(ask(server))
        assert during >= set(QUEUES)
        assert _queues(server) == set(QUEUES)
