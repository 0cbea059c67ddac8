"""Mixed load on a real server for a while: ``python -m benchmarks.soak --minutes 30``.

Starts ``qbtc serve`` on a loopback port and keeps several kinds of clients at it: readers of
streams, clients that hang up at every stage, bursts far above the queue, clients that stop reading,
grammars, embeddings, and bodies that are wrong in every way we know. Prints what each kind met, the
times of the admitted requests, and the server's memory over time; writes ``out/soak.json``.

Exit code 1 if the server answered with a 5xx, broke a stream it had begun, lost a client without an
answer, ended, or grew by more than ``GROWTH_MIB_MAX`` after the warm-up.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.reporting import commit, machine

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(__file__).parent / "out"

GROWTH_MIB_MAX = 64.0
"""Memory may differ by this much between the end of the warm-up and the end."""
WARM_UP_SHARE = 0.2
SAMPLE_S = 2.0
START_S_MAX = 60.0
REQUEST_S_MAX = 240.0
FLOOD_REQUESTS = 400
FLOOD_EVERY_S = 30.0
SLOW_READER_S = 20.0
MODEL = "smollm2-135m-instruct"

_WORDS = [
    "market",
    "order",
    "book",
    "price",
    "depth",
    "trade",
    "spread",
    "signal",
    "latency",
    "quote",
    "fill",
    "cost",
    "risk",
]
_SCHEMA = {
    "type": "object",
    "properties": {"side": {"enum": ["buy", "sell"]}, "size": {"type": "integer", "maximum": 99}},
    "required": ["side", "size"],
    "additionalProperties": False,
}


@dataclass
class Seen:
    """What the clients met."""

    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    first_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)
    broken: Counter[str] = field(default_factory=Counter)
    rss_mib: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Load:
    """One run: the server's address, a source of randomness, and what was seen."""

    client: httpx.AsyncClient
    rng: random.Random
    seen: Seen
    ends: float

    def running(self) -> bool:
        """Tell whether there is time left."""
        return time.monotonic() < self.ends

    def chat(self, *, tokens: int, stream: bool, words: int | None = None) -> dict[str, Any]:
        """Return a chat body: one of a few system prompts, a random question."""
        count = words or self.rng.choice([5, 30, 200])
        question = " ".join(self.rng.choices(_WORDS, k=count))
        system = f"You are assistant {self.rng.randrange(4)}. " + " ".join(_WORDS * 10)
        return {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": question},
            ],
            "max_tokens": tokens,
            "stream": stream,
            "stream_options": {"include_usage": True} if stream else None,
            "seed": self.rng.randrange(1000),
        }


async def _read_streams(load: Load) -> None:
    """Read whole streams and check that they end as they must."""
    while load.running():
        body = load.chat(tokens=load.rng.choice([16, 64, 128]), stream=True)
        start, first, last = time.monotonic(), None, ""
        async with load.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            load.seen.statuses["stream"][str(answer.status_code)] += 1
            if answer.status_code != 200:
                await answer.aread()
                await asyncio.sleep(load.rng.uniform(0.1, 1.0))
                continue
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    last = line
                    if first is None and '"content"' in line:
                        first = time.monotonic() - start
                    if line != "data: [DONE]" and "error" in json.loads(line[6:]):
                        load.seen.broken["error inside a stream"] += 1
        if last != "data: [DONE]":
            load.seen.broken["stream without [DONE]"] += 1
        elif first is not None:
            load.seen.first_s.append(first)
            load.seen.total_s.append(time.monotonic() - start)


async def _hang_up(load: Load) -> None:
    """Leave before the first byte, during the prompt, or after a few pieces."""
    while load.running():
        body = load.chat(tokens=200, stream=load.rng.random() < 0.8)
        try:
            async with asyncio.timeout(load.rng.choice([0.005, 0.05, 0.3, 1.0])):
                answer = await load.client.post("/v1/chat/completions", json=body)
                load.seen.statuses["hang-up"][str(answer.status_code)] += 1
        except TimeoutError:
            load.seen.statuses["hang-up"]["left"] += 1
        await asyncio.sleep(load.rng.uniform(0.0, 0.2))


