"""Caches: the same behaviour in this process and in Redis, and without Redis."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.support import services
from tests.support.proxy import Proxy

from qbtc.cache import Cache, open_cache
from qbtc.cache.link import RedisAway, RedisLink
from qbtc.cache.memory import ENTRY_BYTES, VALUE_BYTES_MAX, MemoryCache
from qbtc.cache.redis import OWED_BYTES_MAX, OWED_MAX, RedisCache
from qbtc.errors import InputError

type Opener = Callable[[], Cache]


def run[T](work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 120))


@pytest.fixture(params=["memory", "redis"])
def opener(request: pytest.FixtureRequest, key_prefix: str) -> Opener:
    """Open a cache; in Redis each has the same keys."""
    if request.param == "memory":
        one = open_cache(None)
        return lambda: one
    url = request.getfixturevalue("redis_url")
    # A machine that is busy with other tests may answer late.
    return lambda: RedisCache(RedisLink(url, call_s_max=10), prefix=key_prefix)


def test_what_was_put_is_found_until_its_time_is_over(opener: Opener) -> None:
    async def work() -> None:
        cache = opener()
        assert await cache.get("a") is None
        await cache.put("a", b"\x00one\xff", ttl_s=60)
        await cache.put("short", b"two", ttl_s=0.05)
        await cache.put("never", b"three", ttl_s=0)
        assert await cache.get("a") == b"\x00one\xff"
        await cache.put("a", b"", ttl_s=60)
        assert await cache.get("a") == b""
        assert await cache.get("never") is None
        async with asyncio.timeout(10):
            while await cache.get("short") is not None:  # noqa: ASYNC110 - time is what passes
                await asyncio.sleep(0.01)
        assert cache.problem() is None
        counters = cache.counters()
        assert counters["hits"] >= 2
        assert counters["misses"] >= 3
        assert counters["errors"] == 0
        await cache.close()

    run(work())


def test_of_many_who_add_one_was_the_first(opener: Opener) -> None:
    async def work() -> None:
        first, second = opener(), opener()
        adding = [cache.add("m", b"x", ttl_s=60) for cache in (first, second) * 8]
        assert sorted(await asyncio.gather(*adding)) == [False] * 15 + [True]
        assert await first.get("m") == b"x"
        assert await first.add("short", b"", ttl_s=0.05)
        async with asyncio.timeout(10):
            while not await second.add("short", b"", ttl_s=60):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
        await first.close()
        await second.close()

    run(work())


def test_what_is_removed_is_what_was_meant(opener: Opener) -> None:
    async def work() -> None:
        first, second = opener(), opener()
        assert await first.add("m", b"mine", ttl_s=60)
        await second.remove("m", b"yours")
        assert await second.get("m") == b"mine"
        await first.remove("m", b"mine")
        assert await second.add("m", b"yours", ttl_s=60)
        await first.remove("m", b"mine")
        assert await first.get("m") == b"yours"
        await first.close()
        await second.close()

    run(work())


def test_without_redis_a_process_keeps_what_it_puts_under_names_it_added(
    broken: Callable[[], Any],
) -> None:
    async def work() -> None:
        async with broken() as url:
            cache = RedisCache(RedisLink(url, call_s_max=0.1), prefix="qbtc_test:")
            assert await cache.add("m", b"mark", ttl_s=60)
            assert await cache.get("m") == b"mark"
            await cache.put("m", b"answer", ttl_s=60)
            await cache.remove("m", b"mark")
            assert await cache.get("m") == b"answer"
            await cache.remove("m", b"answer")
            assert await cache.get("m") is None
            assert await cache.add("m", b"mark", ttl_s=60)
            await cache.close()

    run(work())


def test_what_is_too_large_is_not_kept(opener: Opener) -> None:
    async def work() -> None:
        cache = opener()
        await cache.put("most", bytes(VALUE_BYTES_MAX), ttl_s=60)
        await cache.put("more", bytes(VALUE_BYTES_MAX + 1), ttl_s=60)
        assert await cache.get("most") == bytes(VALUE_BYTES_MAX)
        assert await cache.get("more") is None
        await cache.close()

    run(work())


def test_the_least_recently_used_goes_when_memory_is_full() -> None:
    async def work() -> None:
        cache = MemoryCache(bytes_max=3 * (ENTRY_BYTES + 11))
        for key in "abc":
            await cache.put(key, bytes(10), ttl_s=60)
        assert await cache.get("a")
        await cache.put("d", bytes(10), ttl_s=60)
        assert [key for key in "abcd" if cache.holds(key)] == ["a", "c", "d"]
        await cache.put("a", bytes(10), ttl_s=60)
        assert [key for key in "abcd" if cache.holds(key)] == ["a", "c", "d"]
        await cache.put("e", bytes(10 + 2 * ENTRY_BYTES), ttl_s=60)
        assert [key for key in "abcde" if cache.holds(key)] == ["e"]

    run(work())


@pytest.mark.parametrize(
    "url", ["", "redis", "http://user:hidden@h/", "redis://:hidden@h:port/0", "memory:///x"]
)
def test_an_address_that_is_none_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(InputError) as refusal:
        open_cache(url)
    assert "hidden" not in str(refusal.value)


def _closed_port(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _stalled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(4096):
        pass
    writer.close()


async def _not_redis(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(4096)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nServer: \xff\r\n\r\n")
    writer.close()


@asynccontextmanager
async def server(behaviour: Callable[..., Any]) -> AsyncIterator[str]:
    listening = await asyncio.start_server(behaviour, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}/0"
    finally:
        listening.close()
        await listening.wait_closed()


@pytest.fixture(params=["dead", "closing", "stalled", "not redis", "wrong password"])
def broken(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Something in the place of Redis."""

    @asynccontextmanager
    async def dead() -> AsyncIterator[str]:
        async with server(_stalled) as url:
            pass
        yield url

    @asynccontextmanager
    async def wrong_password() -> AsyncIterator[str]:
        scheme, _, rest = request.getfixturevalue("redis_url").partition("://")
        yield f"{scheme}://nobody:hidden@{rest.rpartition('@')[2]}"

    return {
        "dead": dead,
        "closing": lambda: server(_closed_port),
        "stalled": lambda: server(_stalled),
        "not redis": lambda: server(_not_redis),
        "wrong password": wrong_password,
    }[request.param]


