"""docs/serving.md keeps its word: each of its commands runs, as it stands there."""

import asyncio
import re
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from tests.clients.served import process
from tests.support import services

from qbtc.bus.admin import remove_topology

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    qbtc (.+)$", TEXT, flags=re.MULTILINE)
SERVERS = [command for command in COMMANDS if command.startswith("serve ")]
READY_S_MAX = 60.0


def test_all_its_commands_are_found() -> None:
    assert [command.split()[0] for command in COMMANDS] == ["keys"] * 3 + ["serve"] * 3


@pytest.mark.parametrize("command", SERVERS)
def test_its_servers_start(
    command: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is at the usual addresses is for real use, so the tests' own take their place.
    if "redis://" in command:
        request.getfixturevalue("redis_url")
        command = command.replace("redis://127.0.0.1:6379/0", services.REDIS_URL)
        monkeypatch.setenv("QBTC_SERVE_REDIS_PREFIX", str(request.getfixturevalue("key_prefix")))
    if "amqp://" in command:
        request.getfixturevalue("amqp_url")
        command = command.replace("amqp://guest:guest@127.0.0.1:5672/", services.AMQP_URL)
        prefix = str(request.getfixturevalue("queue_prefix"))
        monkeypatch.setenv("QBTC_BUS_PREFIX", prefix)
        request.addfinalizer(lambda: asyncio.run(remove_topology(services.AMQP_URL, prefix)))
    command = command.replace("sqlite:///records.db", f"sqlite:///{tmp_path / 'records.db'}")
    options = [*shlex.split(command)[1:], "--no-snapshot"]
    with process(tmp_path, *options, command=(sys.executable, "-m", "qbtc", "serve")) as server:
        expected = 503 if "--engine" in options else 200
        assert _settled(server.url, expected) == expected
        if expected == 200:
            asked = {"model": "smollm2-135m-instruct", "prompt": "Hi", "max_tokens": 1}
            answer = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=READY_S_MAX)
            assert answer.status_code == 200
        server.stop()
        assert server.process.returncode == 0
    assert (tmp_path / "records.db").exists() == (expected == 200)


def _settled(url: str, expected: int) -> int:
    """Wait for the server to be as ready as it gets: without workers it is not."""
    end = time.monotonic() + READY_S_MAX
    while True:
        answer = httpx.get(f"{url}/health/ready", timeout=READY_S_MAX)
        loading = "loaded" in answer.json().get("reason", "")
        if (answer.status_code == expected and not loading) or time.monotonic() > end:
            return answer.status_code
        time.sleep(0.05)


def test_its_keys_are_made_listed_and_revoked(
    here: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QBTC_KEYS_FILE", str(tmp_path / "keys.json"))
    new, listed, revoke = (shlex.split(command) for command in COMMANDS[:3])
    assert here(*new)[0] == 0
    code, _, said = here(*listed)
    assert code == 0
    [identity] = re.findall(r"\b[0-9a-f]{8}\b", said)
    assert here(*revoke[:-1], identity)[0] == 0
