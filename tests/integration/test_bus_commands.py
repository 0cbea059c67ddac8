"""``qbtc bus``: what its commands make, show, send again and drop."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.integration.test_bus_contract import HASTY, REQUESTS, Heard, a_request, until

from qbtc.bus import Delivery, open_bus
from qbtc.bus.admin import remove_topology
from qbtc.bus.topology import DEAD, EXCHANGES, QUEUES, TRADING_REQUESTS, definitions
from qbtc.cli import cli
from qbtc.errors import BusError, InputError, MessageError
from qbtc.messages import codec
from qbtc.messages.envelope import Message

ROOT = Path(__file__).resolve().parents[2]


class Broker:
    """The command line on a broker of the test's own."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url, self.prefix = url, prefix

    def __call__(self, *arguments: str) -> Result:
        environment = {"QBTC_AMQP_URL": self.url, "QBTC_BUS_PREFIX": self.prefix}
        return CliRunner().invoke(cli, ["bus", *arguments], env=environment, catch_exceptions=True)

    def json(self, *arguments: str) -> Any:
        result = self(*arguments, "--json")
        assert result.exception is None, result.exception
        return json.loads(result.stdout)


@pytest.fixture
def broker(amqp_url: str, queue_prefix: str) -> Iterator[Broker]:
    yield Broker(amqp_url, queue_prefix)
    asyncio.run(remove_topology(amqp_url, queue_prefix))


def kill(broker: Broker, *, reason: str = "it is no use") -> Message:
    """Make a dead letter."""
    sent = a_request()

    async def go() -> None:
        bus = await open_bus(broker.url, prefix=broker.prefix, limits=HASTY)

        async def refuse(delivery: Delivery) -> None:
            raise MessageError(reason)

        try:
            await bus.subscribe(REQUESTS, refuse)
            await bus.publish(sent)
            await until(lambda: bus.counters()["dead"] == 1)
        finally:
            await bus.close()

    asyncio.run(go())
    return sent


def test_the_definitions_file_is_that_of_the_topology(tmp_path: Path) -> None:
    target = tmp_path / "definitions.json"
    result = CliRunner().invoke(cli, ["bus", "init", "--write-definitions", str(target)])
    assert result.exit_code == 0
    assert target.read_text() == (ROOT / "deploy/rabbitmq/definitions.json").read_text(), (
        "run: qbtc bus init --write-definitions deploy/rabbitmq/definitions.json"
    )
    assert json.loads(target.read_text()) == definitions()


def test_the_definitions_file_names_nobody_and_everything() -> None:
    made = json.loads((ROOT / "deploy/rabbitmq/definitions.json").read_text())
    assert set(made) == {"vhosts", "exchanges", "queues", "bindings", "policies"}
    assert {each["name"] for each in made["exchanges"]} == set(EXCHANGES)
    assert {each["name"] for each in made["queues"]} == set(QUEUES)
    # RabbitMQ 4.3 takes durable queues only, and quorum queues lose nothing with a broker.
    assert all(each["durable"] for each in made["queues"])
    assert {each["arguments"]["x-queue-type"] for each in made["queues"]} == {"quorum"}


def test_init_makes_the_topology_once(broker: Broker) -> None:
    first = broker.json("init")["made"]
    assert [each["name"] for each in first] == [broker.prefix + n for n in (*EXCHANGES, *QUEUES)]
    assert all(each["created"] for each in first)
    assert not any(each["created"] for each in broker.json("init")["made"])
    assert "was there" in broker("init").stderr


def test_init_says_what_differs_and_what_to_do(broker: Broker) -> None:
    import aio_pika

    async def go() -> None:
        connection = await aio_pika.connect(broker.url)
        channel = await connection.channel()
        await channel.declare_queue(
            broker.prefix + DEAD,
            durable=True,
            arguments={"x-queue-type": "quorum", "x-max-length": 5},
        )
        await connection.close()

    asyncio.run(go())
    error = broker("init").exception
    assert isinstance(error, BusError)
    assert f"{broker.prefix}{DEAD} is there but differs" in str(error)
    assert "x-max-length" in str(error)
    assert "rabbitmqctl delete_queue" in error.__notes__[0]


def test_status_shows_what_waits(broker: Broker) -> None:
    assert not any(each["there"] for each in broker.json("status")["queues"])
    broker.json("init")
    kill(broker)
    found = {each["name"]: each for each in broker.json("status")["queues"]}
    assert found[broker.prefix + DEAD]["messages"] == 1
    assert found[broker.prefix + TRADING_REQUESTS]["consumers"] == 0
    assert "waiting" in broker("status").stderr


