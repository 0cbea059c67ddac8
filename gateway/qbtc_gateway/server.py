"""``qbtc serve``: listen, load, answer, drain.

The socket listens before anything heavy is imported, the model loads on its own threads meanwhile,
and requests that come early wait. SIGTERM and SIGINT let open requests go on for ``drain_s_max``,
then close the engine, which keeps its prefix cache; a second signal does not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from qbtc.config.urls import redacted
from qbtc.errors import InputError, QbtcError
from qbtc_gateway.security.keys import KeyFile, KeyRing
from qbtc_gateway.settings import Settings, check_bind

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp
    from uvicorn import Server

    from qbtc.llm.engine import Engine
    from qbtc_gateway.loading import LoadingEngine
    from qbtc_gateway.metrics import Part
    from qbtc_gateway.services import Services

__all__ = ["build_app", "listen", "load_engine", "load_local", "make_server", "run"]

BACKLOG = 2_048
SEND_BUFFER_BYTES = 64 * 1024
"""Of one connection in the kernel: a reader that stopped is noticed, and a thousand stay small."""


async def load_engine(settings: Settings) -> Engine:
    """Load the models into this process, or go to workers who did."""
    if settings.engine == "local":
        return await load_local(settings)
    from qbtc_gateway.workers import connect_workers

    return await connect_workers(settings)


async def load_local(settings: Settings) -> Engine:
    """Load the models into this process.

    Raises
    ------
    ModelError
        A model is not here, damaged or not supported.
    """
    from qbtc.llm.load import find_models
    from qbtc.llm.local import LocalEngine

    # Not on a thread: what comes after it would wait for the loop, which imports the web framework
    # meanwhile, and the models would load after that instead of beside it.
    chat, embedder = find_models(settings.model, settings.embedding_model)
    return await LocalEngine.load(
        chat,
        embedder=embedder,
        threads=settings.threads or None,
        kv_bytes_max=settings.kv_bytes_max or None,
        active_max=settings.active_max,
        queue_max=settings.queue_max,
        snapshot=_snapshot_file(chat.id) if settings.snapshot else None,
        speculation=settings.speculation,
    )


def run(
    settings: Settings,
    *,
    as_json: bool = False,
    load: Callable[[Settings], Awaitable[Engine]] = load_engine,
) -> None:
    """Serve until a signal.

    Parameters
    ----------
    settings
        What and where.
    as_json
        Write one JSON line to stdout as soon as it listens.
    load
        Makes the engine; meanwhile the server listens already.

    Raises
    ------
    InputError
        The keys, the address or the model cannot be used.
    """
    started_s = time.perf_counter()
    keys = KeyRing(KeyFile(settings.keys_path))
    check_bind(settings.host, keys=len(keys), keys_path=settings.keys_path)
    with listen(settings.host, settings.port) as sock:
        url = _url(settings.host, sock)
        if as_json:
            line: dict[str, Any] = {"url": f"{url}/v1", "page": f"{url}/"}
            line |= {"engine": settings.engine, "model": _model(settings), "pid": os.getpid()}
            click.echo(msgspec.json.encode(line).decode())
            sys.stdout.flush()
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings, load, keys, sock, url, started_s))


def listen(host: str, port: int) -> socket.socket:
    """Open the port.

    Raises
    ------
    InputError
        The address is not ours or taken; the message says which.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            sock.bind(address)
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a host name"
        raise InputError(
            f"cannot listen on {host} port {port}: {why}; give another --host or --port"
        ) from None
    return sock


def build_app(
    settings: Settings,
    engine: LoadingEngine,
    keys: KeyRing,
    services: Services | None = None,
) -> FastAPI:
    """Put routes, page, health and the gate together; without services nothing is recorded."""
    from starlette.middleware import Middleware

    from qbtc_gateway.app import create_app
    from qbtc_gateway.metrics import Metrics
    from qbtc_gateway.routes.health import health_router
    from qbtc_gateway.routes.page import page_router
    from qbtc_gateway.security.gate import Gate

    def stats() -> Any:
        # Figures of the server itself are wanted most when the engine has none.
        return None if engine.problem() is not None else engine.stats()

    def parts() -> Mapping[str, Part]:
        return services.parts if services is not None else {}

    def away() -> Collection[str]:
        return services.problems() if services is not None else ()

    metrics = Metrics(stats, parts)
    gate = Middleware(
        Gate,
        settings=settings,
        keys=keys,
        metrics=metrics,
        shared=services.link if services is not None else None,
        journal=services.journal if services is not None else None,
    )
    return create_app(
        settings,
        engine,
        cache=services.cache if services is not None else None,
        middleware=[gate],
        routers=[health_router(engine.problem, metrics, away), page_router()],
    )


