"""Two servers on loopback, asked the same over HTTP: ours and llama.cpp's.

The client is the same for both and keeps its connection, as the SDKs do: making a new one reads the
machine's certificates, which takes longer than many a first token. It times the first piece of text
and the end of a streamed chat.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from benchmarks.language_peers import PEERS, build

__all__ = ["Answer", "Server", "busy_loops", "llama_server", "our_server"]

ROOT = Path(__file__).resolve().parents[1]
START_S_MAX = 60.0
ANSWER_S_MAX = 300.0
STOP_S_MAX = 30.0


@dataclass(frozen=True)
class Answer:
    """What one streamed chat took."""

    first_s: float
    total_s: float
    completion_tokens: int
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Server:
    """A server that is up."""

    name: str
    url: str
    client: httpx.Client
    ready_s: float
    """From the start of its process until it was healthy."""

    def chat(self, messages: Sequence[dict[str, str]], *, tokens: int, **more: Any) -> Answer:
        """Stream one greedy chat of up to ``tokens`` tokens and time it."""
        body = {
            "model": "smollm2-135m-instruct",
            "messages": list(messages),
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **more,
        }
        usage: dict[str, Any] = {}
        first = None
        start = time.perf_counter()
        with self.client.stream("POST", f"{self.url}/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                raise RuntimeError(f"{self.name}: {answer.status_code} {answer.read()!r}")
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                piece = json.loads(line[6:])
                usage = piece.get("usage") or usage
                if first is None and any(c["delta"].get("content") for c in piece["choices"]):
                    first = time.perf_counter() - start
        total = time.perf_counter() - start
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return Answer(
            first_s=total if first is None else first,
            total_s=total,
            completion_tokens=usage["completion_tokens"],
            prompt_tokens=usage["prompt_tokens"],
            cached_tokens=cached,
        )

    def chats_ns_per_token(self, streams: int, *, tokens: int, **more: Any) -> float:
        """Run ``streams`` chats at once; ns per generated token of all of them together."""
        chats = [
            [{"role": "user", "content": f"Count upwards from {i * 100}."}] for i in range(streams)
        ]

        def one(messages: list[dict[str, str]]) -> Answer:
            return self.chat(messages, tokens=tokens, **more)

        start = time.perf_counter_ns()
        with ThreadPoolExecutor(streams) as pool:
            answers = list(pool.map(one, chats))
        taken = time.perf_counter_ns() - start
        return taken / sum(answer.completion_tokens for answer in answers)


@contextmanager
def our_server(*arguments: str, cache: Path | None = None) -> Iterator[Server]:
    """Run ``qbtc serve`` with the default model on a free loopback port; snapshots in ``cache``.

    It records, into a folder that is thrown away, and computes every answer.
    """
    command = [sys.executable, "-m", "qbtc", "serve", "--port", "0", "--json", "--no-cache"]
    with TemporaryDirectory() as data, _client() as client:
        env = {**os.environ, "XDG_DATA_HOME": data, "QBTC_DATABASE_URL": ""}
        if cache is not None:
            env["XDG_CACHE_HOME"] = str(cache)
        start = time.perf_counter()
        with _running([*command, *arguments], stdout=subprocess.PIPE, env=env) as process:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["page"].rstrip("/")
            _wait(client, f"{url}/health/ready")
            yield Server("qbtc serve", url, client, time.perf_counter() - start)


@contextmanager
def llama_server(model: Path, *, threads: int, context: int, streams: int = 1) -> Iterator[Server]:
    """Run llama.cpp's server on a free loopback port; ``context`` tokens for each stream."""
    program = build(PEERS["llama.cpp"]) / "llama-server"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(program), "-m", str(model), "-t", str(threads), "-c", str(context * streams),
        "-np", str(streams), "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    with _client() as client:
        start = time.perf_counter()
        with _running(command, stdout=subprocess.DEVNULL):
            url = f"http://127.0.0.1:{port}"
            _wait(client, f"{url}/health")
            yield Server("llama-server", url, client, time.perf_counter() - start)


def _client() -> httpx.Client:
    return httpx.Client(timeout=ANSWER_S_MAX, limits=httpx.Limits(max_connections=None))


@contextmanager
def _running(
    command: Sequence[str], *, stdout: int, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, stdout=stdout, stderr=subprocess.DEVNULL, text=True, env=env
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=STOP_S_MAX)
        if process.stdout is not None:
            process.stdout.close()


def _wait(client: httpx.Client, url: str) -> None:
    """Wait for the health check."""
    end = time.perf_counter() + START_S_MAX
    while time.perf_counter() < end:
        try:
            if client.get(url, timeout=5.0).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise RuntimeError(f"{url} is not ready after {START_S_MAX:g} s")


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Keep ``count`` processes computing at normal priority, as a loaded machine does."""
    code = "while True: sum(range(1000))"
    loops = [subprocess.Popen([sys.executable, "-c", code], env=os.environ) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
