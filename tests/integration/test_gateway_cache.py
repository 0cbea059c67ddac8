"""Answers at temperature 0 that a gateway keeps: in this process, in Redis, and without Redis."""

import asyncio
import json
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.gateway_client import frames
from tests.support.private_servers import running, server_folder
from tests.support.scripted_engine import MODEL, ScriptedEngine, call, end, text
from tests.support.whole_gateway import database, rows, whole_gateway

from qbtc.cache import open_cache
from qbtc.cache.link import RedisLink
from qbtc.errors import ModelError
from qbtc.llm.cached import CachedEngine
from qbtc.llm.engine import Engine
from qbtc.llm.kept import CacheHit
from qbtc.llm.local import LocalEngine
from qbtc.llm.models import DEFAULT_CHAT_MODEL, find_model
from qbtc.messages.language import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    Event,
    Finished,
    Prefill,
    ResponseFormat,
    Sampling,
    TextDelta,
)
from qbtc.stack.servers import RedisServer

PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hi"}],
    "temperature": 0,
}
SHA = "c" * 64
HEADER = "x-qbtc-cache"


def run[T](work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 120))


def scripted() -> ScriptedEngine:
    """Answer differently each time, so that a kept answer shows."""
    return ScriptedEngine(
        *([*text(f"{word} ", "it is"), end()] for word in ("One", "Two", "Three", "Four")),
        sha256=SHA,
    )


def said(body: dict[str, Any]) -> str:
    return str(body["choices"][0]["message"]["content"])