async def _serve(
    settings: Settings,
    load: Callable[[Settings], Awaitable[Engine]],
    keys: KeyRing,
    sock: socket.socket,
    url: str,
    started_s: float,
) -> None:
    from qbtc_gateway.loading import LoadingEngine
    from qbtc_gateway.security.logs import configure_logging, write_line
    from qbtc_gateway.services import Services

    opened: asyncio.Future[Services] = asyncio.get_running_loop().create_future()
    served: dict[str, str] = {}

    async def load_behind() -> Engine:
        loaded = await load(settings)
        try:
            if settings.engine == "local":
                served.update({info.kind: info.id for info in await loaded.models()})
            return (await opened).behind(loaded)
        except BaseException:
            await loaded.close()
            raise

    engine = LoadingEngine(load_behind, wait_s_max=settings.load_wait_s_max)
    loading = engine.start()
    # Let the loader reach its threads before the imports hold the interpreter: one turn of the loop
    # for the chat model, one for the embedder.
    for _ in range(2):
        await asyncio.sleep(0)
    configure_logging()
    try:
        services = Services(settings)
    except BaseException:
        await engine.close()
        await asyncio.wait([loading])
        raise
    opened.set_result(services)
    server = make_server(settings, build_app(settings, engine, keys, services))
    services.watch(lambda: engine.problem() if engine.serving() else None)

    def loaded(task: asyncio.Task[Engine]) -> None:
        if task.cancelled() or task.exception() is not None:
            server.should_exit = True
        else:
            _announce(settings, served, keys, url, time.perf_counter() - started_s)

    loading.add_done_callback(loaded)
    try:
        with _signals(server, engine):
            await server.serve(sockets=[sock])
    finally:
        keys.save_used()
        await engine.close()
        await services.close()
    if loading.done() and not loading.cancelled() and (error := loading.exception()) is not None:
        raise error if isinstance(error, QbtcError) else QbtcError(f"loading failed: {error}")
    write_line({"level": "info", "event": "stopped"})


def _model(settings: Settings) -> str | None:
    """Name of the model that this process serves; workers serve what they loaded."""
    return settings.model if settings.engine == "local" else None


def _snapshot_file(model: str) -> Path:
    """File of a model's prefix cache, among the user's cached data."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = base / "qbtc" / "prefix"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', model)}.kv"


def make_server(settings: Settings, app: ASGIApp) -> Server:
    """Return the HTTP server, with every bound of the settings on its connections."""
    from uvicorn import Config, Server

    from qbtc_gateway.protocol import protocol_class

    class OurServer(Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # Ours end the server without ending the process, so that the engine can be closed.
            yield

    limits = settings.limits
    return OurServer(
        Config(
            app,
            http=protocol_class(limits),
            ws="none",
            lifespan="on",
            loop="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=math.ceil(limits.idle_s_max),
            timeout_graceful_shutdown=math.ceil(limits.drain_s_max),
        )
    )


@contextlib.contextmanager
def _signals(server: Server, engine: LoadingEngine) -> Iterator[None]:
    """First signal: drain; second: stop now."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if server.should_exit:
            server.force_exit = True
        engine.closing = True
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _announce(
    settings: Settings, served: Mapping[str, str], keys: KeyRing, url: str, seconds: float
) -> None:
    """Say what is served: to a person on a terminal, else as a JSON line.

    ``served`` are the ids of the models by kind, as requests name them; workers have their own.
    """
    guard = (
        f"{len(keys)} keys in {settings.keys_path}"
        if keys.required
        else "open to this machine, without keys"
    )
    if not sys.stderr.isatty():
        from qbtc_gateway.security.logs import write_line

        write_line(
            {
                "level": "info",
                "event": "ready",
                "url": f"{url}/v1",
                "engine": settings.engine,
                "model": served.get("chat"),
                "embedding_model": served.get("embedding"),
                "keys": len(keys) if keys.required else 0,
                "start_ms": round(seconds * 1e3),
            }
        )
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, highlight=False)
    what = " and ".join(f"[bold]{escape(id)}[/]" for id in served.values())
    if settings.engine == "amqp":
        what = f"what workers behind {escape(redacted(settings.amqp_url))} serve"
    for name, text in (
        ("serving", what),
        ("API", f"[cyan]{url}/v1[/]"),
        ("page", f"[cyan]{url}/[/]"),
        ("access", escape(guard)),
        ("ready", f"in {seconds:.2f} s; Ctrl-C stops"),
    ):
        console.print(f"  [dim]{name:>8}[/]  {text}", soft_wrap=True)


def _url(host: str, sock: socket.socket) -> str:
    """Address as a client of this machine writes it."""
    port = sock.getsockname()[1]
    name = host.strip("[]") or "127.0.0.1"
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _loop_factory() -> Any:
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop
