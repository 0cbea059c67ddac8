"""``qbtc train`` and ``qbtc features``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from qbtc.evaluate.train import Trained

__all__ = ["features", "train"]

JSON_DROPS = {"curves", "reliability"}
"""Parts of an outcome that the card keeps and the JSON on stdout does not repeat."""


@click.command()
@click.argument("config", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON on stdout.")
def train(config: Path, as_json: bool) -> None:
    """Train signal models and write them with their cards.

    The models go to the config's output_dir (default: models). Progress and tables go to stderr.
    Nothing is written before every model is trained.
    """
    from qbtc.config import TrainConfig, load_config
    from qbtc.evaluate.train import train as run

    settings = load_config(config, TrainConfig)
    console = Console(stderr=True)
    with _Bars(console) as bars:
        trained = run(settings, config.resolve().parent, watcher=bars)
    _print_outcomes(console, trained)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(_summary(trained)), indent=2))


class _Bars:
    """Draws the progress of a training on a console."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description:>9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        # Where stderr is a file or a pipe, a bar would only be cut lines.
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._tasks: dict[str, int] = {}
        self._open: str | None = None

    def __enter__(self) -> "_Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()
        self._progress.stop()

    def _finish(self) -> None:
        """Early stopping leaves a bar short of its total: end it where it stands."""
        if self._open is not None:
            task = self._progress.tasks[self._tasks[self._open]]
            self._progress.update(task.id, total=task.completed or 1)

    def stage(self, name: str, total: int) -> None:
        self._finish()
        self._tasks[name] = self._progress.add_task(name, total=total, note="")
        self._open = name

    def step(self, name: str, done: int, note: str) -> None:
        self._progress.update(self._tasks[name], completed=done, note=note)  # type: ignore[arg-type]


def _print_outcomes(console: Console, trained: "Trained") -> None:
    from qbtc.evaluate.card_page import interval_text, seeds_text

    card = next(iter(trained.cards.values()))
    rows = card.slices["test"].rows
    kind = "SYNTHETIC" if card.synthetic else "real"
    title = f"{card.instrument} ({kind} data): {rows:,} test rows, losses in nats"
    losses = _table(title, "valid.", "test", "all fits", "acc.", "AUC", "ECE", "s")
    gaps = _table(
        "test loss less a rival's, 95 % interval over blocks of time", "vs logistic", "vs prior"
    )
    for outcome in sorted(card.outcomes.values(), key=lambda outcome: outcome.test.log_loss):
        own, test = outcome.name, outcome.test
        losses.add_row(
            own,
            f"{outcome.validation.log_loss:.4f}",
            f"{test.log_loss:.4f}",
            seeds_text(outcome),
            f"{test.accuracy:.3f}",
            f"{test.auc:.3f}",
            f"{test.ece:.3f}",
            f"{outcome.seconds:.1f}",
        )
        gaps.add_row(
            own,
            *(
                "—" if own == rival else interval_text(outcome.against[rival])
                for rival in ("logistic", "prior")
            ),
        )
    console.print(losses)
    console.print(gaps)
    console.print(card.verdict, highlight=False)
    if not card.lightgbm:
        console.print("LightGBM did not run: pip install 'qbtc\\[baselines]'", highlight=False)
    for path in trained.files.values():
        console.print(f"{path} (card: {path.with_suffix('.html').name})", soft_wrap=True)


def _table(title: str, *figures: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("model", no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _summary(trained: "Trained") -> dict[str, object]:
    """Gather what a program needs: losses, files, spans; the cards hold the rest."""
    card = next(iter(trained.cards.values()))
    outcomes = {
        name: {
            key: value
            for key, value in msgspec.structs.asdict(outcome).items()
            if key not in JSON_DROPS
        }
        for name, outcome in card.outcomes.items()
    }
    return {
        "name": card.config.name,
        "instrument": card.instrument,
        "lead": card.lead,
        "synthetic": card.synthetic,
        "revision": card.revision,
        "seen_until_ns": card.seen_until_ns,
        "slices": card.slices,
        "outcomes": outcomes,
        "verdict": card.verdict,
        "files": {name: str(path) for name, path in trained.files.items()},
        "weights_sha256": {name: each.weights_sha256 for name, each in trained.cards.items()},
    }


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON on stdout.")
@click.option("--markdown", is_flag=True, help="Print docs/features.md on stdout.")
def features(as_json: bool, markdown: bool) -> None:
    """List the 26 features.

    Name, unit, formula, warm-up, and what changes each; as a table on stderr.
    """
    from qbtc.evaluate.feature_table import as_dict, as_markdown, as_table

    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(as_dict()), indent=2))
    elif markdown:
        click.echo(as_markdown(), nl=False)
    else:
        Console(stderr=True).print(as_table())
