"""What stands before the routes, on real connections: keys, limits, sizes, times, names."""

import asyncio
import contextlib
import gc
import json
import logging
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration.gateway_server import (
    add_key,
    eventually,
    raw,
    running,
    small_window,
    within_a_minute,
)
from tests.support.gateway_client import HELLO
from tests.support.scripted_engine import MODEL, ScriptedEngine, end, text
from tests.support.whole_gateway import whole_gateway

from qbtc_gateway.security import keys as keys_module
from qbtc_gateway.security.keys import KeyFile
from qbtc_gateway.security.logs import _is_news
from qbtc_gateway.settings import Limits


def run[T](work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 120))


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_without_keys_this_machine_may_ask(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path) as (server, _), httpx.AsyncClient(base_url=server.url) as web:
            answer = await web.post("/v1/x", content=b"abc", headers=bearer("anything"))
            assert (answer.status_code, answer.text) == (200, "3")

    run(work())


def test_a_key_is_asked_for_and_its_scope_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "RELOAD_S_MIN", 0.0)

    async def work() -> None:
        file = KeyFile(tmp_path / "keys.json")
        async with (
            running(tmp_path, keys=True) as (server, key),
            httpx.AsyncClient(base_url=server.url) as web,
        ):
            for headers in ({}, bearer("wrong"), bearer(key[:-1]), {"x-api-key": "wrong"}):
                answer = await web.post("/v1/chat/completions", headers=headers)
                assert answer.status_code == 401
                assert error_of(answer)["code"] == "invalid_api_key"
            for headers in (bearer(key), {"x-api-key": key}, {"authorization": f"bearer  {key}"}):
                assert (await web.post("/v1/chat/completions", headers=headers)).status_code == 200
            for path in ("/", "/health/live", "/health/ready"):
                assert (await web.get(path)).status_code == 200
            assert (await web.get("/metrics")).status_code == 401

            only_models = add_key(file, "models")
            assert (await web.get("/v1/models", headers=bearer(only_models))).status_code == 200
            refused = await web.post("/v1/embeddings", headers=bearer(only_models))
            assert refused.status_code == 403
            assert error_of(refused)["code"] == "insufficient_permissions"

            only_chat = bearer(add_key(file, "chat"))
            for path in ("/v1/models", "/v1/models/a"):
                assert (await web.get(path, headers=only_chat)).status_code == 200
            assert (await web.post("/v1/embeddings", headers=only_chat)).status_code == 403
            assert (await web.get("/metrics", headers=only_chat)).status_code == 403

            file.revoke(file.read()[0].id)
            assert (await web.post("/v1/x", headers=bearer(key))).status_code == 401

    run(work())


