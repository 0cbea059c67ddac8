"""`qbtc up`: the whole stack without containers, looked at, broken, mended and stopped."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from tests.support.private_servers import server_folder
from tests.support.services import REQUIRED

from qbtc.bus.admin import queue_status, remove_topology
from qbtc.stack.probes import probe_server
from qbtc.stack.state import SERVERS

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["PostgreSQL", "Redis", "RabbitMQ", "worker", "gateway"]
UP_S_MAX = 240.0
END_S_MAX = 60.0
"""How long it may take to give up, on a loaded machine; what is waited for may take longer."""


class Stack(msgspec.Struct):
    """A stack that was started, and the environment that its commands run in."""

    folder: Path
    environment: dict[str, str]
    said: str = ""

    def qbtc(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "qbtc", *words, "--folder", str(self.folder)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=UP_S_MAX,
            check=False,
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done

    def status(self, *, code: int = 0) -> dict[str, dict[str, Any]]:
        found = json.loads(self.qbtc("status", "--json", code=code).stdout)
        assert found["healthy"] == (code == 0)
        return {part["name"]: part for part in found["parts"]}

    def node_ended(self) -> int:
        """Wait for the node's end; return its exit code."""
        file = self.folder / "node" / "ended"
        end = time.monotonic() + 120
        while not file.exists() or not file.read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        return int(file.read_text())

    def pids(self) -> dict[str, int]:
        """What runs, from what the parts keep."""
        states = {
            path.parent.name: json.loads(path.read_text())["pids"]
            for path in sorted(self.folder.glob("*/state.json"))
        }
        # A part has its port before it has a process.
        return {name: pids["server"] for name, pids in states.items() if "server" in pids}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with server_folder() as folder:
        stack = Stack(folder / "stack", environment(folder))
        try:
            stack.said = start(stack)
            yield stack
        finally:
            stack.qbtc("down")


