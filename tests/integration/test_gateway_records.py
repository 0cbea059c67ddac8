"""What the database keeps of requests: one row each, contents only where they were asked for."""

import asyncio
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.integration.gateway_server import within_a_minute
from tests.support.scripted_engine import (
    EMBEDDING_MODEL,
    FOREVER,
    MODEL,
    ScriptedEngine,
    call,
    end,
    text,
)
from tests.support.whole_gateway import database, rows, whole_gateway

from qbtc_gateway import journal
from qbtc_gateway.settings import Limits

CANARY = "a private question"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": CANARY}]}
PATH = "/v1/chat/completions"


def run[T](work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 120))


async def kept(folder: Path, table: str = "interactions") -> list[dict[str, Any]]:
    return await rows(database(folder), table)


def test_a_request_leaves_one_row_of_figures(tmp_path: Path) -> None:
    async def work() -> None:
        engine = ScriptedEngine([*text("Hel", "lo"), end(prompt=11, completion=3, cached=4)])
        async with whole_gateway(engine, tmp_path, key=True) as gateway:
            answer = await gateway.web.post(
                PATH, json=CHAT | {"user": "me"}, headers={"x-request-id": "mine-1"}
            )
            assert answer.status_code == 200
            streamed = await gateway.web.post(PATH, json=CHAT | {"stream": True})
            assert "[DONE]" in streamed.text
            models = await gateway.web.get("/v1/models")
            assert models.status_code == 200
        one, other = await kept(tmp_path)
        assert one["request_id"] == "mine-1"
        assert other["request_id"] == streamed.headers["x-request-id"]
        assert one["session"] == "me"
        assert one["ts"] < other["ts"]
        for row, stream in ((one, False), (other, True)):
            assert row["endpoint"] == PATH
            assert (row["model"], row["engine"], bool(row["stream"])) == (MODEL, "local", stream)
            assert (row["status"], row["error_code"]) == (200, None)
            assert row["key_id"]
            tokens = (row["prompt_tokens"], row["cached_tokens"], row["completion_tokens"])
            assert tokens == (11, 4, 3)
            assert 0 < row["first_token_ms"] <= row["total_ms"]
            assert row["queued_ms"] == 0
            assert not row["cache_hit"]
            assert row["request"] is None
            assert row["response"] is None

    run(work())


def test_prompts_and_answers_are_nowhere_unless_they_were_asked_for(tmp_path: Path) -> None:
    async def work() -> None:
        script = [*text("a private answer"), *call("look", '{"a private argument":1}'), end()]
        async with whole_gateway(ScriptedEngine(script), tmp_path) as gateway:
            for stream in (False, True):
                await gateway.web.post(PATH, json=CHAT | {"stream": stream})
        calls = await kept(tmp_path, "tool_calls")
        assert [(each["name"], each["arguments"]) for each in calls] == [("look", None)] * 2
        ids = {each["request_id"] for each in await kept(tmp_path)}
        assert {each["request_id"] for each in calls} == ids
        assert len(ids) == 2

    run(work())
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"look" in written
    assert b"private" not in written


def test_contents_are_kept_where_they_were_asked_for(tmp_path: Path) -> None:
    async def work() -> None:
        script = [*text("Hel", "lo"), *call("look", '{"a":', "1}"), end("tool_calls")]
        async with whole_gateway(ScriptedEngine(script), tmp_path, records="full") as gateway:
            whole = await gateway.web.post(PATH, json=CHAT)
            await gateway.web.post(PATH, json=CHAT | {"stream": True})
            await gateway.web.post(PATH, content=b"not JSON\x00\xff")
        one, other, broken = await kept(tmp_path)
        assert one["request"] == CHAT
        assert one["response"] == whole.json()
        assert other["request"] == CHAT | {"stream": True}
        called = {"id": "call_1", "name": "look", "arguments": '{"a":1}'}
        choice = {"index": 0, "content": "Hello", "tool_calls": [called]}
        assert other["response"] == {"choices": [choice | {"finish_reason": "tool_calls"}]}
        assert broken["request"]["text"].startswith("not JSON")
        assert broken["status"] == 400
        assert broken["response"]["error"]["type"] == "invalid_request_error"
        calls = await kept(tmp_path, "tool_calls")
        assert [each["arguments"] for each in calls] == ['{"a":1}'] * 2

    run(work())


def test_long_contents_are_cut_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "CONTENT_BYTES_MAX", 100)

    async def work() -> None:
        engine = ScriptedEngine([*text("x" * 60, "y" * 60), end()])
        long = CHAT | {"messages": [{"role": "user", "content": "z" * 1000}]}
        async with whole_gateway(engine, tmp_path, records="full") as gateway:
            for stream in (False, True):
                await gateway.web.post(PATH, json=long | {"stream": stream})
        one, other = await kept(tmp_path)
        for row in (one, other):
            assert row["request"]["truncated"] is True
            assert row["request"]["bytes"] > 1000
            assert len(row["request"]["text"]) == 100
            assert row["response"]["truncated"] is True
        assert one["response"]["bytes"] > 120
        assert other["response"]["choices"][0]["content"] == "x" * 60 + "y" * 40

    run(work())


