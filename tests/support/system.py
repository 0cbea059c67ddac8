"""The whole system as processes: `qbtc serve`, `qbtc worker` and `qbtc db`, on real servers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parents[2]
QBTC = (sys.executable, "-m", "qbtc")
START_S_MAX = 120.0
STOP_S_MAX = 60.0


class Part(msgspec.Struct):
    """A process of the system that said it is ready."""

    process: "subprocess.Popen[str]"
    line: dict[str, Any]
    """What it said on stdout."""
    log: Path

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self.process.pid

    @property
    def url(self) -> str:
        """Address, of a gateway."""
        return str(self.line["page"]).rstrip("/")

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(STOP_S_MAX)

    def stop(self) -> int:
        """SIGTERM; return how it ended."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S_MAX)


class System:
    """Starts parts that find each other by the same variables.

    Parameters
    ----------
    folder
        Home of the parts, for logs too.
    variables
        ``QBTC_AMQP_URL``, ``QBTC_BUS_PREFIX``, ``QBTC_DATABASE_URL``, ``QBTC_REDIS_URL``.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self._folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("QBTC_")}
        self._environment = kept | {
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder),
            "XDG_CACHE_HOME": str(folder),
            "XDG_DATA_HOME": str(folder),
            **variables,
        }
        self._count = 0

    def run(self, *words: str) -> str:
        """Run a command of `qbtc` to its end; return what it printed."""
        done = subprocess.run(
            [*QBTC, *words],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=START_S_MAX,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def gateway(self, *options: str) -> contextlib.AbstractContextManager[Part]:
        """Run `qbtc serve` on a free port, answering through workers."""
        return self.part("serve", "--engine", "amqp", "--port", "0", "--json", *options)

    def worker(self, *options: str) -> contextlib.AbstractContextManager[Part]:
        """Run `qbtc worker` with the default model."""
        return self.part("worker", "--threads", "1", "--json", *options)

    @contextlib.contextmanager
    def part(self, *words: str) -> Iterator[Part]:
        """Run a command of `qbtc` that says one line of JSON when it is ready."""
        self._count += 1
        log = self._folder / f"{self._count:02d}-{words[0]}.log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                [*QBTC, *words],
                cwd=ROOT,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert process.stdout is not None
        late = threading.Timer(START_S_MAX, process.kill)
        late.start()
        try:
            said = process.stdout.readline()
            late.cancel()
            assert said, f"qbtc {words[0]} did not start: {log.read_text()[-3000:]}"
            yield Part(process, json.loads(said), log)
        finally:
            late.cancel()
            process.kill()
            process.wait(STOP_S_MAX)
            process.stdout.close()


def wait_for[T](look: Callable[[], T], *, within_s: float = 60.0, every_s: float = 0.1) -> T:
    """Look until there is something; return it, or what was seen last."""
    end = time.monotonic() + within_s
    while not (seen := look()) and time.monotonic() < end:
        time.sleep(every_s)
    return seen
