"""The end of a run on the terminal: a few tables on stderr, then where the report lies.

Plain text where stderr is not a terminal (rich drops colour by itself; ``NO_COLOR`` works too).
"""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from qbtc.trading.report.quality import by_horizon, horizons_for
from qbtc.trading.report.rundir import RunDirectory, after_training, read_run
from qbtc.trading.report.wording import (
    count,
    data_label,
    duration,
    import_changes,
    method,
    money,
    outcome,
    replayed_label,
    sample,
    standing,
)
from qbtc.trading.result import Performance, RunResult

__all__ = ["print_summary"]


def print_summary(folder: Path, console: Console | None = None) -> None:
    """Print what a run came to, from its directory.

    Parameters
    ----------
    folder
        A run directory with ``result.json``; the last line names its ``report.html``.
    console
        Where to print; stderr by default.
    """
    console = console or Console(stderr=True, highlight=False)
    run = read_run(folder)
    result = run.result
    console.print(_headline(run))
    console.print(_data(result))
    console.print(_performance(result))
    signals = _signals(run)
    if signals is not None:
        console.print(signals)
    outside = _outside(result)
    if outside is not None:
        console.print(outside)
    for note in result.notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    console.print(Text(f"fills_sha256 {result.fills_sha256}", style="dim"), soft_wrap=True)
    console.print(Text(f"report {folder / 'report.html'}", style="bold"), soft_wrap=True)


def _headline(run: RunDirectory) -> Panel:
    result = run.result
    label = data_label(result)
    body = Text()
    if result.status != "complete":
        body.append(f"{result.status.upper()}: {result.error or 'stopped early'}\n", "bold red")
    body.append(f"{outcome(result)} {standing(result, after_training(run))}\n", "bold")
    body.append(f"{method(result)} {sample(result)}")
    return Panel(
        body,
        title=Text(f" {result.name} · {label} data · {result.status} "),
        title_align="left",
        border_style="green" if label == "REAL" and result.status == "complete" else "yellow",
    )


def _data(result: RunResult) -> Table:
    table = _table("Data", "Span", "Events", "Source", "Import", replayed_label(result))
    for data in result.data:
        label = " SYNTHETIC" if data.synthetic else ""
        first = (data.instrument + label, duration(data.span_ns))
        used = [name for name, number in data.source_counts.items() if number] or ["none"]
        for i, name in enumerate(used):
            table.add_row(
                *(first if not i else ("", "")),
                name,
                count(data.source_counts.get(name, 0)),
                import_changes(data, name),
                count(data.replayed.get(name, 0)),
            )
    return table


def _performance(result: RunResult) -> Table:
    head = ("before costs", "fees", "after costs", "drawdown", "fills")
    table = _table(f"P&L, {result.currency}", *head)
    table.add_row(*_row("this run", result.performance), style="bold")
    if len(result.strategies) > 1:
        for part in result.strategies:
            table.add_row(*_row(f"  {part.name}", part))
    for base in result.baselines:
        table.add_row(*_row(f"vs {base.name}", base))
    return table


def _row(name: str, line: Performance) -> tuple[str, ...]:
    status = "" if line.status == "complete" else f" ({line.status})"
    return (
        name + status,
        money(line.pnl_before_costs, sign=True),
        money(line.fees),
        money(line.pnl_after_costs, sign=True),
        money(line.max_drawdown),
        count(line.fills),
    )


def _signals(run: RunDirectory) -> Table | None:
    """Return IC by horizon of the out-of-sample signals, None when there are too few."""
    table = _table("Signal against later mid", "horizon", "IC", "5 to 95 %", "strongest tenth")
    for signal in run.result.signals:
        rows = run.signals.where(run.signals["instrument"] == signal.instrument)
        if signal.train_end_ns is not None:
            rows = rows.where(rows["ts"] > signal.train_end_ns)
        for i, item in enumerate(by_horizon(rows, horizons_for(rows["ts"]))):
            low, high = item.ic.low, item.ic.high
            table.add_row(
                "" if i else signal.instrument,
                f"{item.horizon_s:g} s",
                f"{item.ic.value:+.3f}",
                "—" if low is None or high is None else f"{low:+.2f} to {high:+.2f}",
                f"{item.decile_bp.value:+.2f} bp",
            )
    return table if table.row_count else None


def _outside(result: RunResult) -> Table | None:
    """Return what went to the bus and the records, and came from the bus; None: nothing did."""
    table = _table("Outside", "", "")
    bus, records, risk = result.outside.bus, result.outside.records, result.outside.risk
    if bus is not None:
        for kind, copies in bus.relay.items():
            table.add_row(f"{kind} to the bus", f"{count(copies.sent)} sent", _some(copies.dropped))
        if bus.received:
            rest = {name: number for name, number in bus.received.items() if name != "received"}
            received = f"{count(bus.received.get('received', 0))} received"
            table.add_row("signals heard", received, _parts(rest))
            table.add_row("by the node", _parts(bus.outcomes), "")
    if records is not None:
        table.add_row(
            "records",
            f"{count(records.counts['written'])} written",
            _some(records.counts["dropped"] + records.counts["refused"]),
        )
    if risk is not None:
        table.add_row("orders refused", _parts(risk.refused) or "none", "")
    return table if table.row_count else None


def _some(dropped: int) -> str:
    return f"{count(dropped)} dropped"


def _parts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count(number)} {name}" for name, number in counts.items() if number)


def _table(*head: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    return table