def test_without_redis_a_cache_is_empty_and_asks_once_in_a_while(
    broken: Callable[[], Any],
) -> None:
    async def work() -> None:
        now = [0.0]
        async with broken() as url:
            link = RedisLink(url, call_s_max=0.1, clock=lambda: now[0])
            cache = RedisCache(link, prefix="qbtc_test:")
            assert cache.problem() is None
            assert await cache.get("a") is None
            await cache.put("a", b"x", ttl_s=60)
            assert [await cache.add("m", b"", ttl_s=60) for _ in range(3)] == [True, False, False]
            assert [await cache.get("a") for _ in range(1000)] == [None] * 1000
            assert link.errors == 1, "only the first call asked"
            now[0] = 1.0
            assert await asyncio.gather(*(cache.get("a") for _ in range(100))) == [None] * 100
            assert link.errors == 2, "of many calls one asked"
            problem = cache.problem()
            assert problem is not None
            assert "does not answer" in problem
            assert "hidden" not in problem
            assert cache.counters() == {"hits": 0, "misses": 1101, "errors": 2}
            await cache.close()

    run(work())


def test_a_link_that_is_there_again_is_used_again(redis_url: str, key_prefix: str) -> None:
    async def work() -> None:
        now = [0.0]
        link = RedisLink(redis_url, call_s_max=10, clock=lambda: now[0])
        cache = RedisCache(link, prefix=key_prefix)
        await cache.put("a", b"x", ttl_s=60)

        async def fail() -> None:
            raise ConnectionError("gone")

        with pytest.raises(RedisAway, match="gone"):
            await link.call(fail)
        assert await cache.get("a") is None
        # What this process added while Redis was away it does not add a second time.
        assert await cache.add("m", b"", ttl_s=60)
        now[0] = 1.0
        assert await cache.get("a") == b"x"
        assert cache.problem() is None
        assert not await cache.add("m", b"", ttl_s=60)
        await cache.close()

    run(work())


async def fall_away(link: RedisLink) -> None:
    """Let a call fail, so that Redis is left alone for a while."""

    async def fail() -> None:
        raise ConnectionError("gone")

    with pytest.raises(RedisAway, match="gone"):
        await link.call(fail)


def links(
    url: str, prefix: str, clock: Callable[[], float]
) -> tuple[RedisLink, RedisCache, RedisCache]:
    """Open two caches with the same keys, and the link of the first, away until its clock moves."""
    link = RedisLink(url, call_s_max=10, retry_s=0.2, clock=clock)
    other = RedisLink(url, call_s_max=10)
    return link, RedisCache(link, prefix=prefix), RedisCache(other, prefix=prefix)


def test_what_is_removed_while_redis_is_away_is_gone_for_others_soon(
    redis_url: str, key_prefix: str
) -> None:
    async def work() -> None:
        now = [0.0]
        link, first, second = links(redis_url, key_prefix, lambda: now[0])
        assert await first.add("m", b"mark", ttl_s=600)
        assert await first.add("n", b"mark", ttl_s=600)
        await fall_away(link)
        await first.remove("m", b"mark")
        await first.remove("n", b"mark")
        assert not await second.add("m", b"theirs", ttl_s=60)
        now[0] = 1.0
        async with asyncio.timeout(60):
            for key in "mn":
                while not await second.add(key, b"theirs", ttl_s=60):  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.01)
        await first.close()
        await second.close()

    run(work())


