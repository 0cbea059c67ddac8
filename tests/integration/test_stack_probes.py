"""What is asked of a server, and what is never said of its address."""

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from qbtc.bus.admin import init_topology, queue_status, remove_topology
from qbtc.bus.topology import EXCHANGES
from qbtc.errors import InputError, RunFailed
from qbtc.stack.probes import Probe, hear, probe_server
from qbtc.stack.state import PREFIX, Stack
from qbtc.stack.status import _part
from qbtc.stack.up import _remember_prefix, _step, _together


@pytest.mark.parametrize("password", ["se/cret1", "se?cret1", "se#cret1", "se[cret1", "71/82"])
@pytest.mark.parametrize(
    ("name", "scheme"), [("postgres", "postgresql"), ("redis", "redis"), ("rabbitmq", "amqp")]
)
def test_a_malformed_address_is_called_so_and_not_quoted(
    name: str, scheme: str, password: str
) -> None:
    why = probe_server(name, f"{scheme}://user:{password}@127.0.0.1/0").why
    assert f"malformed; it should be {scheme}://user:password@host:port/" in why
    assert not [part for part in ("'se'", "cret", "71", "82") if part in why]


@pytest.mark.parametrize("name", ["postgres", "redis", "rabbitmq"])
def test_an_address_of_something_else_is_malformed(name: str) -> None:
    assert "malformed" in probe_server(name, "none://127.0.0.1:1/").why
    assert "malformed" in probe_server(name, "se/cret1").why


def test_what_only_poolers_understand_is_not_told_to_the_server(postgres_url: str) -> None:
    assert probe_server("postgres", f"{postgres_url}?pgbouncer=true").why == ""


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("postgresql://u:hidden@host/db", "host:5432"),
        ("postgres://host:7/db", "host:7"),
        ("redis://:hidden@host/0", "host:6379"),
        ("amqp://host/", "host:5672"),
        ("amqps://host/", "host:5671"),
    ],
)
def test_an_address_without_a_port_is_shown_with_the_usual_one(url: str, address: str) -> None:
    assert _part("a server", None, url, Probe()).address == address


def test_looking_makes_nothing_on_the_broker(amqp_url: str, queue_prefix: str) -> None:
    pulse = hear(amqp_url, os.getpid(), prefix=queue_prefix)
    assert pulse.problem == "no heartbeat: its exchanges are not there"
    assert probe_server("rabbitmq", amqp_url, prefix=queue_prefix).figure == "no queues yet"
    assert [
        each for each in asyncio.run(queue_status(amqp_url, prefix=queue_prefix)) if each.there
    ] == []
    try:
        made = asyncio.run(init_topology(amqp_url, prefix=queue_prefix))
        assert [each for each in made if not each.created] == []
        assert len(made) > len(EXCHANGES)
    finally:
        asyncio.run(remove_topology(amqp_url, queue_prefix))


def test_a_heartbeat_that_nobody_wants_any_more_is_not_waited_for(
    amqp_url: str, queue_prefix: str
) -> None:
    try:
        asyncio.run(init_topology(amqp_url, prefix=queue_prefix))
        asked = []
        pulse = hear(
            amqp_url, os.getpid(), prefix=queue_prefix, wanted=lambda: bool(asked.append(1))
        )
        assert asked == [1]
        assert pulse.health is None
        assert "within" not in pulse.problem
    finally:
        asyncio.run(remove_topology(amqp_url, queue_prefix))


def test_a_prefix_is_kept_and_another_one_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack()
    monkeypatch.setenv(PREFIX, "first.")
    _remember_prefix(stack)
    monkeypatch.delenv(PREFIX)
    _remember_prefix(stack)
    assert stack.prefix == stack.variables[PREFIX] == "first."
    monkeypatch.setenv(PREFIX, "second.")
    with pytest.raises(InputError, match="QBTC_BUS_PREFIX"):
        _remember_prefix(stack)


def test_no_prefix_is_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack()
    monkeypatch.delenv(PREFIX, raising=False)
    _remember_prefix(stack)
    monkeypatch.setenv(PREFIX, "late.")
    with pytest.raises(InputError, match="QBTC_BUS_PREFIX"):
        _remember_prefix(stack)
    monkeypatch.setenv(PREFIX, "no prefix")
    with pytest.raises(InputError, match="cannot begin the name of a queue"):
        _remember_prefix(Stack())


WAIT_S = 60.0
"""Of what nobody tells to stop; far above what the tests need, also on a loaded machine."""


def test_the_first_error_ends_the_waits_of_the_others() -> None:
    def do(thing: str, given_up: threading.Event) -> None:
        if thing == "fails":
            raise RunFailed("it does")
        given_up.wait(WAIT_S)

    begin = time.monotonic()
    with pytest.raises(RunFailed, match="it does"):
        _together(do, ["waits", "fails", "waits too"])
    assert time.monotonic() - begin < WAIT_S / 2


def test_ctrl_c_ends_all_waits() -> None:
    main = threading.main_thread().ident
    assert main is not None

    def do(thing: str, given_up: threading.Event) -> None:
        if thing == "interrupts":
            signal.pthread_kill(main, signal.SIGINT)
        given_up.wait(WAIT_S)

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _together(do, ["waits", "interrupts"])
    assert time.monotonic() - begin < WAIT_S / 2


def test_a_step_that_is_given_up_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # It waits for somebody who writes.
    monkeypatch.setattr("qbtc.stack.up._QBTC", ("cat", str(pipe)))
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(RunFailed, match="did not end"):
        _step((), Stack(), given_up)
