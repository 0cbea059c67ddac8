"""``qbtc db``: make, look at, export and shorten the records.

Tables go to stderr for people, ``--json`` and exported rows to stdout for programs.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from qbtc.errors import InputError
from qbtc.store.exporting import write_json_lines, write_parquet
from qbtc.store.opening import DATABASE_VARIABLE, database_url, open_store, shown
from qbtc.store.protocol import Migrated, Store
from qbtc.store.tables import TABLES

__all__ = ["db"]

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
_url = click.option(
    "--url",
    help=f"sqlite:///FILE or postgresql://...  [default: {DATABASE_VARIABLE}, else your own file]",
)
_day = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])


@click.group()
def db() -> None:
    """Make, look at, export and shorten the records."""


@db.command()
@_url
@_json
def migrate(url: str | None, as_json: bool) -> None:
    """Bring the tables of the records up to date, and make them where there are none."""

    async def work(store: Store) -> tuple[list[Migrated], list[Migrated]]:
        return list(await store.migrate()), list(await store.status())

    where, (applied, states) = _with_store(url, work, make=True)
    if as_json:
        _print_json({"database": where, "applied": applied, "migrations": states})
        return
    _show_migrations(where, states)
    numbers = ", ".join(f"{state.number:04d}" for state in applied)
    _stderr().print(f"applied {numbers}" if applied else "nothing to do: the tables are up to date")


@db.command()
@_url
@_json
def status(url: str | None, as_json: bool) -> None:
    """Show which migrations the database has."""
    where, states = _with_store(url, lambda store: store.status())
    waiting = [state for state in states if state.applied_at is None]
    if as_json:
        _print_json({"database": where, "ready": not waiting, "migrations": states})
        return
    _show_migrations(where, states)
    if waiting:
        _stderr().print("the tables are not up to date; run: qbtc db migrate")


@db.command()
@click.argument("table", type=click.Choice(list(TABLES)))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="FILE.jsonl or FILE.parquet  [default: JSON lines on stdout]",
)
@click.option("--from", "start", type=_day, help="First day or time (UTC), included.")
@click.option("--to", "end", type=_day, help="Day or time (UTC) to stop before.")
@_url
@_json
def export(
    table: str,
    out: Path | None,
    start: datetime | None,
    end: datetime | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Write the rows of TABLE as JSON lines or Parquet, in the order of their time."""
    if out is not None and out.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{out}: name a file that ends in .jsonl or .parquet")
    if as_json and out is None:
        raise InputError("with --json, give --out FILE: the rows would mix with the report")

    async def work(store: Store) -> int:
        # Closed here, also where the file is full: its cursor must not outlive the connection.
        async with aclosing(store.export(table, start_ns=_ns(start), end_ns=_ns(end))) as rows:
            if out is None:
                return await write_json_lines(rows, sys.stdout.buffer)
            if out.suffix == ".parquet":
                return await write_parquet(table, rows, out)
            return await _write_file(rows, out)

    where, count = _with_store(url, work)
    if as_json:
        _print_json({"database": where, "table": table, "rows": count, "file": str(out)})
    elif out is not None:
        _stderr().print(f"{count} rows of {table} in {out}", highlight=False)


@db.command()
@click.option(
    "--days", type=click.IntRange(1, 36_500), required=True, help="What is older than this goes."
)
@_url
@_json
def retain(days: int, url: str | None, as_json: bool) -> None:
    """Forget old interactions, tool calls and signals.

    PostgreSQL drops whole months. Marks of messages are kept 14 days at least; orders, their
    events, fills and snapshots are kept for ever.
    """
    where, gone = _with_store(url, lambda store: store.retain(days=days))
    if as_json:
        _print_json({"database": where, "days": days, "rows": gone})
    else:
        _stderr().print(f"{gone} rows older than {days} days went from {where}", highlight=False)


def _with_store[T](
    url: str | None, work: Callable[[Store], Awaitable[T]], *, make: bool = False
) -> tuple[str, T]:
    """Open the database, work on it, and say which it was."""
    chosen = database_url(url)
    if chosen is None:
        raise InputError(f"records are off ({DATABASE_VARIABLE}); give --url")
    where = shown(chosen)
    if chosen.startswith("sqlite:///") and not make:
        path = Path(chosen.removeprefix("sqlite:///")).expanduser()
        if not path.exists():
            raise InputError(f"{path} does not exist; qbtc db migrate makes it")

    async def go() -> T:
        store = await open_store(chosen, ready=False)
        try:
            return await work(store)
        finally:
            await store.close()

    return where, asyncio.run(go())


async def _write_file(rows: Any, path: Path) -> int:
    try:
        with path.open("wb") as file:
            return await write_json_lines(rows, file)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def _ns(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    # Rows have 64-bit nanoseconds; no row is beyond the years that these reach.
    nanoseconds = int(moment.replace(tzinfo=UTC).timestamp()) * 10**9
    return min(max(nanoseconds, 0), 2**63 - 1)


def _show_migrations(where: str, states: list[Migrated] | Any) -> None:
    table = Table(box=box.SIMPLE_HEAD, title=where, title_justify="left")
    for column in ("migration", "applied", "SHA-256"):
        table.add_column(column)
    for state in states:
        applied = state.applied_at or "[yellow]waits[/]"
        table.add_row(f"{state.number:04d}_{state.name}", applied, state.sha256[:12])
    _stderr().print(table)


def _print_json(report: dict[str, Any]) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())


def _stderr() -> Console:
    return Console(stderr=True)
