"""``qbtc schemas``: what may travel on the bus, and whether a message may.

Tables go to stderr for people, ``--json`` to stdout for programs.
"""

import json
import sys
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qbtc.bus.asyncapi import write_asyncapi
from qbtc.bus.channels import channels
from qbtc.bus.events_page import write_events_page
from qbtc.errors import InputError, MessageError
from qbtc.messages import contracts
from qbtc.messages.codec import MESSAGE_BYTES_MAX, decode
from qbtc.messages.events import TYPES

__all__ = ["PAGES", "schemas"]

PAGES = {"events.md": write_events_page, "asyncapi.json": write_asyncapi}
"""Pages made from the schemas, and what makes them."""

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


@click.group()
def schemas() -> None:
    """List the messages of the bus, check messages, write their documents."""


@schemas.command(name="list")
@_json
def list_(as_json: bool) -> None:
    """List every type of message and where it goes."""
    rows = [
        {
            "name": contracts.name_of(type),
            "type": type,
            "schema": contracts.load(contracts.name_of(type))["$id"],
            "title": contracts.load(contracts.name_of(type))["title"],
            "goes": [
                {"exchange": channel.exchange, "key": channel.key, "queue": channel.queue}
                for channel in channels()
                if type in channel.types
            ],
        }
        for type in TYPES
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("type", "title", "goes to"):
        table.add_column(heading, overflow="fold")
    for type, row in zip(TYPES, rows, strict=True):
        ways = [
            channel.queue or f"{channel.exchange} {channel.key}".strip() or "whoever asked"
            for channel in channels()
            if type in channel.types
        ]
        table.add_row(type, str(row["title"]), "\n".join(ways))
    Console(stderr=True).print(table)


@schemas.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@_json
def check(files: tuple[str, ...], as_json: bool) -> None:
    """Check messages, one a file; - is stdin. Say what is wrong and where, and end with 2 then."""
    console = Console(stderr=True)
    results = []
    for file in files:
        try:
            message = decode(_read(file))
        except MessageError as error:
            results.append({"file": file, "ok": False, "error": str(error)})
            console.print(
                f"[bold red]wrong[/] {escape(file)}: {escape(str(error))}", highlight=False
            )
        else:
            results.append({"file": file, "ok": True, "type": message.type, "id": message.id})
            console.print(f"[green]fine[/]  {escape(file)}: {message.type}", highlight=False)
    if as_json:
        click.echo(json.dumps(results, indent=2))
    wrong = sum(not result["ok"] for result in results)
    if wrong:
        raise MessageError(f"{wrong} of {len(results)} are not what their schema says")


def _read(file: str) -> bytes:
    try:
        # One byte more than may be: what is larger is refused without being read whole.
        if file == "-":
            return sys.stdin.buffer.read(MESSAGE_BYTES_MAX + 1)
        with Path(file).open("rb") as opened:
            return opened.read(MESSAGE_BYTES_MAX + 1)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None


@schemas.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("docs"),
    help="Where to  [default: docs]",
)
def write_docs(folder: Path) -> None:
    """Write events.md and asyncapi.json from the schemas."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in PAGES.items():
            (folder / name).write_text(write(), "utf-8")
            click.echo(f"wrote {folder / name}", err=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
