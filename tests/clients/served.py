"""Servers for clients: in this process or in one of their own, with a script or a real model."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from qbtc.llm.engine import Engine
from qbtc_gateway.loading import LoadingEngine
from qbtc_gateway.security.keys import KeyFile, KeyRing
from qbtc_gateway.server import build_app, listen, make_server
from qbtc_gateway.settings import Limits, Settings


@contextlib.contextmanager
def serving(engine: Engine, folder: Path, *, limits: Limits | None = None) -> Iterator[str]:
    """Serve an engine on a thread for the length of a block; return the server's address.

    Keys are those of ``folder / "keys.json"``.
    """
    settings = Settings(access_log=False, limits=limits or Limits(drain_s_max=1.0))
    sock = listen("127.0.0.1", 0)
    started = threading.Event()
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        async def load() -> Engine:
            return engine

        loading = LoadingEngine(load, wait_s_max=10)
        await loading.start()
        app = build_app(settings, loading, KeyRing(KeyFile(folder / "keys.json")))
        server = make_server(settings, app)
        ended = asyncio.Event()
        stop.append((asyncio.get_running_loop(), ended))
        task = asyncio.ensure_future(server.serve(sockets=[sock]))
        while not server.started:  # noqa: ASYNC110 - uvicorn offers nothing to wait for
            await asyncio.sleep(0.01)
        started.set()
        await ended.wait()
        server.should_exit = True
        await task

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        loop, ended = stop[0]
        loop.call_soon_threadsafe(ended.set)
        thread.join(60)
        assert not thread.is_alive()


ROOT = Path(__file__).resolve().parents[2]
SCRIPTED = (sys.executable, "-m", "tests.clients.scripted_process")
REAL = (sys.executable, "-m", "qbtc", "serve")


class Process(msgspec.Struct):
    process: subprocess.Popen[str]
    line: dict[str, Any]
    lines: list[dict[str, Any]]

    @property
    def url(self) -> str:
        return str(self.line["page"]).rstrip("/")

    def stop(self, number: int = signal.SIGTERM, *, within_s: float = 60) -> float:
        """Signal, wait for the end, return how long it took."""
        start = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(within_s)
        return time.monotonic() - start


@contextlib.contextmanager
def process(folder: Path, *options: str, command: Sequence[str] = SCRIPTED) -> Iterator[Process]:
    """Start a server on a free port; its log lines are collected."""
    env = os.environ | {
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "XDG_CACHE_HOME": str(folder),
        "XDG_DATA_HOME": str(folder),
        "QBTC_DATABASE_URL": f"sqlite:///{folder / 'records.db'}",
        "PYTHONWARNINGS": "error",
    }
    started = subprocess.Popen(
        [*command, "--port", "0", "--json", *options],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    assert started.stderr is not None
    lines: list[dict[str, Any]] = []
    others: list[str] = []
    stderr = started.stderr

    def collect() -> None:
        for line in stderr:
            try:
                lines.append(json.loads(line))
            except ValueError:
                others.append(line)

    reader = threading.Thread(target=collect)
    reader.start()
    try:
        yield Process(started, json.loads(started.stdout.readline()), lines)
    finally:
        started.kill()
        started.wait()
        reader.join()
        started.stdout.close()
        stderr.close()
    assert not others, "it writes nothing but JSON: " + "".join(others)
