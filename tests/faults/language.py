"""Rows about answers: the worker killed amid them, Redis gone, clients that do not read.

The processes are the real ones, `qbtc serve` and `qbtc worker`, with the default model.
"""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
from tests.faults.harness import PROBE_S_MAX, Outcome, Setting, depth, percentile, rss_mib, until
from tests.support.system import Part, System, wait_for

from qbtc.bus.topology import LLM_REQUESTS
from qbtc.llm.models import DEFAULT_CHAT_MODEL
from qbtc.stack.servers import RabbitServer, RedisServer

PREFIX = "faults."
STREAMS = 4
KILLS_MAX = 5
TOKENS = 120
ANSWER_S_MAX = 120.0
RATE_MAX = 60
"""Requests a minute that the row about Redis allows."""
MEMORY_MIB_MAX = 64.0
SLOW_CLIENTS = 6
ASKED = 40


@contextlib.contextmanager
def gateway(
    setting: Setting, broker: RabbitServer, *options: str, **variables: str
) -> Iterator[tuple[System, Part]]:
    """Run a gateway that keeps no records."""
    home = setting.folder / "home"
    home.mkdir()
    system = System(
        home,
        {
            "QBTC_AMQP_URL": broker.url,
            "QBTC_BUS_PREFIX": PREFIX,
            "QBTC_DATABASE_URL": "off",
            **variables,
        },
    )
    with system.gateway(*options) as part:
        yield system, part


def question(seed: int, *, tokens: int = TOKENS, stream: bool = True) -> dict[str, Any]:
    """Ask for a long answer that the seed alone decides."""
    return {
        "model": DEFAULT_CHAT_MODEL,
        "messages": [{"role": "user", "content": f"Tell a long story about number {seed}."}],
        "max_tokens": tokens,
        "temperature": 0.8,
        "seed": seed,
        "stream": stream,
    }


async def pieces(client: httpx.AsyncClient, url: str, ask: dict[str, Any]) -> AsyncIterator[str]:
    """Yield the text of a stream, piece by piece; raise what the stream says went wrong."""
    async with client.stream("POST", f"{url}/v1/chat/completions", json=ask) as answer:
        if answer.status_code != 200:
            raise RuntimeError((await answer.aread()).decode())
        ended = False
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                ended = True
                break
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            for choice in event["choices"]:
                if text := choice["delta"].get("content"):
                    yield text
        if not ended:
            raise RuntimeError("the stream ended without its end")


async def whole(client: httpx.AsyncClient, url: str, ask: dict[str, Any]) -> str:
    """Return the text of a stream."""
    return "".join([piece async for piece in pieces(client, url, ask)])


