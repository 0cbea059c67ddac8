"""Requests with an ``Idempotency-Key``: computed once, told again, free again where they fail."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.gateway_client import frames, http_client
from tests.support.private_servers import running, server_folder
from tests.support.scripted_engine import FOREVER, MODEL, ScriptedEngine, call, end, text
from tests.support.whole_gateway import Whole, whole_gateway

from qbtc.cache.link import RedisAway, RedisLink
from qbtc.llm.kept import ANSWER_BYTES_MAX
from qbtc.stack.servers import RedisServer
from qbtc_gateway.app import create_app
from qbtc_gateway.security.keys import KeyFile, new_key
from qbtc_gateway.security.scopes import SCOPES
from qbtc_gateway.settings import Settings

PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hi"}],
    "temperature": 1,
}
TEXT: dict[str, Any] = {"model": MODEL, "prompt": ["Hi", "Ho"], "n": 2, "temperature": 1}
KEYED = {"idempotency-key": "order-1"}
KEPT = "x-qbtc-cache"


def run[T](work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 120))


def said(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, str(answer.json()["error"]["code"])


def words() -> ScriptedEngine:
    """Answer differently each time, so that an answer told again shows."""
    return ScriptedEngine(*([*text(word), end()] for word in ("One", "Two", "Three", "Four")))


async def until_free(web: httpx.AsyncClient, body: dict[str, Any] = CHAT) -> httpx.Response:
    """Repeat as long as the first request holds the key."""
    async with asyncio.timeout(60):
        answer = await web.post(PATH, json=body, headers=KEYED)
        while answer.status_code == 409:
            assert answer.json()["error"]["code"] == "idempotency_in_progress"
            answer = await web.post(PATH, json=body, headers=KEYED)
            await asyncio.sleep(0.02)
    return answer


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a Redis that a busy machine lets answer late; without it each gateway is alone."""
    monkeypatch.setattr("qbtc.cache.link.RedisLink", partial(RedisLink, call_s_max=10))


@pytest.fixture(params=["memory", "redis"])
def shared(request: pytest.FixtureRequest, key_prefix: str) -> dict[str, Any]:
    """Say where a gateway keeps answers."""
    if request.param == "memory":
        return {}
    return {"redis_url": request.getfixturevalue("redis_url"), "redis_prefix": key_prefix}


@pytest.fixture
def in_redis(redis_url: str, key_prefix: str) -> dict[str, Any]:
    """Let gateways keep answers together."""
    return {"redis_url": redis_url, "redis_prefix": key_prefix}


@asynccontextmanager
async def two_gateways(
    engine: ScriptedEngine, folder: Path, **settings: Any
) -> AsyncIterator[tuple[Whole, Whole]]:
    (folder / "other").mkdir()
    async with (
        whole_gateway(engine, folder, **settings) as one,
        whole_gateway(engine, folder / "other", **settings) as other,
    ):
        yield one, other