def environment(home: Path) -> dict[str, str]:
    """Ours, without keys, servers and settings of whoever runs the tests."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("QBTC_", "XDG_")) or key == "QBTC_MODEL_DIR"
    }
    return kept | {"HOME": str(home)}


def start(stack: Stack) -> str:
    try:
        return stack.qbtc("up", "--port", "0").stderr
    except AssertionError as error:
        if "is not installed" in str(error) and not REQUIRED:
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def parts(stack: Stack) -> dict[str, dict[str, Any]]:
    return stack.status()


def test_every_part_is_shown_healthy_with_its_figure(parts: dict[str, dict[str, Any]]) -> None:
    assert list(parts) == NAMES
    for name, part in parts.items():
        assert part["healthy"], part
        assert part["pid"] > 0
        assert part["uptime_s"] > 0
        assert part["figure"]
        assert (part["address"] == "") == (name == "worker")
        assert part["address"].partition(":")[0] in ("", "127.0.0.1")
    assert parts["worker"]["heartbeat_s"] >= 0
    assert "dead letters" in parts["RabbitMQ"]["figure"]


def test_a_chat_goes_through_gateway_broker_and_worker(parts: dict[str, dict[str, Any]]) -> None:
    url = f"http://{parts['gateway']['address']}/v1"
    model = httpx.get(f"{url}/models", timeout=60).json()["data"][0]["id"]
    question = {"role": "user", "content": "What is the capital of France?"}
    body = {"model": model, "messages": [question], "max_tokens": 16, "temperature": 0}
    answer = httpx.post(f"{url}/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    # What a model of this size says is its own affair.
    assert answer.json()["choices"][0]["message"]["content"].strip()
    assert answer.json()["usage"]["completion_tokens"] > 0


def test_what_runs_is_left_as_it_is_and_a_node_joins_it(stack: Stack, tmp_path: Path) -> None:
    before = stack.pids()
    stack.qbtc("up", "--port", "0", "--node", str(node(tmp_path, seed=1)))
    assert stack.pids() | before == stack.pids()
    assert stack.node_ended() == 0


def test_own_servers_stay_own_where_their_addresses_are_exported(stack: Stack) -> None:
    before = json.loads((stack.folder / "stack.json").read_text())
    exported = Stack(stack.folder, stack.environment | before["variables"])
    exported.qbtc("up", "--port", "0")
    assert json.loads((stack.folder / "stack.json").read_text())["external"] == []


def test_other_options_are_refused_while_it_runs(stack: Stack) -> None:
    done = stack.qbtc("up", "--port", "0", "--model", "another", code=2)
    assert "qbtc down first" in done.stderr


def test_a_port_that_another_listens_on_is_refused(stack: Stack) -> None:
    other = Stack(stack.folder.parent / "other", stack.environment)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = other.qbtc("up", "--port", port, code=2).stderr
    assert f"cannot listen on port {port}" in said
    assert "nothing is up" in other.qbtc("down").stderr


def test_the_parts_fit_a_narrow_terminal(stack: Stack) -> None:
    command = f"stty cols 80; {sys.executable} -m qbtc status --folder {stack.folder}"
    shown = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        env=stack.environment | {"TERM": "dumb", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    # Below a heading and a rule every line begins a part: none is folded.
    lines = [line for line in shown.splitlines() if line.strip()]
    assert all(line.startswith("✓ ") for line in lines[2:]), shown
    assert "0 waiting, 0 dead letters" in shown


def test_a_part_that_died_is_named_and_up_starts_it_again(stack: Stack) -> None:
    pid = stack.pids()["worker"]
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    parts = stack.status(code=1)
    assert parts["worker"]["why"] == "does not run"
    assert parts["worker"]["log"]
    assert parts["RabbitMQ"]["healthy"]
    assert parts["node"]["healthy"]
    assert parts["node"]["figure"] == "ended well"
    stack.said += stack.qbtc("status", code=1).stderr
    assert "does not run" in stack.said
    assert "worker said last" in stack.said
    stack.said += stack.qbtc("up", "--port", "0").stderr
    assert stack.pids()["worker"] != pid


def test_a_node_that_failed_is_named(stack: Stack, tmp_path: Path) -> None:
    stack.qbtc("up", "--port", "0", "--node", str(node(tmp_path, seed=-1)))
    assert stack.node_ended() == 2
    parts = stack.status(code=1)
    assert [name for name, part in parts.items() if not part["healthy"]] == ["node"]
    assert parts["node"]["why"] == "ended with exit code 2"
    assert "seed" in parts["node"]["log"]


def test_passwords_are_for_their_owner_only_and_never_shown(stack: Stack) -> None:
    path = stack.folder / "stack.json"
    assert path.stat().st_mode & 0o777 == 0o600
    variables = json.loads(path.read_text())["variables"]
    urls = [variables[variable] for _, variable in SERVERS.values()]
    passwords = [url.rpartition("@")[0].rpartition(":")[2] for url in urls]
    assert [len(password) > 20 for password in passwords] == [True] * 3
    assert not [password for password in passwords if password in stack.said]


def test_down_leaves_no_process_and_no_port(stack: Stack, parts: dict[str, dict[str, Any]]) -> None:
    pids = stack.pids()
    stack.qbtc("down")
    assert [name for name, pid in pids.items() if lives(pid)] == []
    for part in parts.values():
        if part["address"]:
            host, _, port = part["address"].partition(":")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, int(port)), timeout=5)
    assert "nothing is up" in stack.qbtc("down").stderr
    assert "qbtc up" in stack.qbtc("status", code=1).stderr


@pytest.fixture
def on_others(
    postgres_url: str, redis_url: str, amqp_url: str, queue_prefix: str
) -> Iterator[Stack]:
    """A stack that is not up, on servers that are there."""
    variables = {
        "QBTC_DATABASE_URL": postgres_url,
        "QBTC_REDIS_URL": redis_url,
        "QBTC_AMQP_URL": amqp_url,
        "QBTC_BUS_PREFIX": queue_prefix,
    }
    with server_folder() as folder:
        stack = Stack(folder / "stack", environment(folder) | variables)
        try:
            yield stack
        finally:
            stack.qbtc("down")
            asyncio.run(remove_topology(amqp_url, queue_prefix))


def test_servers_that_are_there_are_used_and_left_alone(on_others: Stack) -> None:
    on_others.qbtc("up", "--port", "0")
    assert sorted(on_others.pids()) == ["gateway", "worker"]
    parts = on_others.status()
    assert [part["pid"] is None for part in parts.values()] == [True] * 3 + [False] * 2
    on_others.qbtc("down")
    urls = {name: on_others.environment[variable] for name, (_, variable) in SERVERS.items()}
    assert [probe_server(name, url).why for name, url in urls.items()] == [""] * 3


def test_its_prefix_holds_whatever_another_shell_says(on_others: Stack, queue_prefix: str) -> None:
    on_others.qbtc("up", "--port", "0")
    pid = on_others.pids()["worker"]
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    plain = Stack(on_others.folder, environment(on_others.folder.parent))
    plain.qbtc("up", "--port", "0")
    assert plain.status()["worker"]["heartbeat_s"] >= 0
    variables = {"QBTC_BUS_PREFIX": f"{queue_prefix}another."}
    other = Stack(on_others.folder, plain.environment | variables)
    assert other.status()["worker"]["heartbeat_s"] >= 0
    assert "QBTC_BUS_PREFIX" in other.qbtc("up", "--port", "0", code=2).stderr
    url, prefix = on_others.environment["QBTC_AMQP_URL"], variables["QBTC_BUS_PREFIX"]
    assert not any(each.there for each in asyncio.run(queue_status(url, prefix=prefix)))


def test_a_part_that_fails_is_not_outwaited_by_the_others(on_others: Stack) -> None:
    begin = time.monotonic()
    said = on_others.qbtc("up", "--port", "0", "--model", "no-such-model", code=1).stderr
    assert time.monotonic() - begin < END_S_MAX
    assert "worker ended before it was ready" in said
    assert "no-such-model" in said


def test_ctrl_c_ends_it_while_a_part_is_not_ready(on_others: Stack) -> None:
    words = [sys.executable, "-m", "qbtc", "up", "--port", "0", "--folder", str(on_others.folder)]
    with subprocess.Popen(words, env=on_others.environment, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + UP_S_MAX
        while "worker" not in (pids := on_others.pids()):
            assert time.monotonic() < end
            time.sleep(0.02)
        os.kill(pids["worker"], signal.SIGSTOP)
        time.sleep(2)  # so that the gateway is waited for no more, and the worker is
        process.send_signal(signal.SIGINT)
        assert process.wait(END_S_MAX) == 130
        os.kill(pids["worker"], signal.SIGCONT)


def test_a_damaged_state_is_named_by_status_and_down(tmp_path: Path) -> None:
    stack = Stack(tmp_path, environment(tmp_path))
    (tmp_path / "stack.json").write_text("{}")
    path = tmp_path / "gateway" / "state.json"
    path.parent.mkdir()
    path.write_text('{"port":80')
    assert str(path) in stack.qbtc("status", code=2).stderr
    assert str(path) in stack.qbtc("down", code=2).stderr


def test_a_server_that_is_named_but_not_there_is_an_error(tmp_path: Path) -> None:
    stack = Stack(tmp_path, environment(tmp_path) | {"QBTC_REDIS_URL": "redis://127.0.0.1:1/0"})
    stack.environment["QBTC_DATABASE_URL"] = "postgresql://127.0.0.1:1/records"
    stack.environment["QBTC_AMQP_URL"] = "amqp://127.0.0.1:1/"
    said = stack.qbtc("up", "--port", "0", code=2).stderr
    assert "is set, but" in said
    assert "does not answer" in said
    stack.qbtc("down")


def node(folder: Path, *, seed: int) -> Path:
    path = folder / "node.toml"
    path.write_text(
        f"""
name = "node-of-a-stack"
seed = {seed}
[[data]]
source = "synthetic"
instrument = "BTCUSDT-PERP.BINANCE"
seed = 1
duration_s = 20
start = "2024-01-02T00:00:00Z"
[records]
[[strategies]]
path = "{ROOT}/strategies/flat.py:Flat"
params = {{ instrument = "BTCUSDT-PERP.BINANCE" }}
"""
    )
    return path


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended may still wait to be asked how."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_for_end(pid: int) -> None:
    end = time.monotonic() + END_S_MAX
    while lives(pid):
        assert time.monotonic() < end
        time.sleep(0.02)
