"""``python -m qbtc``: the command line."""

from qbtc.cli import main

main()
