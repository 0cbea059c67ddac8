"""The stack of docker-compose.yml without containers: start it, stop it.

PostgreSQL, Redis and RabbitMQ run as private servers in a folder, unless the environment names
others; on them run ``qbtc worker`` and ``qbtc serve``. Everything listens on loopback and goes on
in the background. What runs already is left as it is.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event

from qbtc.bus.topology import check_prefix
from qbtc.errors import InputError, RunFailed
from qbtc.stack.probes import LOOK_S, hear, probe_gateway, probe_server
from qbtc.stack.programs import Program
from qbtc.stack.servers import PostgresServer, RabbitServer, RedisServer, Server
from qbtc.stack.state import PREFIX, PROGRAMS, SERVERS, Stack, load, locked, save

__all__ = ["down", "program", "server", "up"]

STEP_S_MAX = 120.0
"""Tables, queues."""
READY_S_MAX = 180.0
"""A program of ours, with its model loaded."""

type Say = Callable[[str, str], None]
"""Told each step: what, and how it went."""


_QBTC = (sys.executable, "-m", "qbtc")


def up(
    folder: Path,
    *,
    model: str | None = None,
    port: int | None = None,
    node: Path | None = None,
    say: Say,
) -> str:
    """Start what does not run yet; return the gateway's address.

    Parameters
    ----------
    folder
        Data, logs, process ids.
    model
        As of ``qbtc worker --model``.
    port
        Of the gateway; the folder's last one, or any free one, if not given.
    node
        Config of a run beside them, which ends by itself.
    say
        Told of every step.

    Raises
    ------
    InputError
        A server is not installed, or what runs was started with other options.
    RunFailed
        A part did not become healthy; its log's end is in a note.
    """
    with locked(folder):
        stack = load(folder) or Stack()
        given = ("--model", model) if model is not None else ()
        port = port or program(folder, "gateway").port
        commands = {
            "worker": [*_QBTC, "worker", *given],
            "gateway": [*_QBTC, "serve", "--engine", "amqp", "--port", str(port), *given],
        }
        if node is not None:
            run = [*_QBTC, "backtest", str(node.absolute())]
            file = folder / "node" / "ended"
            if program(folder, "node").pid is None:
                file.unlink(missing_ok=True)
            commands["node"] = [sys.executable, "-m", "qbtc.stack.once", str(file), *run]
        for name, command in commands.items():
            if program(folder, name).pid is not None and stack.commands.get(name) != command:
                raise InputError(f"the {name} runs with other options; run qbtc down first")
        if program(folder, "gateway").pid is None:
            _check_free(port)
        _remember_prefix(stack)
        _start_servers(folder, stack, say)
        if any(program(folder, name).pid is None for name in commands):
            steps = (("db", "migrate"), ("bus", "init"))
            _together(lambda words, given_up: _step(words, stack, given_up), steps)
            say("tables", "and queues are there")
        stack.commands |= commands
        save(folder, stack)
        started = _together(
            lambda name, given_up: _start_program(folder, stack, name, port, given_up), commands
        )
        for found in started:
            say(found.name, found.url if found.name == "gateway" else f"pid {found.pid}")
        return f"http://127.0.0.1:{port}"


def down(folder: Path, *, say: Say) -> bool:
    """Stop what ``up`` started, last first; data stay. Return whether there was anything."""
    if load(folder) is None:
        return False
    with locked(folder):
        stack = load(folder) or Stack()
        for name in reversed(PROGRAMS):
            _stop(program(folder, name), say)
        for name in reversed([name for name in SERVERS if name not in stack.external]):
            _stop(server(folder, name), say)
        (folder / "stack.json").unlink(missing_ok=True)
    return True


def server(folder: Path, name: str) -> Server:
    """Return a private server of a stack."""
    where = folder / name
    if name == "postgres":
        return PostgresServer(where)
    return RedisServer(where, appendonly=True) if name == "redis" else RabbitServer(where)


def program(folder: Path, name: str) -> Program:
    """Return a program of a stack, to look at or to stop."""
    return Program(folder / name, name=name)


def _check_free(port: int) -> None:
    """Refuse a port that is taken: whoever listens there would be taken for our gateway."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                f"the gateway cannot listen on port {port} ({error.strerror}); give another --port,"
                " or --port 0 for any free one"
            ) from error