def test_a_repeat_is_told_the_first_answer_at_any_temperature(
    tmp_path: Path, shared: dict[str, Any]
) -> None:
    async def work() -> None:
        engine = words()
        # The cache of answers at temperature 0 may be off.
        async with whole_gateway(engine, tmp_path, cache=False, **shared) as gateway:
            answers = [await gateway.web.post(PATH, json=CHAT, headers=KEYED) for _ in range(3)]
            assert [each.headers[KEPT] for each in answers] == ["miss", "hit", "hit"]
            assert {said(each) for each in answers} == {"One"}
            usage = answers[1].json()["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] == 7
            other = await gateway.web.post(PATH, json=CHAT, headers={"idempotency-key": "order-2"})
            assert (said(other), other.headers[KEPT]) == ("Two", "miss")
            plain = await gateway.web.post(PATH, json=CHAT)
            assert said(plain) == "Three"
            assert KEPT not in plain.headers
        assert len(engine.asked) == 3

    run(work())


def test_a_stream_is_told_again_as_it_was(tmp_path: Path, shared: dict[str, Any]) -> None:
    body = CHAT | {"stream": True}

    async def work() -> None:
        engine = ScriptedEngine(
            [*text("Let ", "me "), *call("look", '{"a":', "1}"), end("tool_calls")],
            [*text("Something else"), end()],
        )
        async with whole_gateway(engine, tmp_path, **shared) as gateway:
            first, again = [
                await gateway.web.post(PATH, json=body, headers=KEYED) for _ in range(2)
            ]
            assert [first.headers[KEPT], again.headers[KEPT]] == ["miss", "hit"]
            # Also the id of the call: whoever acts on calls must act once.
            told = [[frame["choices"] for frame in frames(each)] for each in (first, again)]
            assert told[0] == told[1]
            assert "call_1" in again.text
        assert len(engine.asked) == 1

    run(work())


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_and_responses_are_told_again(stream: bool) -> None:
    async def work() -> None:
        engine = ScriptedEngine(
            [*text("a"), *text("b", choice=1), end(), end(choice=1)],
            [*text("c"), *text("d", choice=1), end(), end(choice=1)],
            [*text("e"), end()],
            [*text("f"), end()],
        )
        async with http_client(engine) as web:

            async def ask(path: str, body: dict[str, Any], key: str) -> str:
                answer = await web.post(
                    path, json=body | {"stream": stream}, headers={"idempotency-key": key}
                )
                assert answer.status_code == 200, answer.text
                return answer.text

            for _ in range(2):
                told = await ask("/v1/completions", TEXT, "t")
                assert all(f'"text":"{word}"' in told for word in "abcd")
                assert '"text":"e' in (await ask("/v1/responses", _asked("e"), "r"))
        assert len(engine.asked) == 3

    run(work())


def _asked(word: str) -> dict[str, Any]:
    return {"model": MODEL, "input": word, "temperature": 1}


def test_a_key_with_another_request_is_refused(tmp_path: Path, shared: dict[str, Any]) -> None:
    async def work() -> None:
        engine = words()
        async with whole_gateway(engine, tmp_path, **shared) as gateway:
            assert said(await gateway.web.post(PATH, json=CHAT, headers=KEYED)) == "One"
            for path, body in ((PATH, CHAT | {"max_tokens": 3}), ("/v1/completions", TEXT)):
                refused = await gateway.web.post(path, json=body, headers=KEYED)
                assert code(refused) == (422, "idempotency_key_reused")
                assert refused.json()["error"]["param"] == "Idempotency-Key"
            assert said(await gateway.web.post(PATH, json=CHAT, headers=KEYED)) == "One"
        assert len(engine.asked) == 1

    run(work())


def test_of_many_at_once_on_two_gateways_one_is_computed(
    tmp_path: Path, in_redis: dict[str, Any]
) -> None:
    async def work() -> None:
        refused = threading.Event()
        engine = ScriptedEngine([*text("One"), refused, end()], [*text("Two"), end()])
        async with two_gateways(engine, tmp_path, **in_redis) as (one, other):
            asking = [
                asyncio.ensure_future(each.web.post(PATH, json=CHAT, headers=KEYED))
                for each in (one, other) * 8
            ]
            async with asyncio.timeout(60):
                while sum(each.done() for each in asking) < 15:  # noqa: ASYNC110 - one is held
                    await asyncio.sleep(0.01)
            refused.set()
            answers = await asyncio.gather(*asking)
            for answer in answers:
                if answer.status_code != 200:
                    assert code(answer) == (409, "idempotency_in_progress")
                    assert answer.headers["retry-after"] == "1"
            assert [said(each) for each in answers if each.status_code == 200] == ["One"]
            for gateway in (one, other):
                again = await gateway.web.post(PATH, json=CHAT, headers=KEYED)
                assert (said(again), again.headers[KEPT]) == ("One", "hit")
        assert len(engine.asked) == 1

    run(work())


def test_while_the_first_runs_repeats_are_told_to_come_back(
    tmp_path: Path, shared: dict[str, Any]
) -> None:
    async def work() -> None:
        engine = ScriptedEngine([*text("One"), FOREVER, end()])
        async with whole_gateway(engine, tmp_path, **shared) as gateway:
            sent = gateway.web.stream("POST", PATH, json=CHAT | {"stream": True}, headers=KEYED)
            async with sent as first:
                assert first.status_code == 200
                again = await gateway.web.post(PATH, json=CHAT | {"stream": True}, headers=KEYED)
                assert code(again) == (409, "idempotency_in_progress")
                reused = await gateway.web.post(PATH, json=CHAT, headers=KEYED)
                assert code(reused) == (422, "idempotency_key_reused")

    run(work())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_key(
    tmp_path: Path, shared: dict[str, Any], stream: bool
) -> None:
    body = CHAT | {"stream": stream}

    async def work() -> None:
        engine = ScriptedEngine([*text("half"), FOREVER, end()], [*text("Two"), end()])
        async with whole_gateway(engine, tmp_path, **shared) as gateway:
            if stream:
                sent = gateway.web.stream("POST", PATH, json=body, headers=KEYED)
                async with sent as first:
                    assert first.status_code == 200
            else:
                waiting = asyncio.ensure_future(gateway.web.post(PATH, json=body, headers=KEYED))
                async with asyncio.timeout(60):
                    while not engine.asked:  # noqa: ASYNC110 - the engine offers nothing to await
                        await asyncio.sleep(0.01)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            answer = await until_free(gateway.web, body)
            assert answer.headers[KEPT] == "miss"
            assert "Two" in answer.text
            assert (await until_free(gateway.web, body)).headers[KEPT] == "hit"
        assert engine.cancelled == 1

    run(work())


def test_a_client_that_leaves_ends_the_work_on_all_its_prompts(tmp_path: Path) -> None:
    async def work() -> None:
        engine = ScriptedEngine([*text("half"), FOREVER, end()])
        async with whole_gateway(engine, tmp_path) as gateway:
            waiting = asyncio.ensure_future(
                gateway.web.post("/v1/completions", json=TEXT, headers=KEYED)
            )
            async with asyncio.timeout(60):
                while len(engine.asked) < 2:  # noqa: ASYNC110 - the engine offers nothing to await
                    await asyncio.sleep(0.01)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                while engine.cancelled < 2:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.01)

    run(work())


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_frees_the_key(tmp_path: Path, shared: dict[str, Any], stream: bool) -> None:
    body = CHAT | {"stream": stream}

    async def work() -> None:
        engine = ScriptedEngine(
            [RuntimeError("at once")],
            [*text("half"), RuntimeError("midway")],
            [*text("no end")],
            [*text("Good"), end()],
        )
        async with whole_gateway(engine, tmp_path, **shared) as gateway:
            answers = [await gateway.web.post(PATH, json=body, headers=KEYED) for _ in range(5)]
            assert len(engine.asked) == 4
            assert answers[0].status_code == 500
            assert ["Good" in each.text for each in answers] == [False] * 3 + [True] * 2
            assert [answers[number].headers[KEPT] for number in (3, 4)] == ["miss", "hit"]

    run(work())


