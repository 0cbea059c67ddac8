"""``qbtc bus``: make the queues on a broker, look at them, and deal with dead letters.

Tables go to stderr for people, ``--json`` to stdout for programs. What a dead letter says is shown
by ``show`` only: it may be a prompt.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from qbtc.bus.dead import DeadLetter
from qbtc.bus.topology import definitions
from qbtc.errors import InputError

__all__ = ["bus"]

DEAD_LIST_MAX = 1000

_url = click.option(
    "--url",
    envvar="QBTC_AMQP_URL",
    show_envvar=True,
    help="amqp://user:password@host:port/vhost",
)
_prefix = click.option(
    "--prefix",
    envvar="QBTC_BUS_PREFIX",
    show_envvar=True,
    default="",
    help="What the names of exchanges and queues begin with.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
_limit = click.option(
    "--limit",
    type=click.IntRange(1),
    default=DEAD_LIST_MAX,
    show_default=True,
    help="Look at so many, the oldest first.",
)


@click.group()
def bus() -> None:
    """Make and watch the queues on RabbitMQ."""


@bus.command()
@_url
@_prefix
@click.option(
    "--write-definitions",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write RabbitMQ's definitions file instead; no broker is needed.",
)
@_json
def init(url: str | None, prefix: str, target: Path | None, as_json: bool) -> None:
    """Make the exchanges and queues; those that are there stay as they are."""
    if target is not None:
        text = msgspec.json.format(msgspec.json.encode(definitions(prefix=prefix)), indent=2)
        try:
            target.write_bytes(text + b"\n")
        except OSError as error:
            raise InputError(f"{target} cannot be written: {error.strerror or error}") from error
        Console(stderr=True).print(f"wrote {target}", highlight=False, markup=False)
        return
    from qbtc.bus.admin import init_topology

    made = asyncio.run(init_topology(_needed(url), prefix=prefix))
    if as_json:
        _print_json({"made": made})
        return
    _table(
        ("", "name", ""),
        [(each.kind, each.name, "created" if each.created else "was there") for each in made],
    )


@bus.command()
@_url
@_prefix
@click.option("--queue", "queues", multiple=True, help="Look at a durable topic subscription too.")
@_json
def status(url: str | None, prefix: str, queues: tuple[str, ...], as_json: bool) -> None:
    """Show what waits in each queue and how many take from it."""
    from qbtc.bus.admin import queue_status

    found = asyncio.run(queue_status(_needed(url), prefix=prefix, queues=queues))
    if as_json:
        _print_json({"queues": found})
        return
    _table(
        ("queue", "waiting", "consumers"),
        [
            (each.name, str(each.messages), str(each.consumers))
            if each.there
            else (each.name, "not there: run `qbtc bus init`", "")
            for each in found
        ],
    )


@bus.group()
def dead() -> None:
    """Look at messages that could not be processed, send them again, or drop them."""


@dead.command("list")
@_url
@_prefix
@_limit
@_json
def list_(url: str | None, prefix: str, limit: int, as_json: bool) -> None:
    """List dead letters, without what they say."""
    found = _read(url, prefix, limit)
    if as_json:
        _print_json({"dead": [_facts(each) for each in found]})
        return
    _table(
        ("id", "type", "died in", "reason", "when", "bytes"),
        [
            # To the second: with an id of 36 signs a terminal has no room for more.
            (each.id, each.type, each.queue, each.reason, each.time[:19], str(each.size))
            for each in found
        ],
    )


@dead.command()
@click.argument("id")
@_url
@_prefix
@_limit
def show(id: str, url: str | None, prefix: str, limit: int) -> None:
    """Print what a dead letter says on stdout, its facts on stderr."""
    letters = [each for each in _read(url, prefix, limit) if each.id == id]
    if not letters:
        raise InputError(f"no dead letter has the id {id}; `qbtc bus dead list` shows them")
    for letter in letters:
        facts = " ".join(f"{name}={value}" for name, value in _facts(letter).items())
        Console(stderr=True).print(facts, highlight=False, markup=False, soft_wrap=True)
        click.echo(letter.body.decode(errors="replace"))


@dead.command()
@click.argument("ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@_url
@_prefix
@_limit
@_json
def replay(
    ids: tuple[str, ...],
    everything: bool,
    url: str | None,
    prefix: str,
    limit: int,
    as_json: bool,
) -> None:
    """Give dead letters back to the queues they died in, with their ids.

    One that has expired is dropped by its consumer; one that fails again comes back here.
    """
    from qbtc.bus.dead_letters import replay_dead

    chosen = _chosen(ids, everything)
    done = asyncio.run(replay_dead(_needed(url), prefix=prefix, ids=chosen, limit=limit))
    _check_found(chosen, [each.letter for each in done])
    if as_json:
        _print_json(
            {"replayed": [_facts(each.letter) | {"problem": each.problem} for each in done]}
        )
    else:
        _table(
            ("id", "queue", ""),
            [(each.letter.id, each.letter.queue, each.problem or "replayed") for each in done],
        )
    failed = [each for each in done if each.problem is not None]
    if failed:
        raise InputError(f"{len(failed)} of {len(done)} are still dead letters")


@dead.command()
@click.argument("ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@_url
@_prefix
@_limit
@_json
def drop(
    ids: tuple[str, ...],
    everything: bool,
    url: str | None,
    prefix: str,
    limit: int,
    as_json: bool,
) -> None:
    """Delete dead letters for good."""
    from qbtc.bus.dead_letters import drop_dead

    chosen = _chosen(ids, everything)
    done = asyncio.run(drop_dead(_needed(url), prefix=prefix, ids=chosen, limit=limit))
    _check_found(chosen, done)
    if as_json:
        _print_json({"dropped": [_facts(each) for each in done]})
        return
    _table(("dropped",), [(each.id,) for each in done])


def _read(url: str | None, prefix: str, limit: int) -> Sequence[DeadLetter]:
    from qbtc.bus.dead_letters import read_dead

    return asyncio.run(read_dead(_needed(url), prefix=prefix, limit=limit))


def _needed(url: str | None) -> str:
    if not url:
        raise InputError("no broker: set QBTC_AMQP_URL or give --url amqp://user:password@host/")
    return url


def _chosen(ids: tuple[str, ...], everything: bool) -> frozenset[str] | None:
    if bool(ids) == everything:
        raise InputError("name dead letters by id, or say --all")
    return None if everything else frozenset(ids)


def _check_found(chosen: frozenset[str] | None, done: Sequence[DeadLetter]) -> None:
    missing = sorted((chosen or frozenset()) - {each.id for each in done})
    if missing:
        raise InputError(f"no dead letter has the id {', '.join(missing)}")


def _facts(letter: DeadLetter) -> dict[str, Any]:
    facts = msgspec.structs.asdict(letter)
    del facts["body"]
    return facts


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=box.SIMPLE)
    for heading in headings:
        # An id is there to be copied.
        table.add_column(heading, no_wrap=heading == "id", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(stderr=True)
    if rows:
        console.print(table, markup=False)
    else:
        console.print("none", markup=False)


def _print_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
