"""``qbtc serve``, ``keys`` and ``apisix``: found through the entry-point group ``qbtc.commands``.

Every ``qbtc`` command imports this file, so what is heavy is imported inside the commands.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from qbtc_gateway.security.keys import KeyFile
    from qbtc_gateway.security.scopes import Scope
    from qbtc_gateway.settings import Settings

__all__ = ["apisix", "keys", "serve"]


@click.command()
@click.option("--model", metavar="ID|PATH|URL", help="What to serve; see qbtc models list.")
@click.option("--embedding-model", metavar="ID|PATH", help="For /v1/embeddings; '' for none.")
@click.option(
    "--engine",
    type=click.Choice(("local", "amqp")),
    help="Who answers: this process, or workers behind RabbitMQ.  [default: local]",
)
@click.option("--amqp-url", metavar="URL", help="RabbitMQ, for --engine amqp.")
@click.option("--redis-url", metavar="URL", help="Redis: rates and kept answers of all gateways.")
@click.option("--database-url", metavar="URL", help="Database of the records; off for none.")
@click.option(
    "--records",
    type=click.Choice(("off", "metadata", "full")),
    help="What is kept of requests; only full keeps prompts and answers.  [default: metadata]",
)
@click.option("--cache/--no-cache", default=None, help="Keep answers at temperature 0.")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65_535), help="0: any free.  [default: 8000]")
@click.option("--threads", type=click.IntRange(0, 256), help="0: one a core.  [default: 0]")
@click.option("--snapshot/--no-snapshot", default=None, help="Keep the prefix cache on disk.")
@click.option("--keys-file", metavar="PATH", help="Keys made by qbtc keys new.")
@click.option(
    "--config", "config", type=click.Path(path_type=Path), help="TOML file with a [serve] table."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON line on stdout once it listens.")
def serve(config: Path | None, as_json: bool, **flags: Any) -> None:
    """Serve language models over an OpenAI-compatible interface."""
    from qbtc_gateway.settings import load_settings

    settings = load_settings(config, flags=flags)
    importlib.import_module("qbtc_gateway.server").run(settings, as_json=as_json)


@click.group()
def keys() -> None:
    """Make, list and revoke the API keys of `qbtc serve`."""


_keys_file = click.option(
    "--keys-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="[default: QBTC_KEYS_FILE, or keys.json in the user's folder]",
)
_json = click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")


@keys.command()
@click.option("--name", default="", help="Whose it is, for lists and logs.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(("chat", "embeddings", "models", "metrics")),
    help="What it may do; repeat it.  [default: chat, embeddings, models]",
)
@_keys_file
@_json
def new(name: str, scopes: tuple[Scope, ...], keys_file: Path | None, as_json: bool) -> None:
    """Make a key. It is shown now and never again."""
    from qbtc.errors import InputError
    from qbtc_gateway.security.keys import NAME_CHARS_MAX, new_key
    from qbtc_gateway.security.scopes import SCOPES_DEFAULT

    if len(name) > NAME_CHARS_MAX or not (name.isprintable() or not name):
        raise InputError(f"--name takes up to {NAME_CHARS_MAX} printable characters")
    file = _file(keys_file)
    text, key = new_key(name, tuple(dict.fromkeys(scopes)) or SCOPES_DEFAULT)
    file.add(key)
    if as_json:
        _print_json({"key": text, "id": key.id, "name": key.name, "scopes": key.scopes})
        return
    click.echo(text)
    click.echo(
        f"id {key.id}, for {', '.join(key.scopes)}. Keep it: only its hash is in {file.path}",
        err=True,
    )


@keys.command("list")
@_keys_file
@_json
def list_(keys_file: Path | None, as_json: bool) -> None:
    """List the keys; never their text."""
    file = _file(keys_file)
    used = file.used()
    found = [
        {
            "id": key.id,
            "name": key.name,
            "scopes": key.scopes,
            "created": key.created,
            "last_used": _time(used.get(key.id)),
        }
        for key in file.read()
    ]
    if as_json:
        _print_json({"keys": found})
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(stderr=True)
    if not found:
        console.print("no keys yet; see qbtc keys new", highlight=False)
        return
    table = Table(box=box.SIMPLE)
    for name in ("id", "name", "scopes", "created", "last used"):
        table.add_column(name, overflow="fold")
    for row in found:
        table.add_row(
            str(row["id"]),
            escape(str(row["name"])),
            ", ".join(row["scopes"] or ()),
            str(row["created"]),
            str(row["last_used"] or "never"),
        )
    console.print(table)
    console.print(f"  in {escape(str(file.path))}", highlight=False, soft_wrap=True)


@keys.command()
@click.argument("identity", metavar="ID")
@_keys_file
def revoke(identity: str, keys_file: Path | None) -> None:
    """Revoke the key of an id; a running server notices within a second."""
    key = _file(keys_file).revoke(identity)
    click.echo(f"revoked {key.id}{f' ({key.name})' if key.name else ''}", err=True)


@click.group()
def apisix() -> None:
    """Make and check APISIX's files, from the policy of `qbtc serve` and its routes."""


_folder = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("deploy/apisix"),
    show_default=True,
    help="Where the files are.",
)
_policy = click.option(
    "--policy",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("deploy/policy.toml"),
    show_default=True,
    help="TOML file with a [serve] table.",
)
_upstream = click.option(
    "--upstream",
    metavar="HOST",
    default="gateway",
    show_default=True,
    help="The gateway as APISIX sees it.",
)


@apisix.command("write")
@_folder
@_policy
@_upstream
def write_apisix(folder: Path, policy: Path, upstream: str) -> None:
    """Write config.yaml and apisix.yaml."""
    from qbtc_gateway.apisix import write

    write(folder, _load_policy(policy), upstream=upstream)
    click.echo(f"wrote {folder}/config.yaml and apisix.yaml", err=True)


@apisix.command("check")
@_folder
@_policy
@_upstream
def check_apisix(folder: Path, policy: Path, upstream: str) -> None:
    """Check the files against the policy, the routes and the schema of the plugins in use."""
    from qbtc.errors import InputError
    from qbtc_gateway.apisix import check

    if wrong := check(folder, _load_policy(policy), upstream=upstream):
        error = InputError(
            f"{folder} holds {len(wrong)} errors; mend them, or run qbtc apisix write"
        )
        for line in wrong:
            error.add_note(f"  {line}")
        raise error
    click.echo(f"{folder}: both files are right", err=True)


def _load_policy(path: Path) -> Settings:
    """Read a policy as it is, whatever this machine's environment says."""
    from qbtc_gateway.settings import load_settings

    return load_settings(path, environment={})


def _file(path: Path | None) -> KeyFile:
    from qbtc_gateway.security.keys import KeyFile
    from qbtc_gateway.settings import default_keys_file

    # An empty name is the default, as in the settings.
    return KeyFile(path if path is not None and path.name else default_keys_file())


def _time(seconds: int | None) -> str | None:
    if seconds is None:
        return None
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, tz=UTC).isoformat(timespec="seconds")


def _print_json(value: Any) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
