"""How every part of a stack is: healthy or why not, where, since when, and one figure."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from qbtc.stack.once import ended
from qbtc.stack.probes import Probe, Pulse, hear, probe_gateway, probe_server, tail
from qbtc.stack.servers import Server
from qbtc.stack.state import PROGRAMS, SERVERS, Stack
from qbtc.stack.up import program, server

__all__ = ["Part", "status"]

_PORTS = {
    "postgres": 5432,
    "postgresql": 5432,
    "redis": 6379,
    "rediss": 6379,
    "amqp": 5672,
    "amqps": 5671,
}
"""Where a URL that names no port leads."""


class Part(msgspec.Struct, kw_only=True):
    """One part as it is now."""

    name: str
    healthy: bool
    why: str = ""
    """Why it is not healthy; empty: it is."""
    address: str = ""
    """Without password; empty: it listens nowhere."""
    pid: int | None = None
    """None: it does not run, or is not ours."""
    uptime_s: float | None = None
    figure: str = ""
    heartbeat_s: float | None = None
    """Age of the last heartbeat, of parts that have one."""
    log: str = ""
    """End of its log, if it does not run."""


def status(folder: Path, stack: Stack) -> list[Part]:
    """Look at every part, all at the same time; bounded by the slowest probe."""
    with ThreadPoolExecutor(8) as pool:
        worker = program(folder, "worker").pid
        broker = stack.variables.get("QBTC_AMQP_URL")
        pulse = pool.submit(hear, broker, worker, prefix=stack.prefix)
        servers = [pool.submit(_server, folder, stack, name) for name in SERVERS]
        names = [name for name in PROGRAMS if name != "node" or name in stack.commands]
        programs = [pool.submit(_program, folder, name) for name in names]
        parts = [future.result() for future in (*servers, *programs)]
        for part in parts:
            if part.name == "worker" and part.pid is not None:
                _take_pulse(part, pulse.result())
    return parts


def _server(folder: Path, stack: Stack, name: str) -> Part:
    title, variable = SERVERS[name]
    if name in stack.external:
        url = stack.variables[variable]
        return _part(title, None, url, probe_server(name, url, prefix=stack.prefix))
    found = server(folder, name)
    if found.pid is None:
        return _gone(title, found)
    return _part(title, found, found.url, probe_server(name, found.url, prefix=stack.prefix))


def _program(folder: Path, name: str) -> Part:
    found = program(folder, name)
    if found.pid is None and name == "node":
        return _ended(found)
    if found.pid is None:
        return _gone(name, found)
    if name == "gateway":
        return _part(name, found, found.url, probe_gateway(found.url))
    return _part(name, found, "", Probe(figure="runs" if name == "node" else ""))


def _part(name: str, found: Server | None, url: str, probe: Probe) -> Part:
    parts = urlsplit(url)
    port = parts.port or _PORTS.get(parts.scheme)
    return Part(
        name=name,
        healthy=not probe.why,
        why=probe.why,
        # Without user and password.
        address=f"{parts.hostname}:{port}" if parts.hostname else "",
        pid=found.pid if found is not None else None,
        uptime_s=found.uptime_s if found is not None else None,
        figure=probe.figure,
    )


def _gone(name: str, found: Server) -> Part:
    return Part(name=name, healthy=False, why="does not run", log=tail(found.log))


def _ended(node: Server) -> Part:
    """Of a run, which is done when it has ended well."""
    code = ended(node.folder / "ended")
    if code == 0:
        return Part(name="node", healthy=True, figure="ended well")
    how = "was stopped" if code is None else f"ended with exit code {code}"
    return Part(name="node", healthy=False, why=how, log=tail(node.log))


def _take_pulse(part: Part, pulse: Pulse) -> None:
    health = pulse.health
    if health is None:
        part.healthy, part.why = False, pulse.problem or "no heartbeat"
        return
    part.heartbeat_s = time.monotonic() - pulse.heard_s
    done = health.counters.get("bus_done", 0.0)
    part.figure = f"{done:.0f} requests done"
    if health.status != "ok":
        part.healthy, part.why = False, f"{health.status}: {health.detail}".rstrip(": ")
