"""A process that records orders and says which are safe, until it is killed: see ``records``."""

import logging
import sys
from concurrent.futures import wait
from pathlib import Path

from tests.faults.records import order

from qbtc.store.recorder import Recorder


def main(url: str, spool: str, name: str) -> None:
    """Record orders as fast as they become safe; print each one's name then."""
    logging.disable(logging.CRITICAL)  # that the database is away is the point
    recorder = Recorder(url, spool=Path(spool))
    number = 0
    while True:
        names = [f"{name}-{number + k}" for k in range(20)]
        number += len(names)
        futures = {one: [recorder.put_durable(row) for row in order(one)] for one in names}
        for one, parts in futures.items():
            wait(parts)
            for part in parts:
                part.result()
            print(one, flush=True)  # noqa: T201 - the harness reads it


if __name__ == "__main__":
    main(*sys.argv[1:])
