"""``qbtc eval``: ask a model our own questions, keep every raw answer, count from what was kept."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from qbtc.llm.commands import obtain_model, open_engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qbtc.llm.evaluate.run import Answer
    from qbtc.llm.evaluate.score import Score, Share
    from qbtc.llm.evaluate.tasks import Question
    from qbtc.llm.models import ModelFile

__all__ = ["evaluate"]

SHOWN_CHARACTERS = 60

_json = click.option("--json", "as_json", is_flag=True, help="Print the score as JSON on stdout.")
_wrong = click.option("--wrong", is_flag=True, help="Show each wrong answer and why it is.")


@click.group("eval")
def evaluate() -> None:
    """Measure how well a language model does, here, with our own tasks."""


@evaluate.command()
@click.option("--model", help="Id, GGUF file or address  [default: smollm2-135m-instruct]")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the tasks.")
@click.option(
    "--tasks",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of task files  [default: those that come with qbtc]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="Where the run's folder goes.",
)
@click.option("--threads", type=click.IntRange(1), help="[default: the machine's]")
@click.option("--no-reference", is_flag=True, help="Leave out perplexity and divergence (slow).")
@_wrong
@_json
def llm(
    model: str | None,
    seed: int,
    tasks: Path | None,
    out: Path,
    threads: int | None,
    no_reference: bool,
    wrong: bool,
    as_json: bool,
) -> None:
    """Ask every task, and compare the engine with its own weights in f32.

    Raw answers go to a folder below runs/; qbtc eval score counts them again.
    """
    from qbtc.core.fidelity import compare_with_reference
    from qbtc.llm.evaluate.run import (
        ANSWERS,
        FIDELITY,
        begin_run,
        fidelity_texts,
        write_lines,
    )
    from qbtc.llm.evaluate.score import score_run
    from qbtc.llm.evaluate.tasks import TASK_FOLDER, load_questions
    from qbtc.llm.models import sha256_of

    console = Console(stderr=True)
    questions = load_questions(tasks or TASK_FOLDER, seed=seed)
    found = obtain_model(model, console)
    folder = begin_run(out, found, sha256_of(found.path), seed=seed, questions=len(questions))
    with Progress(
        TextColumn("{task.description:>9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        # Where stderr is a file or a pipe, a bar would only be cut lines.
        disable=not console.is_terminal,
    ) as progress:
        answers = asyncio.run(_ask(found, questions, threads, progress))
        write_lines(folder / ANSWERS, answers)
        if not no_reference:
            bar = progress.add_task("reference", total=len(fidelity_texts()))
            windows = compare_with_reference(
                found.path,
                fidelity_texts(),
                threads=threads,
                on_text=lambda done, _total: progress.update(bar, completed=done),
            )
            write_lines(folder / FIDELITY, windows)
    _report(score_run(folder), folder, console, wrong=wrong, as_json=as_json)


@evaluate.command()
@click.argument("run", type=click.Path(path_type=Path))
@_wrong
@_json
def score(run: Path, wrong: bool, as_json: bool) -> None:
    """Count a run again from its raw answers."""
    from qbtc.llm.evaluate.score import score_run

    _report(score_run(run), run, Console(stderr=True), wrong=wrong, as_json=as_json)


async def _ask(
    model: "ModelFile", questions: "Sequence[Question]", threads: int | None, progress: Progress
) -> "list[Answer]":
    from qbtc.llm.evaluate.run import answer_questions

    engine = await open_engine(model, threads=threads)
    try:
        bar = progress.add_task("questions", total=len(questions))
        return await answer_questions(
            engine, model.id, questions, on_answer=lambda _: progress.advance(bar)
        )
    finally:
        await engine.close()


def _report(score: "Score", folder: Path, console: Console, *, wrong: bool, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(score), indent=2).decode())
        return
    run = score.run
    table = Table(
        title=f"{run.model}, {run.quantization}, seed {run.seed}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
    )
    table.add_column("tasks")
    for name in ("right", "asked", "share", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind, share in score.kinds.items():
        table.add_row(kind, *_share_cells(share))
    table.add_section()
    table.add_row("all", *_share_cells(score.total))
    console.print(table)
    found = score.fidelity
    if found is not None:
        console.print(
            f"perplexity {found.perplexity:.3f}, in f32 {found.reference_perplexity:.3f}; "
            f"divergence from f32 {found.kl_mean:.2g} nats (at most {found.kl_max:.2g}); "
            f"same first choice {found.agreement:.1%}; {found.tokens} tokens",
            highlight=False,
        )
    if wrong:
        _show_wrong(score, console)
    else:
        console.print(f"{len(score.wrong)} wrong; --wrong shows them", highlight=False)
    console.print(f"raw answers in {folder}", highlight=False, markup=False, soft_wrap=True)


def _share_cells(share: "Share") -> tuple[str, str, str, str]:
    return (
        str(share.right),
        str(share.asked),
        f"{share.right / max(share.asked, 1):.0%}",
        f"{share.low:.0%} to {share.high:.0%}",
    )


def _show_wrong(score: "Score", console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "why", "answer"):
        table.add_column(name, overflow="fold")
    for each in score.wrong:
        shown = " ".join(each.answer.split())[:SHOWN_CHARACTERS]
        table.add_row(escape(each.id), escape(each.why), escape(shown))
    console.print(table)
