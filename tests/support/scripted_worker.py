"""``qbtc worker`` with a scripted engine: ``python -m tests.support.scripted_worker``.

It says ``WORDS``; with ``QBTC_TEST_HANG_AFTER=n`` it falls silent after n of them.
"""

import functools
import os
from typing import Final
from unittest import mock

from tests.support.scripted_engine import FOREVER, ScriptedEngine, Step, end, text

from qbtc import cli
from qbtc.worker import serve

WORDS: Final = tuple(f"word{number} " for number in range(40))


async def _load(_: serve.WorkerSettings) -> ScriptedEngine:
    hang_after = os.environ.get("QBTC_TEST_HANG_AFTER")
    script: list[Step] = [*text(*WORDS), end()]
    if hang_after is not None:
        script = [*text(*WORDS[: int(hang_after)]), FOREVER]
    return ScriptedEngine(script)


if __name__ == "__main__":
    with mock.patch.object(serve, "run", functools.partial(serve.run, load=_load)):
        cli.main()