async def _flood(load: Load) -> None:
    """Send far more at once than the queue holds."""

    async def one() -> None:
        answer = await load.client.post(
            "/v1/chat/completions", json=load.chat(tokens=4, stream=False, words=3)
        )
        load.seen.statuses["flood"][str(answer.status_code)] += 1
        if answer.status_code == 429 and "retry-after" not in answer.headers:
            load.seen.broken["429 without Retry-After"] += 1

    while load.running():
        await asyncio.gather(*(one() for _ in range(FLOOD_REQUESTS)))
        await asyncio.sleep(min(FLOOD_EVERY_S, max(load.ends - time.monotonic(), 0)))


async def _stop_reading(load: Load) -> None:
    """Open a long stream and read nothing for a while."""
    while load.running():
        body = load.chat(tokens=400, stream=True)
        async with load.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            load.seen.statuses["slow reader"][str(answer.status_code)] += 1
            await asyncio.sleep(min(SLOW_READER_S, max(load.ends - time.monotonic(), 0)))


async def _grammar(load: Load) -> None:
    """Ask for JSON by schema and parse it."""
    while load.running():
        body = load.chat(tokens=60, stream=False)
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "order", "schema": _SCHEMA, "strict": True},
        }
        answer = await load.client.post("/v1/chat/completions", json=body)
        load.seen.statuses["grammar"][str(answer.status_code)] += 1
        if answer.status_code == 200:
            choice = answer.json()["choices"][0]
            try:
                json.loads(choice["message"]["content"])
            except ValueError:
                if choice["finish_reason"] == "stop":
                    load.seen.broken["finished JSON that does not parse"] += 1
        await asyncio.sleep(0.5)


async def _embed(load: Load) -> None:
    while load.running():
        texts = [" ".join(load.rng.choices(_WORDS, k=12)) for _ in range(8)]
        answer = await load.client.post(
            "/v1/embeddings", json={"model": "all-minilm-l6-v2", "input": texts}
        )
        load.seen.statuses["embeddings"][str(answer.status_code)] += 1
        await asyncio.sleep(0.5)


async def _bad_input(load: Load) -> None:
    """Send what must be refused with a 4xx."""
    deep = "[" * 50_000 + "]" * 50_000
    hello = [{"role": "user", "content": "hello"}]
    bodies: list[bytes] = [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b'{"model": "\xff"}',
        deep.encode(),
        b"x" * 12_000_000,
        *(
            json.dumps({"model": MODEL, "messages": hello, **wrong}).encode()
            for wrong in (
                {"max_tokens": -1},
                {"temperature": "hot"},
                {"temperature": 1e308},
                {"n": 10**9},
                {"messages": []},
                {"messages": "hello"},
                {"messages": [{"role": "user", "content": "word " * 20_000}]},
                {"model": "no-such-model"},
                {"stop": ["a"] * 1000},
                {"logit_bias": {"99999999": 1}},
                {"tools": [{"type": "function"}]},
                {"tool_choice": {"type": "function", "function": {"name": "absent"}}},
                {
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"name": "x", "schema": {"$ref": "#"}},
                    }
                },
            )
        ),
    ]
    while load.running():
        body = load.rng.choice(bodies)
        if load.rng.random() < 0.3:
            body = bytes(load.rng.randrange(256) for _ in range(load.rng.randrange(400)))
        answer = await load.client.post(
            "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        )
        load.seen.statuses["bad input"][str(answer.status_code)] += 1
        if answer.status_code < 400:
            load.seen.broken["bad input was answered"] += 1
        await asyncio.sleep(0.05)


_KINDS: tuple[tuple[Callable[[Load], Awaitable[None]], int], ...] = (
    (_read_streams, 6),
    (_hang_up, 4),
    (_flood, 1),
    (_stop_reading, 2),
    (_grammar, 1),
    (_embed, 1),
    (_bad_input, 2),
)


async def _insist(kind: Callable[[Load], Awaitable[None]], load: Load) -> None:
    """Keep one client going; a connection that breaks without an answer is counted."""
    while load.running():
        try:
            await kind(load)
        except httpx.HTTPError as error:
            load.seen.broken[f"{kind.__name__.strip('_')}: {type(error).__name__}"] += 1
            await asyncio.sleep(0.2)


def _rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS: the server is gone")


async def _watch(load: Load, server: subprocess.Popen[str], minutes: float) -> None:
    """Sample the server's memory until the end."""
    start = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("soak", total=minutes * 60)
        while load.running():
            if server.poll() is not None:
                raise RuntimeError(f"the server ended with {server.returncode}")
            rss = _rss_mib(server.pid)
            load.seen.rss_mib.append((time.monotonic() - start, rss))
            done = sum(load.seen.statuses["stream"].values())
            progress.update(
                task,
                completed=time.monotonic() - start,
                description=f"{rss:.0f} MiB, {done} streams, broken {load.seen.broken.total()}",
            )
            await asyncio.sleep(SAMPLE_S)


async def _run(url: str, server: subprocess.Popen[str], minutes: float, seed: int) -> Seen:
    seen = Seen()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=REQUEST_S_MAX) as client:
        load = Load(client, random.Random(seed), seen, time.monotonic() + minutes * 60)
        async with asyncio.TaskGroup() as group:
            group.create_task(_watch(load, server, minutes))
            for kind, count in _KINDS:
                for _ in range(count):
                    group.create_task(_insist(kind, load))
    return seen