async def worker_killed(setting: Setting) -> Outcome:
    """SIGKILL the only worker while streams run through it, and start another."""
    kills = 1 if setting.short else min(setting.kills, KILLS_MAX)
    outcome = Outcome(fault=f"worker SIGKILLed {kills} times amid {STREAMS} streams each")
    chance = setting.random("worker")
    cut = 0
    with (
        RabbitServer(setting.folder / "rabbit") as broker,
        gateway(setting, broker) as (
            system,
            server,
        ),
    ):
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=ANSWER_S_MAX, limits=limits) as client:
            with contextlib.ExitStack() as workers:
                worker = await asyncio.to_thread(workers.enter_context, system.worker())
                await asyncio.to_thread(ready, server)
                for kill in range(kills):
                    setting.say(f"kill {kill + 1} of {kills}")
                    asks = [question(100 * kill + k) for k in range(STREAMS)]
                    told = await asyncio.gather(*(whole(client, server.url, a) for a in asks))
                    after = chance.randint(STREAMS, STREAMS * TOKENS // 3)
                    seen, reached = [0], asyncio.Event()
                    streams = [
                        asyncio.create_task(_watched(client, server.url, a, seen, after, reached))
                        for a in asks
                    ]
                    await asyncio.wait_for(reached.wait(), ANSWER_S_MAX)
                    worker.kill()
                    cut += sum(not stream.done() for stream in streams)
                    worker = await asyncio.to_thread(workers.enter_context, system.worker())
                    for text, stream in zip(told, streams, strict=True):
                        await _judge(outcome, text, stream)

                # Looked at while the last worker lives: it may still be saying that it is done.
                async def empty() -> bool:
                    return await depth(broker.url, PREFIX + LLM_REQUESTS) == 0

                outcome.expect(
                    await until(empty, within_s=PROBE_S_MAX), "requests are left in the queue"
                )
    outcome.expect(cut > 0, "no kill hit a stream: the answers were too short")
    outcome.notes = (
        f"{cut} streams had no worker for a time; each is the same, character by character, as one"
        " that was left in peace"
    )
    return outcome


async def _watched(
    client: httpx.AsyncClient,
    url: str,
    ask: dict[str, Any],
    seen: list[int],
    after: int,
    reached: asyncio.Event,
) -> str:
    text = ""
    async for piece in pieces(client, url, ask):
        text += piece
        seen[0] += 1
        if seen[0] >= after:
            reached.set()
    reached.set()
    return text


async def _judge(outcome: Outcome, told: str, stream: "asyncio.Task[str]") -> None:
    outcome.accepted += 1
    try:
        text = await asyncio.wait_for(stream, ANSWER_S_MAX)
    except (RuntimeError, httpx.HTTPError, TimeoutError) as error:
        outcome.lost += 1
        outcome.wrong.append(f"a stream failed: {error!r}")
        return
    if text == told:
        outcome.processed += 1
    elif len(text) > len(told):
        outcome.duplicated += 1
    else:
        outcome.lost += 1


def ready(server: Part) -> None:
    """Wait until requests are answered."""
    url = f"{server.url}/health/ready"
    assert wait_for(lambda: httpx.get(url, timeout=60).status_code == 200), "not ready in time"


async def redis_killed(setting: Setting) -> Outcome:
    """SIGKILL Redis between questions, and ask more than is allowed."""
    outcome = Outcome(fault="Redis SIGKILLed")
    config = setting.folder / "serve.toml"
    config.write_text(f"[serve.limits]\nrequests_per_minute_max = {RATE_MAX}\n")
    with (
        RabbitServer(setting.folder / "rabbit") as broker,
        RedisServer(setting.folder / "redis") as redis,
        gateway(setting, broker, "--config", str(config), QBTC_REDIS_URL=redis.url) as (
            system,
            server,
        ),
        system.worker(),
    ):
        await asyncio.to_thread(ready, server)
        async with httpx.AsyncClient(timeout=ANSWER_S_MAX) as client:
            url = f"{server.url}/v1/chat/completions"
            asks = [
                {**question(seed, tokens=12, stream=False), "temperature": 0} for seed in range(5)
            ]

            async def ask(body: dict[str, Any]) -> tuple[int, str]:
                answer = await client.post(url, json=body)
                if answer.status_code != 200:
                    return answer.status_code, ""
                return 200, answer.json()["choices"][0]["message"]["content"]

            before = [await ask(body) for body in asks]
            kept = [await ask(body) for body in asks]
            await asyncio.to_thread(redis.kill)
            setting.say("Redis is away")
            after = [await ask(body) for body in asks]
            for first, second, third in zip(before, kept, after, strict=True):
                outcome.accepted += 1
                same = first[0] == 200 and first == second == third
                outcome.processed += same
                outcome.lost += not same
            start = time.monotonic()
            flood = await asyncio.gather(
                *(ask({**asks[0], "max_tokens": 1}) for _ in range(3 * RATE_MAX))
            )
            allowed = RATE_MAX * (1 + (time.monotonic() - start) / 60) + 1
            answered = sum(status == 200 for status, _ in flood)
            refused = sum(status == 429 for status, _ in flood)
            missing = (await client.get(f"{server.url}/health/ready")).json()
            await asyncio.to_thread(redis.start)
            found = await asyncio.to_thread(
                wait_for,
                lambda: (
                    httpx.get(f"{server.url}/health/ready", timeout=60).json()["status"] == "ok"
                ),
            )
    outcome.expect(answered <= allowed, f"{answered} of {len(flood)} answered; {RATE_MAX} may be")
    outcome.expect(
        answered + refused == len(flood), "something else than an answer or a refusal came"
    )
    outcome.expect("redis" in missing.get("away", ()), "nobody said that Redis is away")
    outcome.expect(bool(found), "Redis was not found again")
    outcome.notes = (
        f"answers at temperature 0 the same before, kept and after; {RATE_MAX} a minute allowed"
        f" and Redis away, {len(flood)} at once: {answered} answered, {refused} refused"
    )
    return outcome


async def slow_clients(setting: Setting) -> Outcome:
    """Let clients ask for long streams and read nothing, while others ask and read."""
    outcome = Outcome(fault=f"{SLOW_CLIENTS} clients that do not read their streams")
    asked = ASKED // (4 if setting.short else 1)
    with (
        RabbitServer(setting.folder / "rabbit") as broker,
        gateway(setting, broker) as (system, server),
        system.worker("--concurrency", "32") as worker,
    ):
        await asyncio.to_thread(ready, server)
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=ANSWER_S_MAX, limits=limits) as client:
            await _short_answers(client, server.url, 2, seed=0)
            long = [question(900 + k, tokens=1_500) for k in range(SLOW_CLIENTS)]
            # The same load, first with clients that read: what differs is the reading alone.
            readers = [asyncio.create_task(whole(client, server.url, ask)) for ask in long]
            beside_readers = await _short_answers(client, server.url, asked, seed=1_000)
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
            before = rss_mib(server.pid) + rss_mib(worker.pid)
            with contextlib.ExitStack() as silent:
                for ask in long:
                    silent.enter_context(_silent_client(server.url, ask))
                beside_silent = await _short_answers(client, server.url, asked, seed=2_000)
                grown = rss_mib(server.pid) + rss_mib(worker.pid) - before
    outcome.accepted = 2 * asked
    outcome.processed = len(beside_readers) + len(beside_silent)
    outcome.lost = outcome.accepted - outcome.processed
    outcome.expect(grown < MEMORY_MIB_MAX, f"memory grew by {grown:.0f} MiB")
    quick, slow = percentile(beside_readers, 0.99), percentile(beside_silent, 0.99)
    outcome.expect(slow < 2 * quick, f"others waited {slow / quick:.1f} times as long")
    outcome.notes = (
        f"others' p99 to the whole answer: {1e3 * quick:.0f} ms beside clients that read,"
        f" {1e3 * slow:.0f} ms beside these; gateway and worker {grown:+.0f} MiB"
    )
    return outcome


async def _short_answers(
    client: httpx.AsyncClient, url: str, count: int, *, seed: int
) -> list[float]:
    """Ask short questions, two at a time; return how long each whole answer took."""
    took: list[float] = []
    places = asyncio.Semaphore(2)

    async def one(number: int) -> None:
        async with places:
            start = time.monotonic()
            if await whole(client, url, question(number, tokens=4)):
                took.append(time.monotonic() - start)

    await asyncio.gather(*(one(seed + k) for k in range(count)))
    return took


@contextlib.contextmanager
def _silent_client(url: str, ask: dict[str, Any]) -> Iterator[None]:
    """Ask for a stream and read nothing of it."""
    host, _, port = url.removeprefix("http://").partition(":")
    body = json.dumps(ask).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        link.settimeout(20)
        link.connect((host, int(port)))
        link.sendall(head.encode() + body)
        yield
