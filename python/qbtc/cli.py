"""The command line: ``qbtc COMMAND``. Each command's code lives beside what it drives.

Exit codes: 0 done, 2 wrong input (config, data, model), 1 a run that failed, 130 interrupted.
Programs read JSON on stdout (``--json``); people read tables on stderr.
"""

import errno
import importlib
import os
import sys
from importlib.metadata import entry_points

import click
from click.exceptions import NoArgsIsHelpError

from qbtc.errors import QbtcError

__all__ = ["main"]


_COMMANDS = {
    "backtest": "qbtc.trading.commands:backtest",
    "bus": "qbtc.bus.commands:bus",
    "chat": "qbtc.llm.terminal:chat",
    "config": "qbtc.trading.commands:config",
    "data": "qbtc.data.commands:data",
    "db": "qbtc.store.commands:db",
    "down": "qbtc.stack.commands:down",
    "eval": "qbtc.llm.evaluate.commands:evaluate",
    "features": "qbtc.evaluate.commands:features",
    "models": "qbtc.llm.commands:models",
    "report": "qbtc.trading.commands:report",
    "schemas": "qbtc.bus.schema_commands:schemas",
    "status": "qbtc.stack.commands:status",
    "train": "qbtc.evaluate.commands:train",
    "up": "qbtc.stack.commands:up",
    "worker": "qbtc.worker.commands:worker",
}
"""Each command by module and name, imported when asked for: none waits for what others import."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = _COMMANDS.get(cmd_name)
        if target is None:
            return super().get_command(ctx, cmd_name)
        module, name = target.split(":")
        command = getattr(importlib.import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{target} is not a command")
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qbtc")
def cli() -> None:
    """Backtests, training, market data and language models on the QBTC core."""


def main() -> None:
    """Run the command line and end the process with the documented exit code."""
    for entry in entry_points(group="qbtc.commands"):
        cli.add_command(entry.load())
    try:
        cli.main(prog_name="qbtc", standalone_mode=False)
    except NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "qbtc"
        _print_error(f"{error.format_message()} See {command} --help.")
        sys.exit(2)
    except click.ClickException as error:
        _print_error(error.format_message())
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except QbtcError as error:
        _print_error(str(error), *getattr(error, "__notes__", []))
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _print_error("no space left where output goes; free some, then try again")
        # What could not be written would be tried, and fail, once more at the end of the process.
        os._exit(1)


def _print_error(message: str, *notes: str) -> None:
    """Print one line, whatever a strategy or a library wrote into its message, and its notes."""
    # Imported where something went wrong, so that what goes right starts sooner.
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    line = " ".join(message.split())
    console.print(f"[bold red]error:[/] {escape(line)}", highlight=False, soft_wrap=True)
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