def test_every_answer_carries_the_id_of_its_request(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path) as (server, _), httpx.AsyncClient(base_url=server.url) as web:
            mine = await web.get("/v1/x", headers={"x-request-id": "abc-1.2"})
            assert mine.headers["x-request-id"] == "abc-1.2"
            bad = await web.get("/v1/x", headers={"x-request-id": "a b"})
            assert bad.headers["x-request-id"].startswith("req_")
            refused = await web.get("/v1/x", headers={"host": "evil.example"})
            assert refused.status_code == 403
            assert refused.headers["x-request-id"].startswith("req_")

    run(work())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:1"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "known.example:8000"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "[::1]evil.example"}, 403),
        ({"host": "[::1]evil.example:80"}, 403),
        ({"host": ""}, 403),
        ({"host": "localhost:1", "origin": "http://localhost:1"}, 200),
        ({"host": "localhost:1", "origin": "http://localhost:2"}, 403),
        ({"host": "localhost:1", "origin": "https://evil.example"}, 403),
        ({"host": "localhost:1", "origin": "null"}, 403),
        ({"host": "localhost:1", "origin": "http://[bad"}, 403),
    ],
)
def test_pages_of_others_are_kept_away(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    async def work() -> None:
        async with (
            running(tmp_path, allowed_hosts=("Known.example",)) as (server, _),
            httpx.AsyncClient(base_url=server.url) as web,
        ):
            answer = await web.post("/v1/x", headers=headers)
            assert answer.status_code == status
            assert not any(name.startswith("access-control") for name in answer.headers)

    run(work())


def test_a_key_has_its_requests_a_minute_and_is_told(tmp_path: Path) -> None:
    async def work() -> None:
        await within_a_minute()
        limits = Limits(requests_per_minute_max=3)
        async with (
            running(tmp_path, limits=limits, keys=True) as (server, key),
            httpx.AsyncClient(base_url=server.url) as web,
        ):
            left = []
            for _ in range(3):
                answer = await web.get("/v1/x", headers=bearer(key))
                assert answer.status_code == 200
                assert answer.headers["x-ratelimit-limit-requests"] == "3"
                left.append(int(answer.headers["x-ratelimit-remaining-requests"]))
            assert left == [2, 1, 0]
            refused = await web.get("/v1/x", headers=bearer(key))
            assert refused.status_code == 429
            assert error_of(refused)["code"] == "rate_limit_exceeded"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert 1 <= int(refused.headers["retry-after-ms"]) <= 60_000
            other = add_key(KeyFile(tmp_path / "keys.json"))
            await asyncio.sleep(keys_module.RELOAD_S_MIN)
            assert (await web.get("/v1/x", headers=bearer(other))).status_code == 200
            statuses = [(await web.get("/v1/x")).status_code for _ in range(5)]
            assert statuses == [401, 401, 401, 429, 429], "wrong keys count against the address"

    run(work())


def test_tokens_are_charged_after_the_answer(tmp_path: Path) -> None:
    async def work() -> None:
        limits = Limits(tokens_per_minute_max=100)
        async with (
            running(tmp_path, limits=limits) as (server, _),
            httpx.AsyncClient(base_url=server.url) as web,
        ):
            first = await web.get("/v1/x")
            assert first.headers["x-ratelimit-remaining-tokens"] == "100"
            await server.gate._admission.charge("address:127.0.0.1", 130)
            refused = await web.get("/v1/x")
            assert refused.status_code == 429
            assert refused.headers["x-ratelimit-remaining-tokens"] == "0"

    run(work())


class Stay(threading.Event):
    """A step that a script never leaves; it knows when the script has come to it."""

    reached = False

    def is_set(self) -> bool:
        self.reached = True
        return False


async def leave(asking: Coroutine[Any, Any, httpx.Response], *stays: Stay) -> None:
    """Ask, and leave once the answers have come as far as they do."""
    task = asyncio.ensure_future(asking)
    await eventually(lambda: all(stay.reached for stay in stays))
    task.cancel()
    await asyncio.wait({task})


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_early_is_charged_for_the_prompt_and_what_came_of_the_answer(
    tmp_path: Path, stream: bool
) -> None:
    async def work() -> None:
        stay = Stay()
        left = [*text("a", "b"), *text("c", choice=1), end(choice=1), stay]
        engine = ScriptedEngine(left, [*text("Hello"), end()])
        asked: dict[str, Any] = {"model": MODEL, "messages": HELLO, "n": 2, "stream": stream}
        path = "/v1/chat/completions"
        limits = Limits(tokens_per_minute_max=1_000)
        async with whole_gateway(engine, tmp_path, limits=limits) as made:
            await leave(made.web.post(path, json=asked), stay)
            await eventually(lambda: engine.cancelled == 1)
            whole = await made.web.post(path, json=asked | {"n": 1, "stream": False})
            last = await made.web.get("/v1/models")
        # A prompt of 7, two pieces of the first answer, and the second's 3 tokens.
        assert whole.headers["x-ratelimit-remaining-tokens"] == str(1_000 - 12)
        assert last.headers["x-ratelimit-remaining-tokens"] == str(1_000 - 12 - 10)

    run(work())


def test_every_one_of_several_prompts_is_charged_also_to_who_leaves(tmp_path: Path) -> None:
    async def work() -> None:
        engine = ScriptedEngine([*text("a"), *text("b", choice=1), end(), end(choice=1)])
        asked = {"model": MODEL, "prompt": ["x", "y", "z"], "n": 2, "stream": True}
        limits = Limits(tokens_per_minute_max=1_000)
        async with whole_gateway(engine, tmp_path, limits=limits) as made:
            await made.web.post("/v1/completions", json=asked)
            whole = await made.web.get("/v1/models")
            stays = [Stay() for _ in range(3)]
            engine.scripts = [[stay] for stay in stays]
            await leave(made.web.post("/v1/completions", json=asked), *stays)
            await eventually(lambda: engine.cancelled == 3)
            left = await made.web.get("/v1/models")
        # Three prompts of 7 and six answers of 3 tokens; then the prompts alone.
        assert whole.headers["x-ratelimit-remaining-tokens"] == str(1_000 - 21 - 18)
        assert left.headers["x-ratelimit-remaining-tokens"] == str(1_000 - 21 - 18 - 21)

    run(work())


def test_too_many_at_once_are_told_to_come_back(tmp_path: Path) -> None:
    async def work() -> None:
        limits = Limits(requests_open_per_key_max=2, requests_open_max=3)
        async with (
            running(tmp_path, limits=limits, keys=True) as (server, key),
            httpx.AsyncClient(base_url=server.url) as web,
        ):
            other = add_key(KeyFile(tmp_path / "keys.json"))
            await asyncio.sleep(keys_module.RELOAD_S_MIN)
            held = [asyncio.ensure_future(web.get("/v1/hold", headers=bearer(key))) for _ in "ab"]
            await eventually(lambda: server.gate._admission.open_total == 2)
            refused = await web.get("/v1/x", headers=bearer(key))
            assert refused.status_code == 429
            held.append(asyncio.ensure_future(web.get("/v1/hold", headers=bearer(other))))
            await eventually(lambda: server.gate._admission.open_total == 3)
            full = await web.get("/v1/x", headers=bearer(other))
            assert full.status_code == 503
            assert "retry-after" in full.headers
            assert error_of(full)["code"] == "overloaded"
            assert (await web.get("/health/live")).status_code == 200
            server.application.release.set()
            assert [answer.status_code for answer in await asyncio.gather(*held)] == [200] * 3
            assert server.gate._admission.open_total == 0
            assert server.gate._admission._open == {}

    run(work())


def test_a_large_body_is_refused_with_and_without_its_length(tmp_path: Path) -> None:
    async def work() -> None:
        limits = Limits(body_bytes_max=100_000)
        async with (
            running(tmp_path, limits=limits) as (server, _),
            httpx.AsyncClient(base_url=server.url) as web,
        ):

            async def pieces(count: int) -> Any:
                for _ in range(count):
                    yield b"x" * 10_000

            assert (await web.post("/v1/x", content=b"x" * 100_000)).text == "100000"
            assert (await web.post("/v1/x", content=pieces(10))).text == "100000"
            for content in (b"x" * 100_001, pieces(11), b"x" * 10_000_000):
                answer = await web.post("/v1/x", content=content)
                assert answer.status_code == 413
                assert error_of(answer)["code"] == "request_too_large"
            assert server.gate._bodies.held_bytes == 0

    run(work())


def test_all_bodies_together_have_a_limit(tmp_path: Path) -> None:
    async def work() -> None:
        limits = Limits(body_bytes_max=100_000, bodies_bytes_max=250_000)
        async with (
            running(tmp_path, limits=limits) as (server, _),
            httpx.AsyncClient(base_url=server.url) as web,
        ):
            body = b"x" * 100_000
            held = [asyncio.ensure_future(web.post("/v1/hold", content=body)) for _ in "ab"]
            await eventually(lambda: server.gate._bodies.held_bytes == 200_000)
            assert (await web.post("/v1/x", content=body)).status_code == 503
            assert (await web.post("/v1/x", content=b"small")).status_code == 200
            server.application.release.set()
            await asyncio.gather(*held)
            assert server.gate._bodies.held_bytes == 0

    run(work())


def test_slow_and_endless_senders_are_cut_off(tmp_path: Path) -> None:
    async def work() -> None:
        limits = Limits(
            header_read_s_max=1.0, body_read_s_max=1.0, idle_s_max=1.0, headers_bytes_max=8_192
        )
        async with running(tmp_path, limits=limits) as (server, _):
            port = server.port
            silent, half, trickle, endless, late_body = await asyncio.gather(
                raw(port),
                raw(port, b"POST /v1/x HTTP/1.1\r\nhost: localh"),
                raw(port, *[b"POST /v1/x HTTP/1.1\r\n", *[b"a: b\r\n"] * 20], pause_s=0.1),
                raw(port, b"GET / HTTP/1.1\r\na: ", *[b"x" * 4_096] * 100),
                raw(
                    port, b"POST /v1/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nabc"
                ),
            )
            for answer in (silent, half):
                assert answer.startswith(b"HTTP/1.1 408 ")
            assert not trickle.startswith(b"HTTP/1.1 200")
            assert not endless.startswith(b"HTTP/1.1 200")
            assert late_body.startswith(b"HTTP/1.1 408 ")
            assert b"request_timeout" in late_body
            many = b"".join(b"h%d: %s\r\n" % (i, b"x" * 100) for i in range(200))
            wide = await raw(port, b"GET /v1/x HTTP/1.1\r\nhost: localhost\r\n" + many + b"\r\n")
            assert wide.startswith(b"HTTP/1.1 431 ")
            await eventually(lambda: server.gate._bodies.held_bytes == 0)

    run(work())


def test_what_is_not_http_is_answered_in_one_shape(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path) as (server, _):
            answer = await raw(server.port, b"\x16\x03\x01 not http\r\n\r\n")
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 ")
            assert json.loads(body)["error"]["code"] == "invalid_http"

    run(work())


def test_a_client_that_does_not_read_is_cut_off_and_its_work_ended(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path, limits=Limits(write_s_max=0.5)) as (server, _):
            with contextlib.closing(small_window(server.port)) as sock:
                sock.sendall(b"POST /v1/flood HTTP/1.1\r\nhost: localhost\r\n\r\n")
                await eventually(lambda: server.application.flooding == 1)
                await eventually(lambda: server.application.cancelled == 1)
                await eventually(lambda: server.gate._admission.open_total == 0)

    run(work())


def test_thousands_of_connections_end_in_refusals_not_in_memory(tmp_path: Path) -> None:
    async def work() -> None:
        limits = Limits(connections_max=50, requests_open_max=20)
        async with running(tmp_path, limits=limits) as (server, _):
            request = b"GET /v1/hold HTTP/1.1\r\nhost: localhost\r\n\r\n"
            opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(300)]
            for _, writer in opened:
                writer.write(request)
            await eventually(lambda: server.gate._admission.open_total == 20)
            reading = [asyncio.ensure_future(reader.read(12)) for reader, _ in opened]
            await eventually(lambda: sum(each.done() for each in reading) >= 280)
            for each in reading:
                each.cancel()
            heads = await asyncio.gather(*reading, return_exceptions=True)
            assert server.gate._admission.open_total == 20
            assert heads.count(b"HTTP/1.1 503") >= 200
            for _, writer in opened:
                writer.close()
            server.application.release.set()
            await eventually(lambda: server.gate._admission.open_total == 0)
        gc.collect()

    run(work())