def test_an_answer_is_kept_and_says_so(tmp_path: Path) -> None:
    async def work() -> None:
        engine = scripted()
        async with whole_gateway(engine, tmp_path) as gateway:
            first = await gateway.web.post(PATH, json=CHAT)
            again = await gateway.web.post(PATH, json=CHAT)
            assert [each.headers[HEADER] for each in (first, again)] == ["miss", "hit"]
            assert said(again.json()) == said(first.json()) == "One it is"
            usage = again.json()["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] == 7
            assert usage["completion_tokens"] == first.json()["usage"]["completion_tokens"]
            # A stream is another way to read the same answer.
            stream = await gateway.web.post(PATH, json=CHAT | {"stream": True})
            assert stream.headers[HEADER] == "hit"
            deltas = [frame["choices"][0]["delta"].get("content", "") for frame in frames(stream)]
            assert "".join(deltas) == "One it is"
            other = await gateway.web.post(PATH, json=CHAT | {"max_tokens": 3})
            assert (other.headers[HEADER], said(other.json())) == ("miss", "Two it is")
            warm = await gateway.web.post(PATH, json=CHAT | {"temperature": 0.5})
            assert HEADER not in warm.headers
            figures = (await gateway.web.get("/metrics")).text
            assert 'qbtc_kept_answers_total{result="hit"} 2.0' in figures
            assert 'qbtc_kept_answers_total{result="miss"} 2.0' in figures
            assert "qbtc_cache_hits_total 2.0" in figures
        assert len(engine.asked) == 3
        found = await rows(database(tmp_path), "interactions")
        assert [bool(row["cache_hit"]) for row in found] == [False, True, True, False, False]

    run(work())


def test_calls_in_a_kept_answer_are_recorded_each_time(tmp_path: Path) -> None:
    async def work() -> None:
        engine = ScriptedEngine([*call("look", "{}"), end("tool_calls")], sha256=SHA)
        async with whole_gateway(engine, tmp_path) as gateway:
            ids = [
                (await gateway.web.post(PATH, json=CHAT)).json()["choices"][0]["message"][
                    "tool_calls"
                ][0]["id"]
                for _ in range(3)
            ]
        assert len(engine.asked) == 1
        found = await rows(database(tmp_path), "tool_calls")
        assert [row["call_id"] for row in found] == ids
        assert len(set(ids)) == 3

    run(work())


def test_nothing_is_kept_where_the_cache_is_off(tmp_path: Path) -> None:
    async def work() -> None:
        engine = scripted()
        async with whole_gateway(engine, tmp_path, cache=False) as gateway:
            for word in ("One", "Two"):
                answer = await gateway.web.post(PATH, json=CHAT)
                assert said(answer.json()).startswith(word)
                assert HEADER not in answer.headers

    run(work())


def test_gateways_share_answers_through_redis(
    tmp_path: Path, redis_url: str, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A machine that is busy with other tests may answer late.
    monkeypatch.setattr("qbtc.cache.link.RedisLink", partial(RedisLink, call_s_max=10))

    async def work() -> None:
        shared = {"redis_url": redis_url, "redis_prefix": key_prefix}
        (tmp_path / "other").mkdir()
        async with (
            whole_gateway(scripted(), tmp_path, **shared) as one,
            whole_gateway(scripted(), tmp_path / "other", **shared) as other,
        ):
            # An answer goes to Redis beside its client; it is there when it is found.
            async with asyncio.timeout(60):
                while (first := await one.web.post(PATH, json=CHAT)).headers[HEADER] != "hit":
                    pass
            answer = await other.web.post(PATH, json=CHAT)
            assert answer.headers[HEADER] == "hit"
            assert said(answer.json()) == said(first.json())
            assert (await one.web.get("/health/ready")).json() == {"status": "ok"}

    run(work())


def test_with_redis_away_the_answers_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work(server: RedisServer) -> str:
        engine = ScriptedEngine([*text("Always"), end()], sha256=SHA)
        async with whole_gateway(engine, tmp_path, redis_url=server.url) as gateway:
            gateway.services.watch()
            answers = [await gateway.web.post(PATH, json=CHAT)]
            server.kill()
            answers += [await gateway.web.post(PATH, json=CHAT) for _ in range(20)]
            log = ""
            async with asyncio.timeout(60):
                # Back before the log has told of it, it was never away.
                while log.count('"degraded"') < 2:
                    assert (await _ready(gateway.web))["status"] in ("ok", "degraded")
                    log += capsys.readouterr().err
            assert (await _ready(gateway.web))["away"] == ["cache", "redis"]
            server.start()
            async with asyncio.timeout(60):
                while (await _ready(gateway.web))["status"] != "ok":
                    pass
            answers.append(await gateway.web.post(PATH, json=CHAT))
            assert {each.status_code for each in answers} == {200}
            assert {said(each.json()) for each in answers} == {"Always"}
        return log

    with server_folder() as folder, running(RedisServer(folder)) as server:
        logged = run(work(server))
        secret = server.url.split("@")[0].rpartition(":")[2]
    logged += capsys.readouterr().err
    assert secret not in logged
    lines = [json.loads(line) for line in logged.splitlines() if line.startswith("{")]
    told = [(line["event"], line["part"]) for line in lines if "part" in line]
    assert sorted(told[:2]) == [("degraded", "cache"), ("degraded", "redis")]
    assert sorted(told[-2:]) == [("recovered", "cache"), ("recovered", "redis")]


async def _ready(web: Any) -> dict[str, Any]:
    await asyncio.sleep(0.05)
    return dict((await web.get("/health/ready")).json())


QUESTION = ChatRequest(
    model=DEFAULT_CHAT_MODEL,
    messages=(ChatMessage(role="user", content="What is the capital of France?"),),
    sampling=Sampling(temperature=0),
    max_tokens=12,
)


@pytest.fixture
def model() -> Any:
    try:
        return find_model(DEFAULT_CHAT_MODEL)
    except ModelError as error:
        pytest.skip(str(error))


def test_a_kept_answer_of_the_real_engine_is_the_one_it_would_give(model: Any) -> None:
    requests = [
        QUESTION,
        msgspec.structs.replace(QUESTION, n=2),
        msgspec.structs.replace(QUESTION, logprobs=True, top_logprobs=2),
        msgspec.structs.replace(QUESTION, response_format=ResponseFormat(type="json_object")),
        CompletionRequest(
            model=DEFAULT_CHAT_MODEL,
            prompt="The sky is",
            sampling=Sampling(temperature=0),
            max_tokens=8,
        ),
    ]

    async def work() -> None:
        real = await LocalEngine.load(model)
        cached = CachedEngine(real, open_cache(None))
        try:
            for request in requests:
                plain = _words(await _events(real, request))
                first = await _events(cached, request)
                await asyncio.sleep(0)
                kept = await _events(cached, request)
                assert isinstance(kept[0], CacheHit)
                assert not isinstance(first[0], CacheHit)
                assert _words(kept) == _words(first) == plain
        finally:
            await cached.close()

    run(work())


async def _events(
    engine: Engine | CachedEngine, request: ChatRequest | CompletionRequest
) -> list[Event]:
    asked = engine.chat(request) if isinstance(request, ChatRequest) else engine.complete(request)
    return [event async for event in asked]


def _words(events: list[Event]) -> dict[int, Any]:
    """Return what each answer said, its probabilities, and how it ended."""
    answers: dict[int, Any] = {}
    for event in events:
        match event:
            case TextDelta():
                words, chances, _ = answers.get(event.choice, ("", (), None))
                answers[event.choice] = (words + event.text, chances + event.logprobs, None)
            case Finished():
                words, chances, _ = answers.get(event.choice, ("", (), None))
                tokens = (event.usage.prompt_tokens, event.usage.completion_tokens)
                answers[event.choice] = (words, chances, (event.reason, event.stop, *tokens))
            case Prefill():
                pass
    return answers
