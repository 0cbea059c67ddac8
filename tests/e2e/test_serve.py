"""`qbtc serve` as a process: what it says, how it stops, what it refuses to start with."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from tests.clients.served import SCRIPTED, process

from qbtc_gateway.security.keys import KeyFile, new_key
from qbtc_gateway.security.scopes import SCOPES
from qbtc_gateway.settings import Limits

ROOT = Path(__file__).resolve().parents[2]
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}
ENDLESS = {**CHAT, "stream": True, "messages": [{"role": "user", "content": "for ever"}]}


def refused(folder: Path, *options: str, **env: str) -> str:
    """Start a server that must not start; return what it says."""
    done = subprocess.run(
        [*SCRIPTED, *options],
        cwd=ROOT,
        env=os.environ | {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


def wait_for_closed_port(url: str) -> None:
    """Wait until a server that is told to stop takes nobody in any more."""
    where = httpx.URL(url)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            socket.create_connection((where.host, where.port or 80), timeout=60).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.02)
    raise AssertionError("its port is still open")


def test_it_says_where_it_listens_and_answers(tmp_path: Path) -> None:
    with process(tmp_path) as server:
        assert server.line["url"] == f"{server.url}/v1"
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, timeout=60)
        assert answer.json()["choices"][0]["message"]["content"] == "Hello there"
        assert (
            httpx.get(server.url, timeout=60)
            .headers["content-security-policy"]
            .startswith("default-src")
        )
        server.stop()
        assert server.process.returncode == 0
    events = [line["event"] for line in server.lines if "event" in line]
    assert events == ["ready", "stopped"]
    ready = next(line for line in server.lines if line.get("event") == "ready")
    # What requests name, whatever the model was called by whoever started the server.
    assert (ready["model"], ready["embedding_model"]) == ("scripted", "scripted-embedding")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_open_answers_may_go_on_for_a_named_time(tmp_path: Path, number: int) -> None:
    config = tmp_path / "serve.toml"
    config.write_text("[serve.limits]\ndrain_s_max = 1\n")
    with process(tmp_path, "--config", str(config)) as server:
        with httpx.stream(
            "POST", f"{server.url}/v1/chat/completions", json=ENDLESS, timeout=60
        ) as stream:
            lines = stream.iter_lines()
            next(line for line in lines if "I begin" in line)
            took = server.stop(number)
            assert server.process.returncode == 0
            # Longer than the named time, shorter than the time that holds if none is named.
            assert 0.9 < took < Limits().drain_s_max
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url)
    tracebacks = [line for line in server.lines if "traceback" in line]
    assert tracebacks == [], tracebacks[0]["traceback"]


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text("[serve.limits]\ndrain_s_max = 600\n")
    with (
        process(tmp_path, "--config", str(config)) as server,
        httpx.stream(
            "POST", f"{server.url}/v1/chat/completions", json=ENDLESS, timeout=60
        ) as stream,
    ):
        lines = stream.iter_lines()
        next(line for line in lines if "I begin" in line)
        server.process.send_signal(signal.SIGTERM)
        wait_for_closed_port(server.url)  # two signals that come together are one
        assert server.process.poll() is None
        server.stop()
        assert server.process.returncode == 0


def test_other_machines_are_let_in_only_with_a_key(tmp_path: Path) -> None:
    said = refused(tmp_path, "--host", "0.0.0.0", "--port", "0")
    assert "qbtc keys new" in said
    secret, key = new_key("", SCOPES)
    KeyFile(tmp_path / "qbtc" / "keys.json").path.parent.mkdir()
    KeyFile(tmp_path / "qbtc" / "keys.json").add(key)
    with process(tmp_path, "--host", "0.0.0.0") as server:
        assert httpx.get(f"{server.url}/v1/models", timeout=60).status_code == 401
        headers = {"authorization": f"Bearer {secret}"}
        models = httpx.get(f"{server.url}/v1/models", headers=headers, timeout=60)
        assert models.status_code == 200
        server.stop()
    assert key.id in KeyFile(tmp_path / "qbtc" / "keys.json").used()


def test_a_taken_port_is_said_in_one_line(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}" in refused(tmp_path, "--port", str(port))


def test_wrong_settings_are_said_in_one_line(tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text("[serve]\nprot = 1\n")
    assert "did you mean 'port'" in refused(tmp_path, "--config", str(config))
    assert "QBTC_SERVE_THREADS" in refused(tmp_path, QBTC_SERVE_THREADS="many")
    assert "qbtc keys new" in refused(tmp_path, "--host", "no such host", "--port", "0")


@pytest.mark.parametrize(
    "options",
    [
        ("--engine", "amqp", "--amqp-url", "http://:hidden@h/"),
        ("--redis-url", "http://:hidden@h/"),
        ("--redis-url", "redis://:hidden@h:port/0"),
        ("--database-url", "mysql://:hidden@h/records"),
    ],
)
def test_an_address_that_is_none_is_said_in_one_line_without_its_secrets(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    said = refused(tmp_path, *options, "--port", "0")
    # Of what cannot be read as an address nothing is repeated, only what it should look like.
    assert "***@h" in said or "should be redis://" in said
    assert "hidden" not in said


def test_a_model_that_is_not_here_is_said_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qbtc", "serve", "--port", "0", "--model", "nothing-of-the-kind"],
        env=os.environ | {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "nothing-of-the-kind" in done.stderr.splitlines()[-1]
