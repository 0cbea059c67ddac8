"""Whether each part of a stack does its work now, and one figure of it. Every probe is bounded."""

import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Here and not where they are used: probes run side by side, and two threads that import parts of a
# package at the same time can find each other's locks.
import asyncpg
import msgspec
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity
from redis.asyncio import Redis

from qbtc.bus.admin import link, queue_status
from qbtc.bus.topology import DEAD, EVENTS, LLM_REQUESTS, TRADING_REQUESTS
from qbtc.errors import BusError, InputError, MessageError
from qbtc.messages.codec import decode
from qbtc.messages.events import Health
from qbtc.store.postgres import through_pooler

__all__ = ["LOOK_S", "Probe", "Pulse", "hear", "probe_gateway", "probe_server", "tail"]

PROBE_S_MAX = 10.0
HEARTBEAT_S_MAX = 12.0
"""A worker that is silent for longer is not healthy."""
LOOK_S = 0.2
"""Between two looks at whether an answer is still wanted."""

_FORMS = {
    "postgres": "postgresql://user:password@host:port/database",
    "redis": "redis://user:password@host:port/number",
    "rabbitmq": "amqp://user:password@host:port/vhost",
}


class Probe(msgspec.Struct, frozen=True):
    """What was found."""

    why: str = ""
    """Why it is not healthy; empty: it is."""
    figure: str = ""


class Pulse(msgspec.Struct, frozen=True):
    """What a heartbeat said, or why there was none."""

    heard_s: float = 0.0
    """On the monotonic clock."""
    health: Health | None = None
    problem: str = ""


def probe_server(name: str, url: str, *, prefix: str = "") -> Probe:
    """Ask a server something that only a working one answers.

    Parameters
    ----------
    name
        As in ``SERVERS``.
    url
        Where it is; what is found never quotes it.
    prefix
        Of the queues whose messages are counted.
    """
    ask: dict[str, Callable[[], Awaitable[Probe]]] = {
        "postgres": lambda: _postgres(url),
        "redis": lambda: _redis(url),
        "rabbitmq": lambda: _rabbitmq(url, prefix),
    }
    try:
        parts = urlsplit(url)
        if "@" in parts.path + parts.query + parts.fragment:
            raise ValueError("a sign in the password that ends the address")
        return asyncio.run(_bounded(ask[name]()))
    except (ValueError, InputError):
        # What a library says of it may quote a password.
        why = f"cannot be asked: its URL is malformed; it should be {_FORMS[name]}, with %-escapes"
        return Probe(why=why)


def probe_gateway(url: str) -> Probe:
    """Ask the gateway whether it is ready, and how much it has answered."""
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=PROBE_S_MAX):
            pass
    except urllib.error.HTTPError as error:
        return Probe(why=_reason(error.read()))
    except OSError as error:
        return Probe(why=f"does not answer: {error}")
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=PROBE_S_MAX) as answer:
            return Probe(figure=_requests(answer.read().decode()))
    except OSError:
        # With keys, figures are for who has one of that scope.
        return Probe(figure="figures need a key")


def hear(
    url: str | None,
    pid: int | None,
    *,
    prefix: str = "",
    until_ok: bool = False,
    wanted: Callable[[], bool] = lambda: True,
) -> Pulse:
    """Wait for the next heartbeat of a worker; nothing is made on the broker for others.

    Parameters
    ----------
    url
        Of the broker.
    pid
        Of the worker.
    prefix
        Of the exchanges.
    until_ok
        Only one that says that all is well counts.
    wanted
        Asked all the while; a no ends the wait.
    """
    if url is None or pid is None:
        return Pulse(problem="no heartbeat")
    try:
        return asyncio.run(_heartbeat(url, pid, prefix, until_ok, wanted))
    except (BusError, OSError, asyncio.CancelledError) as error:
        # aio-pika cancels a call whose connection goes away.
        return Pulse(problem=f"no heartbeat: {str(error) or 'the broker does not answer'}")


async def _heartbeat(
    url: str, pid: int, prefix: str, until_ok: bool, wanted: Callable[[], bool]
) -> Pulse:
    heard: asyncio.Future[Pulse] = asyncio.get_running_loop().create_future()

    async def take(incoming: AbstractIncomingMessage) -> None:
        try:
            data = decode(incoming.body).data
        except MessageError:
            return
        if not isinstance(data, Health) or not data.instance.endswith(f"-{pid}") or heard.done():
            return
        if data.status == "ok" or not until_ok:
            heard.set_result(Pulse(heard_s=time.monotonic(), health=data))

    # Not over a bus of ours, which makes exchanges and queues where there are none.
    async with link(url) as connection:
        try:
            async with asyncio.timeout(HEARTBEAT_S_MAX):
                channel = await connection.channel(publisher_confirms=False)
                queue = await channel.declare_queue(exclusive=True, auto_delete=True)
                await queue.bind(prefix + EVENTS, "health.worker")
                await queue.consume(take, no_ack=True)
                while not heard.done() and wanted():
                    await asyncio.wait([heard], timeout=LOOK_S)
        except TimeoutError:
            return Pulse(problem=f"no heartbeat within {HEARTBEAT_S_MAX:g} s")
        except ChannelNotFoundEntity:
            return Pulse(problem="no heartbeat: its exchanges are not there")
    return heard.result() if heard.done() else Pulse(problem="no heartbeat")


async def _bounded(probe: Awaitable[Probe]) -> Probe:
    try:
        return await asyncio.wait_for(probe, PROBE_S_MAX)
    except TimeoutError:
        return Probe(why=f"did not answer within {PROBE_S_MAX:g} s")
    except (ValueError, InputError):
        raise
    except Exception as error:
        # Each library has its own errors, and each of them means the same here.
        return Probe(why=f"does not answer: {error or type(error).__name__}")


async def _postgres(url: str) -> Probe:
    plain, _ = through_pooler(url)
    connection = await asyncpg.connect(plain, timeout=PROBE_S_MAX, statement_cache_size=0)
    try:
        rows = await connection.fetchval("SELECT sum(n_live_tup) FROM pg_stat_user_tables")
    finally:
        await connection.close()
    return Probe(figure=f"{rows or 0} rows")


async def _redis(url: str) -> Probe:
    async with Redis.from_url(url, socket_timeout=PROBE_S_MAX) as redis:
        return Probe(figure=f"{await redis.dbsize()} keys")


async def _rabbitmq(url: str, prefix: str) -> Probe:
    found = {each.name: each for each in await queue_status(url, prefix=prefix)}
    *waiting, dead = [found[prefix + name] for name in (LLM_REQUESTS, TRADING_REQUESTS, DEAD)]
    if not all(each.there for each in (*waiting, dead)):
        return Probe(figure="no queues yet")
    count = sum(each.messages for each in waiting)
    return Probe(figure=f"{count} waiting, {dead.messages} dead letters")


def _reason(body: bytes) -> str:
    try:
        said = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        said = {}
    return str(said.get("reason", "answers, but is not ready"))


def _requests(text: str) -> str:
    total = sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        # Whoever asks whether it is well is no client, this probe among them.
        if line.startswith("qbtc_requests_total{") and 'route="/v1/' in line
    )
    return f"{total:.0f} requests"


def tail(path: Path, *, lines: int = 8) -> str:
    """Return the end of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
