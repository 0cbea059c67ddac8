"""What the gateway costs above the engine: gate, typed body, routes, events to server-sent events.

Sketch: a coding agent's first request is 45 kB of JSON; decoding it into structs is about 50 us,
and a streamed token is one dictionary, one encoder call and one write, a few us. The engine is
scripted, so that nothing else is measured; sockets are left out, as every server has them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from starlette.middleware import Middleware
from tests.support.scripted_engine import MODEL, ScriptedEngine, end, text

from benchmarks.reporting import Report, Target
from benchmarks.timing import Burst, Samples, interleave
from qbtc.messages.language import Event
from qbtc_gateway.app import create_app
from qbtc_gateway.metrics import Metrics
from qbtc_gateway.security.gate import Gate
from qbtc_gateway.security.keys import KeyFile, KeyRing
from qbtc_gateway.settings import Limits, Settings

pytestmark = pytest.mark.benchmark

TOKENS = 64
REQUESTS = 50
HELLO: dict[str, Any] = {
    "model": MODEL,
    "stream": True,
    "messages": [{"role": "user", "content": "Hello"}],
}
AGENT = HELLO | {
    "messages": [
        {"role": "system", "content": "You are a careful engineer. " * 550},
        {"role": "user", "content": [{"type": "text", "text": "Mend the test."}]},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": f"tool_{index}",
                "description": "What it does, and when to use it. " * 20,
                "strict": True,
                "parameters": {
                    "type": "object",
                    "properties": {
                        f"field_{name}": {
                            "type": "string",
                            "description": "What goes in here. " * 3,
                        }
                        for name in range(6)
                    },
                    "required": ["field_0"],
                    "additionalProperties": False,
                },
            },
        }
        for index in range(21)
    ],
}


@pytest.mark.parametrize(("name", "body"), [("a question", HELLO), ("an agent's 21 tools", AGENT)])
def test_overhead(
    benchmark: BenchmarkFixture, report: Report, tmp_path: Path, name: str, body: dict[str, Any]
) -> None:
    settings = Settings(access_log=False, limits=Limits(requests_per_minute_max=0))
    engine = ScriptedEngine([*text(*["word "] * TOKENS), end()])
    keys = KeyRing(KeyFile(tmp_path / "keys.json"))
    gate = Middleware(Gate, settings=settings, keys=keys, metrics=Metrics(lambda: None))
    app = create_app(settings, engine, middleware=[gate])
    raw = msgspec.json.encode(body)

    with asyncio.Runner() as runner:

        async def events() -> tuple[float, float]:
            return await _time(engine.chat(engine.asked[0]))  # type: ignore[arg-type]

        async def wire() -> tuple[float, float]:
            return await _visit(app, raw)

        runner.run(wire())

        def bursts(ask: Callable[[], Awaitable[tuple[float, float]]], which: int) -> Burst:
            async def several() -> float:
                times = [(await ask())[which] for _ in range(REQUESTS)]
                del engine.asked[1:]
                return sorted(times)[REQUESTS // 2]

            return lambda: runner.run(several())

        found: list[Samples] = []
        contenders: dict[str, Burst] = {}
        for which, part in enumerate(("first", "whole")):
            contenders[f"gateway {part}"] = bursts(wire, which)
            contenders[f"engine {part}"] = bursts(events, which)
        samples = interleave(benchmark, contenders, rounds=15)
        found = [
            samples[f"gateway {part}"].minus(samples[f"engine {part}"])
            for part in ("first", "whole")
        ]
    group = "gateway, above the engine"
    report.add(
        group, f"{name}, to the first byte", found[0], unit="us", target=Target("value", 1_000)
    )
    report.add(
        group,
        f"{name}, a stream of {TOKENS} tokens to its end",
        found[1],
        unit="us",
        target=Target("value", 1_000),
        note="medians of 50 requests one after another, without sockets.",
    )


async def _time(events: AsyncIterator[Event]) -> tuple[float, float]:
    """Return the time to the first event and to the last, ns."""
    start = time.perf_counter_ns()
    await anext(events)
    first = time.perf_counter_ns() - start
    async for _ in events:
        pass
    return first, time.perf_counter_ns() - start


async def _visit(app: Any, raw: bytes) -> tuple[float, float]:
    """Return the time to the first byte of a body and to the end, ns."""
    first = 0
    sent = iter([{"type": "http.request", "body": raw, "more_body": False}])
    left = asyncio.Event()

    async def receive() -> Any:
        if (message := next(sent, None)) is None:
            await left.wait()
        return message

    async def send(message: Any) -> None:
        nonlocal first
        if not first and message["type"] == "http.response.body":
            first = time.perf_counter_ns()

    headers = {"host": "127.0.0.1:8000", "content-type": "application/json"}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()]
        + [(b"content-length", b"%d" % len(raw))],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
    start = time.perf_counter_ns()
    await app(scope, receive, send)
    return first - start, time.perf_counter_ns() - start
