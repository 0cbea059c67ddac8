"""The command line: ``qbtc COMMAND``. Each command's code lives beside what it drives.

Exit codes: 0 done, 2 wrong input (config, data, model), 1 a run that failed, 130 interrupted.
Programs read JSON on stdout (``--json``); people read tables on stderr.
"""

import importlib
import sys
from importlib.metadata import entry_points

import click
from click.exceptions import NoArgsIsHelpError
from rich.console import Console
from rich.markup import escape

from qbtc.errors import QbtcError

__all__ = ["main"]


_COMMANDS = {
    "backtest": "qbtc.trading.commands:backtest",
    "config": "qbtc.trading.commands:config",
    "data": "qbtc.data.commands:data",
    "features": "qbtc.evaluate.commands:features",
    "report": "qbtc.trading.commands:report",
    "train": "qbtc.evaluate.commands:train",
}
"""Each command by module and name, imported when it is asked for: ``qbtc --help`` stays quick."""


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
    """Backtests, training and market data on the QBTC core."""


def main() -> None:
    """Run the command line and end the process with the documented exit code."""
    for entry in entry_points(group="qbtc.commands"):
        cli.add_command(entry.load())
    console = Console(stderr=True)
    try:
        cli.main(prog_name="qbtc", standalone_mode=False)
    except NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "qbtc"
        _print_error(console, f"{error.format_message()} See {command} --help.")
        sys.exit(2)
    except click.ClickException as error:
        _print_error(console, error.format_message())
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        console.print("interrupted")
        sys.exit(130)
    except QbtcError as error:
        _print_error(console, str(error))
        for note in getattr(error, "__notes__", []):
            console.print(note, highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code)


def _print_error(console: Console, message: str) -> None:
    """Print one line, whatever a strategy or a library wrote into its message."""
    line = " ".join(message.split())
    console.print(f"[bold red]error:[/] {escape(line)}", highlight=False, soft_wrap=True)
