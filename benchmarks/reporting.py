"""The report of a benchmark run.

Rows for programs (``report.json``), the same with targets for people (``report.md`` and the table
printed at the end).
``ratio`` above 1 always means that we are ahead of the peer.
"""

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
from rich.table import Table

from benchmarks.timing import Samples

type Better = Literal["higher", "lower"]
type Unit = Literal[
    "ns", "us", "ms", "M events/s", "M rows/s", "rows/s", "requests/s", "tokens/s", "texts/s"
]  # fmt: skip


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``report.json``; these names are a stable interface."""

    name: str
    value: float
    """The figure to quote: the median of ours, in ``unit``."""
    unit: str
    p50: float
    p99: float
    """The slow end: 99 % of ours were at least this good."""
    peer: str | None
    peer_value: float | None
    ratio: float | None
    better: Better
    machine: str
    git: str


class Target(msgspec.Struct, frozen=True):
    """What a row should reach: at least ``bound`` (ratio), at most or at least it (value)."""

    on: Literal["ratio", "value"]
    bound: float

    def met(self, row: Row) -> bool:
        """Tell whether the row reaches it."""
        if self.on == "ratio":
            return row.ratio is not None and row.ratio >= self.bound
        return row.value <= self.bound if row.better == "lower" else row.value >= self.bound

    def text(self, row: Row) -> str:
        """Say it: ``>= 10x`` or ``<= 1000 ns``."""
        if self.on == "ratio":
            return f">= {self.bound:g}x"
        return f"{'<=' if row.better == 'lower' else '>='} {_number(self.bound)} {row.unit}"


@dataclass(frozen=True)
class Entry:
    """A row with what only people read."""

    row: Row
    group: str
    label: str
    peer_p99: float | None
    target: Target | None
    note: str

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, or empty where nothing was asked for."""
        if self.target is None:
            return ""
        return "met" if self.target.met(self.row) else "missed"


@dataclass
class Report:
    """The rows of one run, on one machine, of one commit."""

    machine: str
    git: str
    entries: list[Entry] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Benchmarks that did not end well, with the first reason."""

    def add(
        self,
        group: str,
        name: str,
        ours: Samples,
        peer: tuple[str, Samples] | None = None,
        *,
        unit: Unit = "ns",
        target: Target | None = None,
        note: str = "",
    ) -> Row:
        """Add a row made of ns per operation; rates are their reciprocals.

        Parameters
        ----------
        group, name
            Heading and line; together the row's name, unique in the report.
        ours, peer
            Samples in ns per operation, the peer with its name.
        unit
            A time (lower is better) or a rate (higher is better).
        target, note
            What it should reach; one sentence of method.
        """
        full_name = f"{group}: {name}"
        if any(entry.row.name == full_name for entry in self.entries):
            raise ValueError(f"two rows are called {full_name!r}")
        better: Better = "lower" if unit in ("ns", "us", "ms") else "higher"
        theirs = peer[1] if peer else None
        row = Row(
            name=full_name,
            value=_in(unit, ours.p50),
            unit=unit,
            p50=_in(unit, ours.p50),
            p99=_in(unit, ours.p99),
            peer=peer[0] if peer else None,
            peer_value=_in(unit, theirs.p50) if theirs else None,
            ratio=ours.times_faster_than(theirs) if theirs else None,
            better=better,
            machine=self.machine,
            git=self.git,
        )
        peer_p99 = _in(unit, theirs.p99) if theirs else None
        self.entries.append(Entry(row, group, name, peer_p99, target, note))
        return row

    def write(self, folder: Path) -> None:
        """Write ``report.json`` and ``report.md`` below ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = [entry.row for entry in self.entries]
        encoded = msgspec.json.format(msgspec.json.encode(rows), indent=2)
        _replace(folder / "report.json", encoded + b"\n")
        _replace(folder / "report.md", self.markdown().encode())

    def markdown(self) -> str:
        """Return the report as Markdown."""
        lines = ["# Benchmarks", "", f"{self.machine}", "", f"Commit {self.git}.", ""]
        lines += [
            "Ours and the peer took turns in one process. A ratio above 1 means that we are"
            " ahead; it is the median over the rounds of the ratio inside a round. p99 is the"
            " slow end, of rates as well.",
            "",
        ]
        for group in dict.fromkeys(entry.group for entry in self.entries):
            lines += [f"## {group}", "", "| " + " | ".join(_HEADINGS) + " |"]
            lines += ["|---|---|---:|---:|---|---:|---:|---:|---|---|"]
            members = [entry for entry in self.entries if entry.group == group]
            lines += ["| " + " | ".join(_cells(entry)) + " |" for entry in members]
            lines += [""]
            lines += [f"- {entry.label}: {entry.note}" for entry in members if entry.note]
            lines += [""]
        if self.missing:
            lines += ["## Not measured", ""]
            lines += [f"- {name}: {reason}" for name, reason in self.missing.items()] + [""]
        return "\n".join(lines)

    def table(self) -> Table:
        """Return the report as a rich table."""
        table = Table(title="Benchmarks", caption=f"{self.machine}\ncommit {self.git}")
        for heading in _HEADINGS:
            right = heading not in ("what", "unit", "peer", "target", "")
            table.add_column(heading, justify="right" if right else "left", overflow="fold")
        group = ""
        for entry in self.entries:
            if entry.group != group:
                group = entry.group
                table.add_section()
                table.add_row(f"[bold]{group}[/]")
            style = {"met": "green", "missed": "red"}.get(entry.verdict)
            table.add_row(*_cells(entry), style=style)
        return table


_HEADINGS = (
    "what", "unit", "ours p50", "ours p99", "peer", "peer p50", "peer p99", "ratio", "target", "",
)  # fmt: skip


def _cells(entry: Entry) -> Sequence[str]:
    row = entry.row
    return (
        entry.label,
        row.unit,
        _number(row.p50),
        _number(row.p99),
        row.peer or "",
        _number(row.peer_value),
        _number(entry.peer_p99),
        "" if row.ratio is None else f"{row.ratio:.2f}x",
        entry.target.text(row) if entry.target else "",
        entry.verdict,
    )


def _in(unit: str, ns: float) -> float:
    """Convert ns per operation to ``unit``."""
    match unit:
        case "ns":
            return ns
        case "us":
            return ns / 1e3
        case "ms":
            return ns / 1e6
        case "rows/s" | "requests/s" | "tokens/s" | "texts/s":
            return 1e9 / ns
        case _:
            return 1e3 / ns


def _number(value: float | None) -> str:
    """Three or four digits, whatever the size."""
    if value is None:
        return ""
    for bound, digits in ((100, 0), (10, 1), (1, 2)):
        if abs(value) >= bound:
            return f"{value:,.{digits}f}"
    return f"{value:.3g}"


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def machine() -> str:
    """Describe this machine in one line: CPU, cores, load, instruction set, systems."""
    cpu, flags = platform.processor() or platform.machine(), set[str]()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
        facts = {name.strip(): value.strip() for name, _, value in lines}
        cpu, flags = facts.get("model name", cpu), set(facts.get("flags", "").split())
    widest = next((name for name in ("avx512f", "avx2", "asimd") if name in flags), "baseline")
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{cpu}, {os.cpu_count()} cores, load {load}, {widest}, {platform.system()}"
        f" {platform.release()}, Python {platform.python_version()}, release build,"
        f" {datetime.now(UTC):%Y-%m-%d}"
    )


def commit(root: Path) -> str:
    """Return the commit, ``-dirty`` where the tree differs; ``unknown`` outside git."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
