"""Health, figures and loading, through the whole application."""

import asyncio
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.clients.served import serving
from tests.support.scripted_engine import ScriptedEngine, end, text

from qbtc.errors import ModelError, RunFailed
from qbtc.llm.engine import Engine
from qbtc_gateway.loading import LoadingEngine
from qbtc_gateway.security.keys import KeyFile, KeyRing
from qbtc_gateway.server import build_app
from qbtc_gateway.settings import Settings

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "a private question"}]}


def _web(engine: LoadingEngine, folder: Path) -> httpx.AsyncClient:
    app = build_app(Settings(access_log=False), engine, KeyRing(KeyFile(folder / "keys.json")))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


def _samples(figures: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(figures)
        for sample in family.samples
    }


def test_requests_wait_while_the_model_is_loaded(tmp_path: Path) -> None:
    async def work() -> None:
        gate = asyncio.Event()

        async def load() -> Engine:
            await gate.wait()
            return ScriptedEngine([*text("Hel", "lo"), end()])

        engine = LoadingEngine(load, wait_s_max=10)
        async with _web(engine, tmp_path) as web:
            engine.start()
            assert (await web.get("/health/live")).status_code == 200
            early = await web.get("/health/ready")
            assert early.status_code == 503
            assert early.json()["reason"] == "the model is being loaded"
            asking = asyncio.ensure_future(web.post("/v1/chat/completions", json=CHAT))
            await asyncio.sleep(0.05)
            assert not asking.done()
            gate.set()
            answer = await asking
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"] == "Hello"
            assert (await web.get("/health/ready")).status_code == 200
            await engine.close()
            assert (await web.get("/health/ready")).status_code == 503

    asyncio.run(work())


def test_a_model_that_cannot_be_loaded_makes_the_server_unready(tmp_path: Path) -> None:
    async def work() -> None:
        async def load() -> Engine:
            raise ModelError("broken")

        engine = LoadingEngine(load, wait_s_max=10)
        async with _web(engine, tmp_path) as web:
            with pytest.raises(ModelError):
                await engine.start()
            assert (await web.get("/health/ready")).status_code == 503
            answer = await web.post("/v1/chat/completions", json=CHAT)
            assert answer.status_code == 503
            assert "retry-after-ms" in answer.headers

    asyncio.run(work())


def test_an_engine_that_broke_makes_the_server_unready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        broken = ScriptedEngine()

        def stats() -> None:
            raise RunFailed("the engine failed")

        async def load() -> Engine:
            return broken

        engine = LoadingEngine(load, wait_s_max=10)
        async with _web(engine, tmp_path) as web:
            await engine.start()
            assert (await web.get("/health/ready")).status_code == 200
            monkeypatch.setattr(broken, "stats", stats)
            answer = await web.get("/health/ready")
            assert answer.status_code == 503
            assert answer.json()["reason"] == "the engine does not answer: the engine failed"
            figures = await web.get("/metrics")
            assert figures.status_code == 200
            assert "qbtc_requests_total" in figures.text

    asyncio.run(work())


def test_figures_tell_times_tokens_and_routes(tmp_path: Path) -> None:
    async def work() -> None:
        async def load() -> Engine:
            return ScriptedEngine([*text("a", "b", "c"), end(prompt=11, completion=3, cached=4)])

        engine = LoadingEngine(load, wait_s_max=10)
        async with _web(engine, tmp_path) as web:
            await web.post("/v1/chat/completions", json=CHAT | {"strange": 1, "odd": 2})
            await web.post("/v1/chat/completions", json=CHAT | {"stream": True})
            await web.post("/v1/chat/completions", json=CHAT | {"model": "none"})
            await web.post("/v1/chat/completions/input_tokens", json=CHAT)
            for number in range(5):
                await web.get(f"/v1/unknown/{number}")
            answer = await web.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "private" not in answer.text
        figures = _samples(answer.text)
        chat = ("method", "POST"), ("route", "/v1/chat/completions")
        assert figures["qbtc_requests_total", (*chat, ("status", "200"))] == 2
        assert figures["qbtc_requests_total", (*chat, ("status", "404"))] == 1
        other = ("method", "GET"), ("route", "other"), ("status", "404")
        assert figures["qbtc_requests_total", other] == 5
        count = ("method", "POST"), ("route", "/v1/chat/completions/input_tokens")
        assert figures["qbtc_requests_total", (*count, ("status", "200"))] == 1
        assert figures["qbtc_tokens_total", (("kind", "prompt"),)] == 22
        assert figures["qbtc_tokens_total", (("kind", "cached"),)] == 8
        assert figures["qbtc_tokens_total", (("kind", "completion"),)] == 6
        assert figures["qbtc_time_to_first_token_seconds_count", ()] == 2
        assert figures["qbtc_inter_token_seconds_count", ()] == 4
        assert figures["qbtc_queue_seconds_count", ()] == 2
        assert figures["qbtc_ignored_fields_total", ()] == 2
        assert figures["qbtc_engine_queued", ()] == 0

    asyncio.run(work())


def test_no_page_runs_scripts_of_other_hosts(tmp_path: Path) -> None:
    async def work() -> None:
        async def load() -> Engine:
            return ScriptedEngine()

        async with _web(LoadingEngine(load, wait_s_max=10), tmp_path) as web:
            for path in ("/docs", "/redoc", "/docs/oauth2-redirect"):
                assert (await web.get(path)).status_code == 404
            assert (await web.get("/openapi.json")).status_code == 200

    asyncio.run(work())


def test_probes_may_ask_by_head(tmp_path: Path) -> None:
    paths = ("/", "/health", "/health/live", "/health/ready", "/metrics", "/v1/models")
    with serving(ScriptedEngine(), tmp_path) as url, httpx.Client(base_url=url) as web:
        for path in (*paths, "/v1/models/scripted", "/openapi.json"):
            told = web.head(path)
            assert (told.status_code, told.content) == (200, b""), path
            assert int(told.headers["content-length"]) > 0
            # On the same connection: a body after the first answer would be read as this one.
            asked = web.get(path)
            assert asked.headers["content-type"] == told.headers["content-type"]
        described = web.get("/openapi.json").json()["paths"]
    assert not [path for path, methods in described.items() if "head" in methods]


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("", False),
        ("gzip", True),
        ("deflate, GZIP;q=0.5, br", True),
        ("*", True),
        ("gzip; Q=1.000", True),
        ("br, *;q=0.1", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("identity, *;q=0", False),
        ("gzip;q=nan", False),
        ("gzipped", False),
    ],
)
def test_the_page_is_packed_only_for_who_takes_gzip(
    tmp_path: Path, accepted: str, packed: bool
) -> None:
    async def work() -> None:
        async with _web(LoadingEngine(asyncio.Future, wait_s_max=10), tmp_path) as web:
            answer = await web.get("/", headers={"accept-encoding": accepted})
            assert ("content-encoding" in answer.headers) is packed
            assert answer.headers["vary"] == "accept-encoding"
            assert "<title>QBTC chat</title>" in answer.text

    asyncio.run(work())