def test_a_dead_letter_is_listed_without_what_it_says_and_shown_with_it(broker: Broker) -> None:
    sent = kill(broker)
    (listed,) = broker.json("dead", "list")["dead"]
    assert listed.pop("time")
    assert listed == {
        "id": sent.id,
        "type": "qbtc.trading.request.v2",
        "queue": broker.prefix + TRADING_REQUESTS,
        "reason": "bad message: it is no use",
        "size": len(codec.encode(sent)),
    }
    result = broker("dead", "list")
    assert sent.id in result.output.replace("\n", "")
    assert "spread" not in result.output
    shown = broker("dead", "show", sent.id)
    assert codec.decode(shown.stdout.strip().encode()) == sent
    assert "reason=bad message" in shown.stderr


def test_a_replayed_dead_letter_is_in_its_queue_again(broker: Broker) -> None:
    sent, kept = kill(broker), kill(broker)
    (replayed,) = broker.json("dead", "replay", sent.id)["replayed"]
    assert (replayed["id"], replayed["problem"]) == (sent.id, None)

    async def go() -> None:
        bus, heard = await open_bus(broker.url, prefix=broker.prefix), Heard()
        try:
            await bus.subscribe(REQUESTS, heard)
            assert await heard.until(1) == [sent.id]
        finally:
            await bus.close()

    asyncio.run(go())
    assert [each["id"] for each in broker.json("dead", "list")["dead"]] == [kept.id]


def test_dropped_dead_letters_are_gone(broker: Broker) -> None:
    first, second = kill(broker), kill(broker)
    assert [each["id"] for each in broker.json("dead", "drop", first.id)["dropped"]] == [first.id]
    assert [each["id"] for each in broker.json("dead", "list")["dead"]] == [second.id]
    assert len(broker.json("dead", "drop", "--all")["dropped"]) == 1
    assert broker.json("dead", "list")["dead"] == []


@pytest.mark.parametrize("command", ["replay", "drop"])
def test_dead_letters_are_named_or_all_of_them_meant(broker: Broker, command: str) -> None:
    broker.json("init")
    assert isinstance(broker("dead", command).exception, InputError)
    assert isinstance(broker("dead", command, "x", "--all").exception, InputError)
    assert "no dead letter has the id x" in str(broker("dead", command, "x").exception)
    assert "no dead letter has the id x" in str(broker("dead", "show", "x").exception)


def test_without_a_broker_to_talk_to_the_commands_say_so() -> None:
    for arguments in (["init"], ["status"], ["dead", "list"]):
        result = CliRunner().invoke(cli, ["bus", *arguments], env={"QBTC_AMQP_URL": None})
        assert "QBTC_AMQP_URL" in str(result.exception)
    result = CliRunner().invoke(cli, ["bus", "status", "--url", "amqp://guest:x@127.0.0.1:1/"])
    assert isinstance(result.exception, BusError)
    assert "cannot reach RabbitMQ at 127.0.0.1:1" in str(result.exception)


@pytest.mark.parametrize(
    "url", [" ", "amqp://", "127.0.0.1:5672", "http://a:secret@b/", "memory://"]
)
def test_what_is_no_address_of_a_broker_is_an_input_error(url: str) -> None:
    result = CliRunner().invoke(cli, ["bus", "status", "--url", url])
    assert isinstance(result.exception, InputError)
    assert "the bus URL is malformed" in str(result.exception)
    assert "secret" not in str(result.exception)


@pytest.mark.parametrize("prefix", ["a b", "é", "x" * 101])
def test_a_prefix_that_no_queue_can_have_is_an_input_error(prefix: str, tmp_path: Path) -> None:
    written = ["init", "--write-definitions", str(tmp_path / "definitions.json")]
    for arguments in (written, ["init"], ["status"], ["dead", "list"]):
        words = ["bus", *arguments, "--prefix", prefix, "--url", "amqp://127.0.0.1:1/"]
        result = CliRunner().invoke(cli, words)
        assert isinstance(result.exception, InputError), arguments
        assert "cannot begin the name of a queue" in str(result.exception)


def test_a_definitions_file_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    words = ["bus", "init", "--write-definitions", str(tmp_path / "none" / "definitions.json")]
    result = CliRunner().invoke(cli, words)
    assert isinstance(result.exception, InputError)
    assert "cannot be written: No such file or directory" in str(result.exception)