def test_an_answer_that_the_end_does_not_wait_for_is_a_503(tmp_path: Path) -> None:
    async def work() -> httpx.Response:
        limits = Limits(drain_s_max=0.1)
        async with (
            httpx.AsyncClient() as web,
            running(tmp_path, limits=limits) as (server, _),
        ):
            held = asyncio.ensure_future(web.get(f"{server.url}/v1/hold"))
            await eventually(lambda: server.gate._admission.open_total == 1)
            server.stop()
            return await held

    answer = run(work())
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "overloaded"
    assert "shutting down" in error_of(answer)["message"]
    assert int(answer.headers["retry-after-ms"]) > 0


def test_the_end_of_the_server_is_no_news_and_a_failure_is() -> None:
    def news(message: str) -> bool:
        return _is_news(logging.makeLogRecord({"name": "uvicorn.error", "msg": message}))

    assert not news(
        "Traceback (most recent call last):\n  ...\nasyncio.exceptions.CancelledError\n"
    )
    assert news("Traceback (most recent call last):\n  ...\nRuntimeError: broken\n")


def test_a_failure_inside_says_nothing_of_the_inside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with running(tmp_path) as (server, _), httpx.AsyncClient(base_url=server.url) as web:
            answer = await web.get("/v1/fail")
            assert answer.status_code == 500
            assert "secret" not in answer.text
            assert error_of(answer)["type"] == "server_error"
            assert b'status="500"' in server.metrics.text()

    run(work())
    assert "a secret of the inside" in caplog.text


def test_log_lines_tell_what_happened_and_never_what_was_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work() -> str:
        async with (
            running(tmp_path, keys=True, access_log=True) as (server, key),
            httpx.AsyncClient(base_url=server.url) as web,
        ):
            secret = {**bearer(key), "x-note": "in a header"}
            await web.post("/v1/x?q=in-the-query", content=b"in the body", headers=secret)
            await web.get("/v1/%1b%5b31m%0a%c2%9b%7fred", headers=secret)
            return key

    key = run(work())
    lines = capsys.readouterr().err.splitlines()
    first, second = (json.loads(line) for line in lines)
    assert (first["method"], first["path"], first["status"]) == ("POST", "/v1/x", 200)
    assert first["key"] == key.split("-")[1]
    assert first["request_id"].startswith("req_")
    assert first["total_ms"] >= 0
    assert second["path"] == "/v1/\x1b[31m\n\x9b\x7fred"
    text = "".join(lines)
    assert text.isascii()
    assert text.isprintable()
    for private in (key, "in a header", "in-the-query", "in the body"):
        assert private not in text