def test_what_is_put_while_redis_is_away_takes_the_marks_place_soon(
    redis_url: str, key_prefix: str
) -> None:
    async def work() -> None:
        now = [0.0]
        link, first, second = links(redis_url, key_prefix, lambda: now[0])
        assert await first.add("m", b"mark", ttl_s=600)
        await fall_away(link)
        await first.put("m", b"answer", ttl_s=60)
        assert await second.get("m") == b"mark"
        now[0] = 1.0
        async with asyncio.timeout(60):
            while await second.get("m") != b"answer":  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
        assert 50_000 < await link.redis.pttl(f"{key_prefix}m") <= 60_000
        await first.close()
        await second.close()

    run(work())


def test_a_name_that_was_freed_while_redis_was_away_can_be_added_at_once(
    redis_url: str, key_prefix: str
) -> None:
    async def work() -> None:
        now = [0.0]
        link = RedisLink(redis_url, call_s_max=10, retry_s=60, clock=lambda: now[0])
        cache = RedisCache(link, prefix=key_prefix)
        assert await cache.add("m", b"mark", ttl_s=600)
        await fall_away(link)
        await cache.remove("m", b"mark")
        now[0] = 60.0
        assert await cache.add("m", b"another", ttl_s=60)
        assert await link.redis.get(f"{key_prefix}m") == b"another"
        await cache.close()

    run(work())


def test_what_others_put_meanwhile_is_left_when_redis_is_there_again(
    redis_url: str, key_prefix: str
) -> None:
    async def work() -> None:
        now = [0.0]
        link, first, second = links(redis_url, key_prefix, lambda: now[0])
        for key in "mno":
            assert await first.add(key, b"mark", ttl_s=600)
        await fall_away(link)
        await first.remove("m", b"mark")
        await first.put("n", b"answer", ttl_s=60)
        await first.remove("o", b"mark")
        await second.put("m", b"theirs", ttl_s=60)
        await second.put("n", b"theirs", ttl_s=60)
        now[0] = 1.0
        async with asyncio.timeout(60):
            # The last of what is made up for.
            while await second.get("o") is not None:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
        assert [await second.get(key) for key in "mn"] == [b"theirs"] * 2
        await first.close()
        await second.close()

    run(work())


def test_what_is_to_be_made_up_for_is_bounded(redis_url: str, key_prefix: str) -> None:
    async def work() -> None:
        now = [0.0]
        link, first, second = links(redis_url, key_prefix, lambda: now[0])
        for key in ("long", "oldest", "kept"):
            value = b"x" * (OWED_BYTES_MAX + 1) if key == "long" else b"mark"
            await second.put(key, value, ttl_s=60)
        await fall_away(link)
        await first.remove("long", b"x" * (OWED_BYTES_MAX + 1))
        await first.remove("oldest", b"mark")
        for number in range(OWED_MAX - 1):
            await first.remove(f"k{number}", b"mark")
        await first.remove("kept", b"mark")
        now[0] = 1.0
        async with asyncio.timeout(60):
            while await second.get("kept") is not None:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
        assert await second.get("oldest") == b"mark"
        assert await second.get("long") is not None
        await first.close()
        await second.close()

    run(work())


def test_a_connection_that_stalls_or_is_cut_is_left_and_made_again(
    redis_url: str, key_prefix: str
) -> None:
    async def work(proxy: Proxy) -> None:
        cache = RedisCache(RedisLink(proxy.url, call_s_max=2.0, retry_s=0.05), prefix=key_prefix)

        async def until(value: bytes | None) -> None:
            async with asyncio.timeout(60):
                while await cache.get("a") != value:  # noqa: ASYNC110 - Redis is what changes
                    await asyncio.sleep(0.01)

        await cache.put("a", b"x", ttl_s=60)
        for harm in (proxy.stall, proxy.cut, proxy.half_open):
            assert await cache.get("a") == b"x"
            harm()
            if harm == proxy.half_open:
                proxy.cut()
            if harm != proxy.cut:
                await until(None)
                assert cache.problem() is not None
            proxy.resume()
            await until(b"x")
            assert cache.problem() is None
        await cache.close()

    with Proxy(redis_url) as proxy:
        run(work(proxy))


def test_a_call_that_is_cancelled_leaves_no_answer_for_the_next(
    redis_url: str, key_prefix: str
) -> None:
    async def work() -> None:
        link = RedisLink(redis_url, call_s_max=10)
        cache = RedisCache(link, prefix=key_prefix)
        for number in range(50):
            await cache.put(f"k{number}", b"%d" % number, ttl_s=60)
        for number in range(50):
            waiting = asyncio.ensure_future(cache.get(f"k{number}"))
            for _ in range(number % 5):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert await cache.get(f"k{number}") == b"%d" % number
        await cache.close()

    run(work())


def test_keys_stand_below_their_prefix(redis_url: str, key_prefix: str) -> None:
    async def work() -> None:
        cache = open_cache(redis_url, prefix=key_prefix)
        async with asyncio.timeout(30):
            # Late on a busy machine, Redis is left alone for a while.
            while await cache.get("a") is None:
                await cache.put("a", b"x", ttl_s=60)
        await cache.close()

    run(work())
    from redis import Redis

    with Redis.from_url(services.REDIS_URL) as redis:
        assert 0 < redis.pttl(f"{key_prefix}a") <= 60_000
