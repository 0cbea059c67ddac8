"""docs/workers.md keeps its word: each of its commands starts a worker that serves what it says."""

import asyncio
import re
import shlex
from pathlib import Path

import pytest
from tests.support.signal_files import write_signal_model
from tests.support.worker_process import REAL, worker

from qbtc.bus.admin import remove_topology

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "workers.md").read_text(encoding="utf-8")
MODEL = "models/mine.safetensors"
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_run(command: str, amqp_url: str, queue_prefix: str, tmp_path: Path) -> None:
    program, name, *options = shlex.split(command)
    assert (program, name) == ("qbtc", "worker")
    trading, language = MODEL in options, "--only" not in options
    if trading:
        (tmp_path / "models").mkdir()
        write_signal_model(tmp_path / MODEL)
        options[options.index(MODEL)] = str(tmp_path / MODEL)
    try:
        with worker(amqp_url, queue_prefix, *options, command=REAL) as started:
            queues = ["q_llm_requests"] * language + ["q_trading_requests"] * trading
            assert started.line["queues"] == [queue_prefix + queue for queue in queues]
            assert bool(started.line["models"]) == language
            assert started.line["signal_models"] == ["mine"] * trading
            assert started.stop() == 0
    finally:
        asyncio.run(remove_topology(amqp_url, queue_prefix))


def test_its_commands_are_found() -> None:
    assert len(COMMANDS) == 4
