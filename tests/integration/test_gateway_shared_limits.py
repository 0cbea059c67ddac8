"""Rates that several gateways count together in Redis, and what holds when Redis is away."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest
from tests.integration.gateway_server import within_a_minute
from tests.support.private_servers import running, server_folder

from qbtc.cache.link import CALL_S_MAX, RedisLink
from qbtc.stack.servers import RedisServer
from qbtc_gateway.errors import ApiError
from qbtc_gateway.security.limits import Admission
from qbtc_gateway.settings import Limits

LIMITS = Limits(requests_per_minute_max=10, tokens_per_minute_max=100)


def run[T](work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 120))


async def let_through(*gateways: Admission, asked: int, who: str = "key:a") -> int:
    """Ask in turn; return how many were let through."""
    refusals: list[ApiError] = []
    for number in range(asked):
        try:
            await gateways[number % len(gateways)].count(who)
        except ApiError as error:
            refusals.append(error)
    for refusal in refusals:
        assert refusal.status == 429
        assert 1 <= int(refusal.headers["retry-after"]) <= 60
        assert refusal.headers["x-ratelimit-remaining-requests"] == "0"
    return asked - len(refusals)


def test_two_gateways_have_one_budget(redis_url: str, key_prefix: str) -> None:
    async def work() -> None:
        links = [RedisLink(redis_url, call_s_max=10), RedisLink(redis_url, call_s_max=10)]
        one, other = (Admission(LIMITS, shared=link, prefix=key_prefix) for link in links)
        assert await let_through(one, other, asked=30) == 10
        assert await let_through(one, other, asked=4, who="key:b") == 4
        headers = await other.count("key:b")
        assert headers["x-ratelimit-limit-requests"] == "10"
        assert headers["x-ratelimit-remaining-requests"] == "5"
        for link in links:
            assert link.problem() is None
            await link.close()

    run(work())


def test_two_gateways_count_tokens_together(redis_url: str, key_prefix: str) -> None:
    async def work() -> None:
        links = [RedisLink(redis_url, call_s_max=10), RedisLink(redis_url, call_s_max=10)]
        one, other = (Admission(LIMITS, shared=link, prefix=key_prefix) for link in links)
        await one.count("key:a")
        await one.charge("key:a", 60)
        assert (await other.count("key:a"))["x-ratelimit-remaining-tokens"] == "40"
        await other.charge("key:a", 60)
        with pytest.raises(ApiError, match="tokens per minute"):
            await one.count("key:a")
        for link in links:
            await link.close()

    run(work())


def test_without_redis_each_gateway_goes_on_counting_alone(key_prefix: str) -> None:
    async def work(server: RedisServer) -> None:
        await within_a_minute()
        links = [RedisLink(server.url, call_s_max=10), RedisLink(server.url, call_s_max=10)]
        one, other = (Admission(LIMITS, shared=link, prefix=key_prefix) for link in links)
        assert await let_through(one, other, asked=8) == 8
        server.kill()
        # Each goes on from the four it let through itself, so nobody starts anew.
        assert await let_through(one, asked=20) == 6
        assert await let_through(other, asked=20) == 6
        assert all(link.problem() is not None for link in links)
        server.start()
        async with asyncio.timeout(60):
            while any(link.problem() is not None for link in links):
                await let_through(one, other, asked=2, who="key:b")
                await asyncio.sleep(0.05)
        # It came up empty; from here on there is one budget again.
        passed = await let_through(one, other, asked=30, who="key:c")
        assert passed == 10
        for link in links:
            await link.close()

    with server_folder() as folder, running(RedisServer(folder)) as server:
        run(work(server))


def test_a_redis_that_stalls_holds_up_one_request_and_no_limit() -> None:
    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            pass
        writer.close()

    async def work() -> None:
        await within_a_minute()
        listening = await asyncio.start_server(stall, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        link = RedisLink(f"redis://127.0.0.1:{port}/0", retry_s=60)
        admission = Admission(LIMITS, shared=link)
        start = time.monotonic()
        assert await let_through(admission, asked=200) == 10
        # 201 waits would be most of a minute.
        assert time.monotonic() - start < 100 * CALL_S_MAX
        assert link.errors == 1
        await link.close()
        listening.close()
        await listening.wait_closed()

    run(work())


def test_many_at_once_are_counted_right(redis_url: str, key_prefix: str) -> None:
    async def work() -> None:
        link = RedisLink(redis_url, call_s_max=10)
        admission = Admission(LIMITS, shared=link, prefix=key_prefix)
        asked = [let_through(admission, asked=1) for _ in range(200)]
        assert sum(await asyncio.gather(*asked)) == 10
        await link.close()

    run(work())
