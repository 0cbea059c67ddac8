"""Worker processes for tests."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

ROOT: Final = Path(__file__).resolve().parents[2]
SCRIPTED: Final = (sys.executable, "-m", "tests.support.scripted_worker")
REAL: Final = (sys.executable, "-m", "qbtc")
END_S: Final = 60.0


class Worker(msgspec.Struct):
    """A process that said it is ready."""

    process: subprocess.Popen[str]
    line: dict[str, Any]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        """Wait for its end; return its exit code."""
        return self.process.wait(END_S)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.ended()


@contextlib.contextmanager
def worker(
    url: str, prefix: str, *options: str, command: Sequence[str] = SCRIPTED, **environment: str
) -> Iterator[Worker]:
    """Start a worker and wait until it takes requests; it is killed at the end."""
    process = subprocess.Popen(
        [*command, "worker", "--json", "--amqp-url", url, "--prefix", prefix, *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONWARNINGS": "error"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.wait(END_S)
            assert process.stderr is not None
            raise AssertionError(process.stderr.read())
        yield Worker(process, json.loads(line))
    finally:
        process.kill()
        process.wait(END_S)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def wait_for(condition: Any, *, within_s: float = END_S) -> None:
    """Poll until something holds."""
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come to pass in time"
        time.sleep(0.01)
