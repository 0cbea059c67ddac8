"""The commands ``backtest``, ``report`` and ``config``: argument checking and printing only."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from qbtc.config import RunConfig, TrainConfig, load_config
from qbtc.errors import ConfigError

__all__ = ["backtest", "config", "report"]

_CONFIG = click.argument("path", metavar="CONFIG", type=click.Path(path_type=Path))


@click.command()
@_CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print result.json on stdout.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Parent of the run directory  [default: the config's output_dir, or runs]",
)
def backtest(path: Path, as_json: bool, output: Path | None) -> None:
    """Run a config and report what it came to.

    The data is recorded or synthetic. Writes runs/<run id>/ with result.json, Parquet tables and
    report.html; a summary goes to stderr. Exit code 0: complete; 2: wrong input; 1: the run failed;
    130: interrupted.
    """
    # Imported here so that `qbtc config` and `--help` do not wait for Nautilus and plotly.
    from qbtc.trading.host import execute
    from qbtc.trading.plan import make_plan
    from qbtc.trading.report.page import write_report
    from qbtc.trading.report.summary import print_summary

    console = Console(stderr=True, highlight=False)
    # What a strategy prints goes to stderr: stdout is for the result.
    with redirect_stdout(sys.stderr), _progress_bar(console) as progress:
        plan = make_plan(load_config(path, RunConfig), path.resolve().parent)
        outcome = execute(plan, output_dir=output, progress=progress)
    write_report(outcome.folder)
    if as_json:
        click.echo((outcome.folder / "result.json").read_text(), nl=False)
    print_summary(outcome.folder, console)
    if isinstance(outcome.error, KeyboardInterrupt):
        console.print(f"stopped early; partial results: {outcome.folder}", soft_wrap=True)
    outcome.raise_if_failed()


@click.command()
@click.argument("folder", metavar="RUN_DIR", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write report.html of a run again.

    It is made from the run directory alone; the summary goes to stderr.
    """
    from qbtc.trading.report.page import write_report
    from qbtc.trading.report.summary import print_summary

    write_report(folder)
    print_summary(folder)


@click.group()
def config() -> None:
    """Check or print a config without running it."""


@config.command()
@_CONFIG
def check(path: Path) -> None:
    """Say whether a config is right.

    Checks its keys, strategies and models, and that the data files exist.
    """
    from qbtc.trading.plan import check_sources, make_plan

    loaded = _load_any(path)
    base = path.resolve().parent
    check_sources(loaded.data, base)
    if isinstance(loaded, RunConfig):
        made = make_plan(loaded, base)
        names = ", ".join(item.cls.__name__ for item in (*made.strategies, *made.baselines))
        click.echo(f"{path}: ok (run {loaded.name!r}; {len(loaded.data)} data sets; {names})")
    else:
        click.echo(f"{path}: ok (training {loaded.name!r}; {len(loaded.data)} data sets)")


@config.command()
@_CONFIG
def show(path: Path) -> None:
    """Print a config as JSON with every default filled in."""
    text = msgspec.json.format(msgspec.json.encode(_load_any(path)), indent=2)
    click.echo(text.decode())


def _load_any(path: Path) -> RunConfig | TrainConfig:
    """Read a config as a run, or as a training if it looks like one."""
    try:
        return load_config(path, RunConfig)
    except ConfigError as wrong_run:
        try:
            return load_config(path, TrainConfig)
        except ConfigError as wrong_training:
            words = "strategies", "venue", "signals", "mode", "baselines"
            text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
            is_run = any(word in text for word in words)
            raise (wrong_run if is_run else wrong_training) from None


@contextmanager
def _progress_bar(console: Console) -> Iterator[Callable[[str, float], None]]:
    """Show a bar on a terminal; say nothing where stderr is a file or a pipe."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(what: str, share: float) -> None:
            if what not in tasks:
                for done in tasks.values():
                    bar.update(done, completed=1.0)
                tasks[what] = bar.add_task(what, total=1.0)
            bar.update(tasks[what], completed=share)

        yield progress