async def left_alone(gateway: Whole) -> None:
    """Let one call to Redis be slow, so that it is left alone for a while."""
    link = gateway.services.link
    assert link is not None

    async def slow() -> None:
        raise TimeoutError

    with pytest.raises(RedisAway):
        await link.call(slow)


def test_a_client_that_leaves_while_redis_is_slow_frees_the_key_everywhere(
    tmp_path: Path, in_redis: dict[str, Any]
) -> None:
    async def work() -> None:
        engine = ScriptedEngine([*text("One"), FOREVER, end()], [*text("Two"), end()])
        body = CHAT | {"stream": True}
        async with two_gateways(engine, tmp_path, **in_redis) as (one, other):
            async with one.web.stream("POST", PATH, json=body, headers=KEYED) as first:
                assert first.status_code == 200
                assert code(await other.web.post(PATH, json=body, headers=KEYED))[0] == 409
                await left_alone(one)
            assert "Two" in (await until_free(other.web, body)).text

    run(work())


def test_an_answer_that_ends_while_redis_is_slow_is_told_everywhere(
    tmp_path: Path, in_redis: dict[str, Any]
) -> None:
    async def work() -> None:
        away = threading.Event()
        engine = ScriptedEngine([*text("One"), away, end()], [*text("Two"), end()])
        body = CHAT | {"stream": True}
        async with two_gateways(engine, tmp_path, **in_redis) as (one, other):
            async with one.web.stream("POST", PATH, json=body, headers=KEYED) as first:
                assert first.status_code == 200
                await left_alone(one)
                away.set()
                assert "One" in (await first.aread()).decode()
            assert "One" in (await until_free(other.web, body)).text
        assert len(engine.asked) == 1

    run(work())


def test_an_answer_too_long_to_keep_is_computed_again(
    tmp_path: Path, shared: dict[str, Any]
) -> None:
    async def work() -> None:
        engine = ScriptedEngine([*text("x" * ANSWER_BYTES_MAX), end()])
        async with whole_gateway(engine, tmp_path, **shared) as gateway:
            for _ in range(2):
                answer = await gateway.web.post(PATH, json=CHAT, headers=KEYED)
                assert len(said(answer)) == ANSWER_BYTES_MAX
        assert len(engine.asked) == 2

    run(work())


def test_clients_do_not_see_each_others_answers(tmp_path: Path, shared: dict[str, Any]) -> None:
    async def work() -> None:
        secret, made = new_key("other", SCOPES)
        KeyFile(tmp_path / "keys.json").add(made)
        engine = words()
        async with whole_gateway(engine, tmp_path, key=True, **shared) as gateway:
            theirs = KEYED | {"authorization": f"Bearer {secret}"}
            for _ in range(2):
                assert said(await gateway.web.post(PATH, json=CHAT, headers=KEYED)) == "One"
                assert said(await gateway.web.post(PATH, json=CHAT, headers=theirs)) == "Two"
        assert len(engine.asked) == 2

    run(work())


