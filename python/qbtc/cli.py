"""The command line: ``qbtc COMMAND``. Each command's code lives beside what it drives.

Exit codes: 0 done, 2 wrong input (config, data, model), 1 a run that failed, 130 interrupted.
Programs read JSON on stdout (``--json``); people read tables on stderr.
"""

import sys
from importlib.metadata import entry_points

import click
from rich.console import Console

from qbtc.errors import QbtcError

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qbtc")
def cli() -> None:
    """Backtests, training and market data on the QBTC core."""


def main() -> None:
    """Run the command line and end the process with the documented exit code."""
    for entry in entry_points(group="qbtc.commands"):
        cli.add_command(entry.load())
    console = Console(stderr=True)
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        console.print("interrupted")
        sys.exit(130)
    except QbtcError as error:
        console.print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        for note in getattr(error, "__notes__", []):
            console.print(note, highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