def test_what_fails_is_kept_with_its_status(tmp_path: Path) -> None:
    async def work() -> None:
        await within_a_minute()
        engine = ScriptedEngine(
            [RuntimeError("inside")], [*text("half"), RuntimeError("inside")], [*text("a"), end()]
        )
        limits = Limits(requests_per_minute_max=4)
        async with whole_gateway(engine, tmp_path, key=True, limits=limits) as gateway:
            assert (await gateway.web.post(PATH, json=CHAT)).status_code == 500
            stream = await gateway.web.post(PATH, json=CHAT | {"stream": True})
            assert stream.status_code == 200
            unknown = await gateway.web.post(PATH, json=CHAT | {"model": "none"})
            assert unknown.status_code == 404
            assert (await gateway.web.post(PATH, json={"model": 1})).status_code == 400
            assert (await gateway.web.post(PATH, json=CHAT)).status_code == 429
            wrong = await gateway.web.post(PATH, json=CHAT, headers={"authorization": "Bearer x"})
            assert wrong.status_code == 401
        found = [(row["status"], row["error_code"]) for row in await kept(tmp_path)]
        assert found == [
            (500, "server_error"),
            (200, "server_error"),
            (404, "model_not_found"),
            (400, "invalid_type"),
            (429, "rate_limit_exceeded"),
        ], "who was not let in is in the log only"

    run(work())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_kept(tmp_path: Path, stream: bool) -> None:
    async def work() -> None:
        engine = ScriptedEngine([*text("half"), FOREVER, end()])
        async with whole_gateway(engine, tmp_path) as gateway:
            begun = asyncio.Event()

            async def ask() -> None:
                body = CHAT | {"stream": stream}
                async with gateway.web.stream("POST", PATH, json=body) as answer:
                    begun.set()
                    await answer.aread()

            asking = asyncio.create_task(ask())
            async with asyncio.timeout(60):
                while not engine.asked:  # noqa: ASYNC110 - it happens on the server's side
                    await asyncio.sleep(0.01)
                if stream:
                    await begun.wait()
                asking.cancel()
                await asyncio.wait({asking})
                while not engine.cancelled:  # noqa: ASYNC110 - it happens on the server's side
                    await asyncio.sleep(0.01)
        (row,) = await kept(tmp_path)
        assert (row["status"], row["error_code"]) == (200 if stream else 499, "disconnected")

    run(work())


def test_embeddings_are_kept_with_their_tokens(tmp_path: Path) -> None:
    async def work() -> None:
        async with whole_gateway(ScriptedEngine(), tmp_path) as gateway:
            body = {"model": EMBEDDING_MODEL, "input": ["abc", "de"]}
            assert (await gateway.web.post("/v1/embeddings", json=body)).status_code == 200
        (row,) = await kept(tmp_path)
        assert (row["endpoint"], row["prompt_tokens"]) == ("/v1/embeddings", 5)

    run(work())


@pytest.mark.parametrize(
    ("headers", "fields", "session"),
    [
        ({"x-session-id": "one"}, {"user": "two"}, "one"),
        ({}, {"prompt_cache_key": "key", "safety_identifier": "safe", "user": "two"}, "key"),
        ({}, {"safety_identifier": "safe", "user": "two"}, "safe"),
        ({"x-session-id": "x" * 129}, {"user": "two"}, "two"),
        ({}, {"user": "x" * 129}, ""),
        ({}, {"user": "line\nfeed"}, ""),
        ({}, {"user": {"not": "text"}}, ""),
    ],
)
def test_a_session_has_the_name_that_the_client_gave_it(
    tmp_path: Path, headers: dict[str, str], fields: dict[str, Any], session: str
) -> None:
    async def work() -> None:
        async with whole_gateway(ScriptedEngine(), tmp_path) as gateway:
            answer = await gateway.web.post(PATH, json=CHAT | fields, headers=headers)
            assert answer.status_code == 200
        assert [row["session"] for row in await kept(tmp_path)] == [session]

    run(work())


def test_nothing_is_kept_where_records_are_off(tmp_path: Path) -> None:
    async def work() -> None:
        for settings in ({"records": "off"}, {"database_url": "off"}):
            async with whole_gateway(ScriptedEngine(), tmp_path, **settings) as gateway:
                assert gateway.services.journal is None
                assert (await gateway.web.post(PATH, json=CHAT)).status_code == 200
        assert not (tmp_path / "records.db").exists()

    run(work())


def test_a_database_that_is_away_degrades_and_delays_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        url = "postgresql://nobody:hidden@127.0.0.1:1/none"
        async with whole_gateway(ScriptedEngine(), tmp_path, database_url=url) as gateway:
            for _ in range(5):
                answer = await gateway.web.post(PATH, json=CHAT)
                assert answer.status_code == 200
            async with asyncio.timeout(60):
                while "records" not in gateway.services.problems():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            ready = await gateway.web.get("/health/ready")
            assert ready.status_code == 200
            assert ready.json() == {"status": "degraded", "away": ["records"]}
            figures = (await gateway.web.get("/metrics")).text
            assert 'qbtc_part_up{part="records"} 0.0' in figures
            assert "qbtc_records_written_total 0.0" in figures
            assert "hidden" not in json.dumps(gateway.services.problems())

    run(work())