def test_with_redis_away_a_gateway_knows_its_own(tmp_path: Path) -> None:
    async def work(server: RedisServer) -> None:
        engine = words()
        async with whole_gateway(engine, tmp_path, redis_url=server.url) as gateway:

            async def ask(key: str) -> tuple[str, str]:
                answer = await gateway.web.post(PATH, json=CHAT, headers={"idempotency-key": key})
                return said(answer), answer.headers[KEPT]

            assert await ask("before") == ("One", "miss")
            server.kill()
            for _ in range(3):
                assert await ask("before") == ("One", "hit")
            assert await ask("meanwhile") == ("Two", "miss")
            for _ in range(3):
                assert await ask("meanwhile") == ("Two", "hit")
            server.start()
            async with asyncio.timeout(60):
                while "redis" in gateway.services.problems():
                    assert await ask("meanwhile") == ("Two", "hit")
                    await gateway.web.post(PATH, json=CHAT | {"temperature": 0})
                    await asyncio.sleep(0.05)
            assert await ask("meanwhile") == ("Two", "hit")
            assert await ask("before") == ("One", "hit")

    with server_folder() as folder, running(RedisServer(folder)) as server:
        run(work(server))


def test_answers_and_marks_have_their_time(tmp_path: Path, shared: dict[str, Any]) -> None:
    async def work() -> None:
        engine = ScriptedEngine(
            [*text("One"), FOREVER, end()], [*text("Two"), end()], [*text("Three"), end()]
        )
        times = {"answer_s_max": 0.5, "idempotency_s_max": 0.5}
        body = CHAT | {"stream": True}
        async with whole_gateway(engine, tmp_path, **shared, **times) as gateway:
            sent = gateway.web.stream("POST", PATH, json=body, headers=KEYED)
            async with sent as first:
                assert first.status_code == 200
                # The mark is over, though its request still runs.
                assert "Two" in (await until_free(gateway.web, body)).text
            async with asyncio.timeout(60):
                while True:
                    answer = await until_free(gateway.web, body)
                    if "Three" in answer.text:
                        break
                    await asyncio.sleep(0.05)

    run(work())


def test_a_request_that_ends_late_leaves_the_answer_of_another(
    tmp_path: Path, shared: dict[str, Any]
) -> None:
    async def work() -> None:
        engine = ScriptedEngine([*text("One"), FOREVER, end()], [*text("Two"), end()])
        body = CHAT | {"stream": True}
        async with whole_gateway(engine, tmp_path, answer_s_max=0.3, **shared) as gateway:
            sent = gateway.web.stream("POST", PATH, json=body, headers=KEYED)
            async with sent as first:
                assert first.status_code == 200
                assert "Two" in (await until_free(gateway.web, body)).text
            async with asyncio.timeout(60):
                while engine.cancelled == 0:  # noqa: ASYNC110 - the engine offers nothing to await
                    await asyncio.sleep(0.01)
            for _ in range(5):
                again = await gateway.web.post(PATH, json=body, headers=KEYED)
                assert again.headers[KEPT] == "hit"
        assert len(engine.asked) == 2

    run(work())


def test_a_damaged_answer_is_computed_again(tmp_path: Path, in_redis: dict[str, Any]) -> None:
    from redis.asyncio import Redis

    async def work() -> None:
        engine = words()
        async with two_gateways(engine, tmp_path, **in_redis) as (one, other):
            assert said(await one.web.post(PATH, json=CHAT, headers=KEYED)) == "One"
            async with Redis.from_url(in_redis["redis_url"]) as redis:
                (name,) = [
                    key async for key in redis.scan_iter(f"{in_redis['redis_prefix']}once:*")
                ]
                head = (await redis.get(name)).partition(b"\n")[0]
                await redis.set(name, head + b"\n{}", px=60_000)
            answer = await other.web.post(PATH, json=CHAT, headers=KEYED)
            assert (said(answer), answer.headers[KEPT]) == ("Two", "miss")

    run(work())


@pytest.mark.parametrize("key", ["", "a" * 256, "a b", "a\tb", "caf\xe9", "two, keys"])
def test_what_is_no_key_is_refused(key: str) -> None:
    async def work() -> None:
        engine = words()
        async with http_client(engine) as web:
            refused = await web.post(
                PATH, json=CHAT, headers={b"idempotency-key": key.encode("latin-1")}
            )
            assert code(refused) == (400, "invalid_idempotency_key")
            assert refused.json()["error"]["param"] == "Idempotency-Key"
            twice = await web.post(
                PATH, json=CHAT, headers=[("idempotency-key", "a"), ("idempotency-key", "b")]
            )
            assert code(twice) == (400, "invalid_idempotency_key")
            assert not engine.asked
            longest = await web.post(PATH, json=CHAT, headers={"idempotency-key": "~!" + "a" * 253})
            assert said(longest) == "One"

    run(work())


def test_the_document_describes_the_header() -> None:
    paths = create_app(Settings(), ScriptedEngine()).openapi()["paths"]
    told = {
        path
        for path, operations in paths.items()
        for each in operations.get("post", {}).get("parameters", ())
        if each["name"] == "Idempotency-Key"
    }
    assert told == {PATH, "/v1/completions", "/v1/responses"}
