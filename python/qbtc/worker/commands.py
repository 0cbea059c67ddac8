"""``qbtc worker``. What is heavy is imported inside the command."""

from pathlib import Path
from typing import Literal

import click

__all__ = ["worker"]

_SERVED = click.Choice(("llm", "trading"))


@click.command()
@click.option("--model", metavar="ID|PATH|URL", help="What to serve; see qbtc models list.")
@click.option("--embedding-model", metavar="ID|PATH", help="For embeddings; '' for none.")
@click.option(
    "--signal-model",
    "signal_models",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A model of qbtc train, for trading requests; repeat it, the first is the default.",
)
@click.option(
    "--amqp-url",
    envvar="QBTC_AMQP_URL",
    default="amqp://guest:guest@127.0.0.1:5672/",
    help="RabbitMQ; also QBTC_AMQP_URL.  [default: amqp://guest:guest@127.0.0.1:5672/]",
)
@click.option(
    "--prefix",
    envvar="QBTC_BUS_PREFIX",
    default="",
    help="What the names of queues begin with; also QBTC_BUS_PREFIX.",
)
@click.option(
    "--threads",
    type=click.IntRange(0, 256),
    default=0,
    help="Of the engine; 0: one a core.  [default: 0]",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    default=8,
    show_default=True,
    help="Requests at a time; the others wait in the queue for whoever is free.",
)
@click.option(
    "--finish-s",
    type=click.FloatRange(0, 3600),
    default=15.0,
    help="At the end: how long what is being answered may go on.  [default: 15]",
)
@click.option("--only", type=_SERVED, help="Take requests of one kind.  [default: all it can]")
@click.option("--json", "as_json", is_flag=True, help="One JSON line on stdout once it is ready.")
def worker(
    model: str | None,
    embedding_model: str | None,
    signal_models: tuple[Path, ...],
    amqp_url: str,
    prefix: str,
    threads: int,
    concurrency: int,
    finish_s: float,
    only: Literal["llm", "trading"] | None,
    as_json: bool,
) -> None:
    """Answer requests from the queues of RabbitMQ, beside any number of other workers.

    Without --signal-model, requests for trading signals are left to others. SIGTERM and Ctrl-C let
    what is being answered end, for a bounded time, and give the rest back; a second one does not
    wait.
    """
    if only == "trading" and not signal_models:
        raise click.UsageError("--only trading needs a --signal-model.")
    if only == "llm" and signal_models:
        raise click.UsageError("--only llm serves no --signal-model; leave one of them out.")
    if only == "trading" and (model or embedding_model):
        raise click.UsageError("--only trading serves no --model; leave one of them out.")
    if amqp_url == "memory://":
        raise click.UsageError("Nobody can ask a worker over memory://; give RabbitMQ's URL.")
    if finish_s != finish_s:
        raise click.UsageError("--finish-s is a number of seconds.")
    from qbtc.llm.models import DEFAULT_CHAT_MODEL, DEFAULT_EMBEDDING_MODEL
    from qbtc.worker.serve import WorkerSettings, run

    if embedding_model is None:
        embedding_model = DEFAULT_EMBEDDING_MODEL
    settings = WorkerSettings(
        model=None if only == "trading" else model or DEFAULT_CHAT_MODEL,
        embedding_model=embedding_model,
        signal_models=signal_models,
        amqp_url=amqp_url,
        prefix=prefix,
        threads=threads,
        concurrency=concurrency,
        finish_s=finish_s,
    )
    run(settings, as_json=as_json)