def _summary(seen: Seen, minutes: float) -> dict[str, Any]:
    after = [rss for at, rss in seen.rss_mib if at >= WARM_UP_SHARE * minutes * 60]
    tenth = max(len(after) // 10, 1)
    begin, end = float(np.median(after[:tenth])), float(np.median(after[-tenth:]))
    fives = sum(
        count for met in seen.statuses.values() for code, count in met.items() if code[0] == "5"
    )
    return {
        "commit": commit(ROOT),
        "machine": machine(),
        "minutes": minutes,
        "statuses": {kind: dict(met) for kind, met in seen.statuses.items()},
        "server_errors": fives,
        "broken": dict(seen.broken),
        "streams": len(seen.total_s),
        "first_token_s": _percentiles(seen.first_s),
        "total_s": _percentiles(seen.total_s),
        "rss_mib": {"warm": begin, "end": end, "max": max(after)},
        "rss_samples": [[round(at, 1), round(rss, 1)] for at, rss in seen.rss_mib],
    }


def _percentiles(values: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "max": max(values)}


def _print(summary: dict[str, Any]) -> None:
    table = Table(title=f"{summary['minutes']:g} minutes of mixed load")
    for heading in ("client", "answers by status"):
        table.add_column(heading)
    for kind, met in summary["statuses"].items():
        table.add_row(kind, ", ".join(f"{code}: {count:,}" for code, count in sorted(met.items())))
    console = Console()
    console.print(table)
    first, total, rss = summary["first_token_s"], summary["total_s"], summary["rss_mib"]
    console.print(
        f"{summary['streams']:,} whole streams: first token p50 {first['p50']:.3f} s, p99"
        f" {first['p99']:.3f} s; total p50 {total['p50']:.2f} s, p99 {total['p99']:.2f} s"
    )
    console.print(
        f"memory after warm-up {rss['warm']:.0f} MiB, end {rss['end']:.0f}, max {rss['max']:.0f};"
        f" 5xx {summary['server_errors']}, broken {summary['broken'] or 0}"
    )


def main() -> None:
    """Run the load and end with 1 if the server failed it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "qbtc", "serve", "--port", "0", "--json"]
    with (OUT / "soak.log").open("w", encoding="utf-8") as log, TemporaryDirectory() as data:
        env = {**os.environ, "XDG_DATA_HOME": data, "QBTC_DATABASE_URL": ""}
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=env
        )
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["page"].rstrip("/")
            seen = asyncio.run(_run(url, server, options.minutes, options.seed))
        finally:
            server.terminate()
            server.wait(timeout=START_S_MAX)
    summary = _summary(seen, options.minutes)
    (OUT / "soak.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    _print(summary)
    rss = summary["rss_mib"]
    grown = rss["end"] - rss["warm"] > GROWTH_MIB_MAX
    sys.exit(1 if summary["server_errors"] or summary["broken"] or grown else 0)


if __name__ == "__main__":
    main()
