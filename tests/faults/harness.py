"""What a row of the fault table is, how it is run, printed and kept.

A row injects one fault into real servers under load and then counts: what was accepted (its sender
was told that it is safe), what took effect, what is lost (accepted, no effect) and how many effects
there are beyond one each. A control row does without a protection and must show the damage: a
harness that cannot see a loss proves nothing.
"""

import asyncio
import contextlib
import json
import platform
import random
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import aio_pika
import msgspec
from rich.console import Console
from rich.table import Table

ROOT: Final = Path(__file__).resolve().parents[2]
DOCUMENT: Final = ROOT / "docs" / "faults.md"
BEGIN: Final = "<!-- table: written by python -m tests.faults --document -->"
END: Final = "<!-- end of table -->"
PROBE_S_MAX: Final = 60.0
ASK_S_MAX: Final = 60.0


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What every row is told."""

    folder: Path
    """Of this row alone; a server's own user may enter it."""
    seed: int
    kills: int
    short: bool
    """Whether a smaller load will do: the form that runs with the tests."""
    say: Callable[[str], None]
    """Shows progress."""

    def random(self, row: str) -> random.Random:
        """Return the row's own source of chance."""
        return random.Random(f"{self.seed}/{row}")


class Outcome(msgspec.Struct, kw_only=True):
    """What came of a row."""

    fault: str
    accepted: int = 0
    processed: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: list[str] = []
    """What should have held and did not, in words."""
    notes: str = ""
    control: bool = False
    """Whether the damage is wanted, to show that it would be seen."""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether nothing is lost, done twice or wrong; of a control: whether damage was seen.

        A row in which nothing was accepted shows nothing.
        """
        damage = self.lost > 0 or self.duplicated > 0
        return not self.wrong and self.accepted > 0 and damage == self.control

    def count(self, accepted: Iterable[str], effects: Mapping[str, int]) -> None:
        """Compare what was accepted with the effects by id."""
        told = set(accepted)
        self.accepted = len(told)
        self.processed = len(effects)
        self.lost = len(told - effects.keys())
        self.duplicated = sum(count - 1 for count in effects.values())

    def expect(self, holds: bool, otherwise: str) -> None:
        """Note what is wrong if something does not hold."""
        if not holds:
            self.wrong.append(otherwise)


type Row = Callable[[Setting], Awaitable[Outcome]]


async def depth(url: str, queue: str) -> int | None:
    """Return how many messages are ready in a queue, seen by a new connection; None: no queue."""
    async with await aio_pika.connect(url, timeout=ASK_S_MAX) as link:
        channel = await link.channel()
        try:
            found = await channel.declare_queue(queue, passive=True, timeout=ASK_S_MAX)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return None
        return found.declaration_result.message_count


async def until(
    holds: Callable[[], Awaitable[bool]], *, within_s: float, every_s: float = 0.1
) -> bool:
    """Wait until something holds; whether it did in time."""
    end = time.monotonic() + within_s
    while not await holds():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(every_s)
    return True


@contextlib.asynccontextmanager
async def background(work: Awaitable[Any]) -> AsyncIterator["asyncio.Task[Any]"]:
    """Run something beside a block, and end it with the block."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value that a share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def rss_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def show(outcomes: Iterable[Outcome], console: Console) -> None:
    """Print the table."""
    table = Table(title="faults", title_justify="left")
    table.add_column("fault", overflow="fold")
    for name in ("accepted", "processed", "lost", "duplicated", "s"):
        table.add_column(name, justify="right")
    table.add_column("notes", overflow="fold")
    for row in outcomes:
        notes = "; ".join([*(f"WRONG: {line}" for line in row.wrong), row.notes])
        colour = "" if row.good else "red"
        numbers = [f"{n:,}" for n in (row.accepted, row.processed, row.lost, row.duplicated)]
        table.add_row(row.fault, *numbers, f"{row.seconds:.0f}", notes, style=colour)
    console.print(table)


def report(outcomes: list[Outcome], setting: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything about a run, for JSON."""
    return {
        "commit": _commit(),
        "machine": {
            "cpus": _cpus(),
            "system": platform.system(),
            "python": platform.python_version(),
        },
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **setting,
        "rows": [{**msgspec.to_builtins(row), "good": row.good} for row in outcomes],
    }


def write_document(found: Mapping[str, Any], path: Path = DOCUMENT) -> None:
    """Put the table of a run between the markers of the document."""
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    lines = [
        f"Commit {found['commit'][:12]}, {found['date']}, {found['machine']['cpus']} cores,"
        f" seed {found['seed']}, {found['kills']} kills of the broker:",
        "",
        "| fault | accepted | processed | lost | duplicated | seconds | notes |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in found["rows"]:
        numbers = " | ".join(
            f"{row[name]:,}" for name in ("accepted", "processed", "lost", "duplicated")
        )
        notes = "; ".join([*(f"**wrong: {line}**" for line in row["wrong"]), row["notes"]])
        lines.append(f"| {row['fault']} | {numbers} | {row['seconds']:.0f} | {notes} |")
    path.write_text("\n".join([before + BEGIN, "", *lines, "", END + after]), encoding="utf-8")


def write_json(found: Mapping[str, Any], path: Path) -> None:
    """Keep a run."""
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _cpus() -> int:
    import os

    return len(os.sched_getaffinity(0))
