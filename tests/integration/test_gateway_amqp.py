"""A gateway whose answers come from workers: without any, and when the broker goes and comes."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from tests.clients.served import REAL, process
from tests.support.proxy import Proxy
from tests.support.scripted_engine import FOREVER, MODEL, ScriptedEngine, end, text
from tests.support.whole_gateway import Whole, database, rows, whole_gateway

from qbtc.bus import Bus, open_bus
from qbtc.bus.admin import remove_topology
from qbtc.messages.envelope import message, rfc3339
from qbtc.messages.events import Health
from qbtc.worker.language import serve_language
from qbtc_gateway import workers
from qbtc_gateway.settings import Settings
from qbtc_gateway.workers import connect_workers

PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
SHA = "d" * 64


def run[T](work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 120))


@asynccontextmanager
async def gateway(folder: Path, url: str, prefix: str, **settings: Any) -> AsyncIterator[Whole]:
    """Serve with the engine of workers; wait for it half a second at most."""
    given = {"load_wait_s_max": 0.5, "engine": "amqp", "amqp_url": url, "bus_prefix": prefix}
    values = given | settings
    engine = await connect_workers(Settings(**values))
    async with whole_gateway(engine, folder, **values) as whole:
        yield whole


@asynccontextmanager
async def worker(url: str, prefix: str, engine: ScriptedEngine) -> AsyncIterator[Bus]:
    """Answer requests for the length of a block."""
    bus = await open_bus(url, prefix=prefix, source="qbtc/worker/test")
    try:
        work = await serve_language(bus, engine, source="qbtc/worker/test")
        yield bus
        await work.stop(finish_s=1.0)
    finally:
        await bus.close()


async def beat(bus: Bus, status: Literal["ok", "stopping"], *, interval_s: float = 60.0) -> None:
    health = Health(
        service="worker",
        instance="test",
        status=status,
        version="1",
        started_at=rfc3339(datetime.now(UTC)),
        interval_s=interval_s,
    )
    await bus.publish(message(health, source="qbtc/worker/test", subject="worker"))


async def readiness(web: httpx.AsyncClient) -> dict[str, Any]:
    await asyncio.sleep(0.02)
    answer = await web.get("/health/ready")
    assert answer.status_code == (503 if answer.json()["status"] == "unavailable" else 200)
    return dict(answer.json())


async def until(web: httpx.AsyncClient, status: str, *, within_s: float = 40.0) -> dict[str, Any]:
    async with asyncio.timeout(within_s):
        while (said := await readiness(web))["status"] != status:
            pass
    return said


def test_workers_are_waited_for_found_and_missed(
    tmp_path: Path, amqp_url: str, queue_prefix: str
) -> None:
    async def work() -> None:
        try:
            async with gateway(tmp_path, amqp_url, queue_prefix) as whole:
                said = await until(whole.web, "unavailable")
                assert said["reason"].endswith("no worker is there")
                refused = await whole.web.post(PATH, json=CHAT)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "overloaded"
                assert int(refused.headers["retry-after"]) >= 1
                engine = ScriptedEngine([*text("Hel", "lo"), end()], sha256=SHA)
                async with worker(amqp_url, queue_prefix, engine) as bus:
                    await until(whole.web, "ok")
                    answer = await whole.web.post(PATH, json=CHAT | {"temperature": 0})
                    assert answer.json()["choices"][0]["message"]["content"] == "Hello"
                    assert answer.headers["x-qbtc-cache"] == "miss"
                    again = await whole.web.post(PATH, json=CHAT | {"temperature": 0})
                    assert again.headers["x-qbtc-cache"] == "hit"
                    await beat(bus, "ok")
                    figures = (await whole.web.get("/metrics")).text
                    assert 'qbtc_part_up{part="bus"} 1.0' in figures
                    assert "qbtc_bus_published_total" in figures
                    assert "qbtc_bus_pending " in figures
                    # The first word of a worker is kept until it says that it goes.
                    await beat(bus, "stopping")
                    await until(whole.web, "unavailable")
                    await beat(bus, "ok", interval_s=1.0)
                    await until(whole.web, "ok")
                await until(whole.web, "unavailable")
            found = await rows(database(tmp_path), "interactions")
            assert [(row["engine"], row["status"]) for row in found] == [
                ("amqp", 503),
                ("amqp", 200),
                ("amqp", 200),
            ]
        finally:
            await remove_topology(amqp_url, queue_prefix)

    run(work())


def test_a_request_may_come_before_the_worker(
    tmp_path: Path, amqp_url: str, queue_prefix: str
) -> None:
    async def work() -> None:
        try:
            async with gateway(tmp_path, amqp_url, queue_prefix, load_wait_s_max=30.0) as whole:
                asking = asyncio.ensure_future(whole.web.post(PATH, json=CHAT))
                await until(whole.web, "unavailable")
                assert not asking.done()
                async with worker(amqp_url, queue_prefix, ScriptedEngine()):
                    assert (await asking).status_code == 200
        finally:
            await remove_topology(amqp_url, queue_prefix)

    run(work())


def test_a_broker_that_goes_is_told_at_once_and_found_again(
    tmp_path: Path, amqp_url: str, queue_prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work(proxy: Proxy) -> None:
        try:
            async with (
                worker(amqp_url, queue_prefix, ScriptedEngine()),
                gateway(tmp_path, proxy.url, queue_prefix, load_wait_s_max=30.0) as whole,
            ):
                await until(whole.web, "ok")
                whole.services.watch(whole.engine.problem)
                proxy.half_open()
                proxy.cut()
                said = await until(whole.web, "unavailable")
                assert said["reason"].endswith("the message bus is away")
                assert said["away"] == ["bus"]
                start = time.monotonic()
                refused = await whole.web.post(PATH, json=CHAT)
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) >= 1
                assert time.monotonic() - start < 20, "it did not wait for a worker"
                assert await logged(capsys, "degraded") == {"bus", "engine"}
                proxy.resume()
                proxy.cut()
                await until(whole.web, "ok")
                assert (await whole.web.post(PATH, json=CHAT)).status_code == 200
                assert await logged(capsys, "recovered") == {"bus", "engine"}
        finally:
            await remove_topology(amqp_url, queue_prefix)

    with Proxy(amqp_url) as proxy:
        run(work(proxy))


async def logged(capsys: pytest.CaptureFixture[str], event: str) -> set[str]:
    """Wait for two lines of an event; return the parts they are about."""
    parts: set[str] = set()
    async with asyncio.timeout(60):
        while len(parts) < 2:
            await asyncio.sleep(0.05)
            for line in capsys.readouterr().err.splitlines():
                said = json.loads(line) if line.startswith("{") else {}
                if said.get("event") == event:
                    parts.add(said["part"])
    return parts


def test_a_gateway_starts_without_its_broker(
    tmp_path: Path, amqp_url: str, queue_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "CONNECT_S_MAX", 0.2)

    async def work(proxy: Proxy) -> None:
        proxy.half_open()
        try:
            async with gateway(tmp_path, proxy.url, queue_prefix) as whole:
                assert (await readiness(whole.web))["status"] == "unavailable"
                assert (await whole.web.post(PATH, json=CHAT)).status_code == 503
                proxy.resume()
                proxy.cut()
                async with worker(amqp_url, queue_prefix, ScriptedEngine()):
                    await until(whole.web, "ok")
                    assert (await whole.web.post(PATH, json=CHAT)).status_code == 200
        finally:
            await remove_topology(amqp_url, queue_prefix)

    with Proxy(amqp_url) as proxy:
        run(work(proxy))


def test_an_answer_that_does_not_come_in_time_is_a_504(
    tmp_path: Path, amqp_url: str, queue_prefix: str
) -> None:
    async def work() -> None:
        try:
            engine = ScriptedEngine([FOREVER, end()])
            async with (
                worker(amqp_url, queue_prefix, engine),
                gateway(tmp_path, amqp_url, queue_prefix, answer_s_max=3.0) as whole,
            ):
                await until(whole.web, "ok")
                answer = await whole.web.post(PATH, json=CHAT)
                assert answer.status_code == 504
                error = answer.json()["error"]
                assert set(error) == {"message", "type", "param", "code"}
                assert (error["type"], error["code"]) == ("server_error", "timeout")
        finally:
            await remove_topology(amqp_url, queue_prefix)

    run(work())


def test_serve_leaves_the_answering_to_workers(
    tmp_path: Path, amqp_url: str, queue_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QBTC_BUS_PREFIX", queue_prefix)
    named = amqp_url.replace("://", "://guest:guest@", 1) if "@" not in amqp_url else amqp_url

    async def work() -> None:
        try:
            async with worker(amqp_url, queue_prefix, ScriptedEngine()):
                await asyncio.to_thread(ask)
        finally:
            await remove_topology(amqp_url, queue_prefix)

    def ask() -> None:
        options = ("--engine", "amqp", "--amqp-url", named)
        with process(tmp_path, *options, command=REAL) as server:
            assert (server.line["engine"], server.line["model"]) == ("amqp", None)
            answer = httpx.post(f"{server.url}{PATH}", json=CHAT, timeout=60)
            assert answer.status_code == 200, answer.text
            assert server.stop() < 20
            assert server.process.returncode == 0
        ready = next(line for line in server.lines if line.get("event") == "ready")
        assert ready["engine"] == "amqp"
        assert "guest" not in str([*server.lines, server.line])

    run(work())


def test_a_gateway_with_workers_loads_no_model_code() -> None:
    code = (
        "import sys, qbtc_gateway.workers, qbtc_gateway.server, qbtc_gateway.app\n"
        "heavy = {'numpy', 'qbtc._core', 'qbtc.llm.local', 'nautilus_trader', 'redis'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
