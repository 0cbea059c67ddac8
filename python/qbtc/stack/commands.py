"""``qbtc up``, ``qbtc down``, ``qbtc status``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from qbtc.stack.status import Part

__all__ = ["down", "status", "up"]

_folder = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".qbtc"),
    show_default=True,
    help="Data, logs and process ids of the stack.",
)


@click.command()
@_folder
@click.option("--model", metavar="ID|PATH", help="What to serve; see qbtc models list.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8000,
    show_default=True,
    help="Of the gateway; 0: any free one.",
)
@click.option(
    "--node",
    metavar="CONFIG",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Also backtest a config on the stack, once.",
)
def up(folder: Path, model: str | None, port: int, node: Path | None) -> None:
    """Start PostgreSQL, Redis, RabbitMQ, a worker and the gateway on this machine.

    Servers named by QBTC_DATABASE_URL, QBTC_REDIS_URL and QBTC_AMQP_URL are used instead of own
    ones. What runs already is left as it is.
    """
    from rich.console import Console
    from rich.markup import escape

    from qbtc.stack.up import up

    console = Console(stderr=True, highlight=False)
    with console.status("starting"):

        def say(what: str, how: str) -> None:
            console.print(f"  [green]✓[/] {what:<12} [dim]{escape(how)}[/]", soft_wrap=True)

        url = up(folder.absolute(), model=model, port=port or None, node=node, say=say)
    hint = "qbtc status shows the parts, qbtc down stops them"
    console.print(f"  API [cyan]{url}/v1[/]; {hint}", soft_wrap=True)


@click.command()
@_folder
def down(folder: Path) -> None:
    """Stop what `qbtc up` started; data stay in the folder."""
    from rich.console import Console

    from qbtc.stack.up import down

    console = Console(stderr=True, highlight=False)

    def say(what: str, how: str) -> None:
        console.print(f"  {what:<12} [dim]{how}[/]")

    if not down(folder.absolute(), say=say):
        console.print(f"nothing is up in {folder}", soft_wrap=True)


@click.command()
@_folder
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
def status(folder: Path, as_json: bool) -> None:
    """Show every part of the stack; exit 0 only if all are healthy."""
    import msgspec
    from rich.console import Console

    from qbtc.errors import RunFailed
    from qbtc.stack.state import load
    from qbtc.stack.status import status

    stack = load(folder.absolute())
    if stack is None:
        raise RunFailed(f"nothing is up in {folder}; start it with qbtc up")
    parts = status(folder.absolute(), stack)
    healthy = all(part.healthy for part in parts)
    if as_json:
        found = {"healthy": healthy, "parts": parts}
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        # A file has no width; a table that is cut to a terminal's helps nobody there.
        width = None if sys.stderr.isatty() else 120
        _show(parts, Console(stderr=True, highlight=False, width=width))
    if not healthy:
        sys.exit(1)


def _show(parts: list[Part], console: Console) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    # As narrow as it can be: with a figure of each part it just fits a terminal of 80 columns.
    table = Table(box=box.SIMPLE, show_edge=False, padding=0)
    for name in ("", "part", "address", "pid", "up", "heartbeat"):
        table.add_column(name, no_wrap=True)
    table.add_column("figure", overflow="fold")
    for part in parts:
        table.add_row(
            "[green]✓[/]" if part.healthy else "[red]✗[/]",
            part.name,
            part.address,
            str(part.pid or ""),
            "" if part.uptime_s is None else _duration(part.uptime_s),
            "" if part.heartbeat_s is None else f"{part.heartbeat_s:.0f} s ago",
            escape(part.figure) if part.healthy else f"[red]{escape(part.why)}[/]",
        )
    console.print(table)
    for part in parts:
        if part.log:
            console.print(f"{part.name} said last:", style="bold")
            console.print(part.log, style="dim", markup=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{rest} s"
