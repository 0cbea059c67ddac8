"""``python -m tests.faults``: break things on purpose, count, and say whether anything was lost."""

import asyncio
import logging
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from tests.faults import broker, controls, language, links, records
from tests.faults.harness import (
    Outcome,
    Row,
    Setting,
    report,
    show,
    write_document,
    write_json,
)
from tests.support.private_servers import server_folder

ROW_S_MAX = 900.0
ROWS: dict[str, Row] = {
    "control-loss": controls.loss_is_seen,
    "control-repetition": controls.repetition_is_seen,
    "broker": broker.broker_killed,
    "duplicates": broker.duplicates,
    "poison": broker.poison,
    "malformed": broker.malformed,
    "stalled": links.stalled,
    "half-open": links.half_open,
    "slow-consumer": links.slow_consumer,
    "database": records.database_killed,
    "writer": records.writer_killed,
    "worker": language.worker_killed,
    "redis": language.redis_killed,
    "slow-clients": language.slow_clients,
}


@click.command()
@click.option("--rows", default="", help=f"Some of them, with commas: {', '.join(ROWS)}.")
@click.option("--kills", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Keep the run here.")
@click.option("--document", is_flag=True, help="Put the table into docs/faults.md.")
@click.option("--short", is_flag=True, help="A smaller load, as with the tests.")
def main(
    rows: str, kills: int, seed: int, json_path: Path | None, document: bool, short: bool
) -> None:
    """Kill, stall and poison real servers under load; exit 1 if anything is lost or done twice."""
    logging.disable(logging.CRITICAL)  # lost connections are the point; what matters is counted
    chosen = [name for name in rows.split(",") if name] or list(ROWS)
    if unknown := [name for name in chosen if name not in ROWS]:
        raise click.UsageError(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    console = Console(stderr=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 160)
    outcomes = []
    for name in chosen:
        with console.status(name) as status, server_folder() as folder:
            setting = Setting(
                folder=folder,
                seed=seed,
                kills=kills,
                short=short,
                say=lambda text, name=name, status=status: status.update(f"{name}: {text}"),
            )
            outcome = run_row(name, setting)
        outcomes.append(outcome)
        mark = "[green]ok[/]" if outcome.good else "[red]FAILED[/]"
        console.print(f"{mark} {name} ({outcome.seconds:.0f} s)", highlight=False)
    show(outcomes, console)
    found = report(outcomes, {"seed": seed, "kills": kills, "short": short})
    if json_path is not None:
        write_json(found, json_path)
    if document:
        write_document(found)
    sys.exit(0 if all(outcome.good for outcome in outcomes) else 1)


def run_row(name: str, setting: Setting) -> Outcome:
    """Run one row within its time; what breaks the row itself is an outcome too."""
    start = time.monotonic()
    try:
        outcome = asyncio.run(asyncio.wait_for(_call(ROWS[name], setting), ROW_S_MAX))
    except Exception as error:
        Console(stderr=True).print_exception()
        outcome = Outcome(fault=name, wrong=[f"the row broke: {error!r}"])
    outcome.seconds = time.monotonic() - start
    return outcome


async def _call(row: Row, setting: Setting) -> Outcome:
    return await row(setting)


if __name__ == "__main__":
    main()