def _remember_prefix(stack: Stack) -> None:
    """Keep what names of queues begin with: all that is started or asked later must use it."""
    given, known = os.environ.get(PREFIX) or None, stack.variables.get(PREFIX)
    if given is not None and known not in (None, given):
        raise InputError(f"{PREFIX} is not this stack's; unset it, or run qbtc down first")
    prefix = given or known or ""
    check_prefix(prefix)
    stack.variables[PREFIX] = prefix


def _start_servers(folder: Path, stack: Stack, say: Say) -> None:
    def start(name: str, given_up: Event) -> str:
        title, variable = SERVERS[name]
        given, known = os.environ.get(variable) or None, stack.variables.get(variable)
        if name in stack.external:
            given = given or known
        elif given == known:
            # Our own server's address, exported for other commands: it is no other's server.
            given = None
        if given is None:
            found = server(folder, name).start(given_up=given_up)
            say(title, f"127.0.0.1:{found.port}")
            return found.url
        if known not in (None, given):
            raise InputError(f"{variable} is not what this stack stands on; run qbtc down first")
        if why := probe_server(name, given, prefix=stack.prefix).why:
            raise InputError(f"{variable} is set, but {title} there {why}")
        stack.external = sorted({*stack.external, name})
        say(title, f"at {variable}")
        return given

    # Remembered before any of them starts: `qbtc down` must find what another's failure leaves.
    save(folder, stack)
    urls = _together(start, SERVERS)
    stack.variables |= dict(zip((variable for _, variable in SERVERS.values()), urls, strict=True))
    save(folder, stack)


def _step(words: Sequence[str], stack: Stack, given_up: Event) -> None:
    """Run a short command of ours."""
    end = time.monotonic() + STEP_S_MAX
    with subprocess.Popen(
        [*_QBTC, *words],
        env={**os.environ, **stack.variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        said = None
        while said is None:
            try:
                _, said = child.communicate(timeout=LOOK_S)
            except subprocess.TimeoutExpired:
                # What it had not finished is undone by the server: it may run again.
                if given_up.is_set() or time.monotonic() > end:
                    child.kill()
    if child.returncode != 0:
        killed = child.returncode == -signal.SIGKILL
        how = f"did not end within {STEP_S_MAX:g} s" if killed else "failed"
        error = RunFailed(f"qbtc {' '.join(words)} {how}")
        error.add_note(said[-2000:])
        raise error


def _start_program(folder: Path, stack: Stack, name: str, port: int, given_up: Event) -> Program:
    def answers() -> bool:
        if name == "worker":
            pulse = hear(
                stack.variables["QBTC_AMQP_URL"],
                found.pid,
                prefix=stack.prefix,
                until_ok=True,
                # A worker that has ended says nothing any more.
                wanted=lambda: found.pid is not None and not given_up.is_set(),
            )
            return pulse.health is not None
        return name != "gateway" or not probe_gateway(found.url).why

    found = Program(
        folder / name,
        name=name,
        command=stack.commands[name],
        variables=stack.variables,
        answers=answers,
        port=port if name == "gateway" else None,
    )
    found.start(timeout=READY_S_MAX, given_up=given_up)
    return found


def _together[T, R](do: Callable[[T, Event], R], things: Iterable[T]) -> list[R]:
    """Do something with each of several things at the same time.

    The first error is raised, or Ctrl-C; the event tells the others not to wait any more.
    """
    given_up = Event()
    with ThreadPoolExecutor(8) as pool:
        try:
            futures = [pool.submit(do, thing, given_up) for thing in things]
            for future in as_completed(futures):
                future.result()
        except BaseException:
            given_up.set()
            raise
    return [future.result() for future in futures]


def _stop(part: Server, say: Say) -> None:
    ran = part.pid is not None
    part.stop()
    if ran:
        say(part.name, "stopped")
