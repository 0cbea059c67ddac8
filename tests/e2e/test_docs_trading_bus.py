"""The commands of docs/trading-bus.md, as they stand there."""

import asyncio
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integration.hosted import model

from qbtc.bus.admin import remove_topology

ROOT = Path(__file__).resolve().parents[2]
TRAIN = "qbtc train configs/train-demo.toml"

type Call = Callable[..., tuple[int, str, str]]


def commands() -> list[str]:
    text = (ROOT / "docs" / "trading-bus.md").read_text("utf-8")
    lines = [
        line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()
    ]
    return [line for line in lines if line.startswith("qbtc ")]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Configs and strategies as in a checkout, and a model that nobody had to train."""
    for name in ("configs", "strategies"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "models").mkdir()
    model(tmp_path / "models" / "demo-mps8.safetensors", horizon_s=1)
    return tmp_path


def test_the_demo_trades_over_the_bus_as_it_stands(
    here: Call,
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    amqp_url: str,
    queue_prefix: str,
) -> None:
    monkeypatch.setenv("QBTC_AMQP_URL", amqp_url)
    monkeypatch.setenv("QBTC_BUS_PREFIX", queue_prefix)
    monkeypatch.setenv("QBTC_DATABASE_URL", f"sqlite:///{checkout}/records.db")
    assert TRAIN in commands()
    said = ""
    try:
        for command in commands():
            if command != TRAIN:
                code, out, err = here(*command.split()[1:])
                assert code == 0, err
                said += out + err
    finally:
        asyncio.run(remove_topology(amqp_url, queue_prefix))
    (folder,) = (checkout / "runs").glob("bus-demo-*")
    outside = json.loads((folder / "result.json").read_text())["outside"]
    assert outside["bus"]["problem"] is None
    assert outside["bus"]["relay"]["signals"]["sent"] > 0
    assert outside["bus"]["received"]["received"] > 0
    assert outside["records"]["counts"]["waiting"] == 0
    assert "ok (run 'bus-demo'" in said
    assert "signals heard" in said


@pytest.mark.parametrize(
    ("url", "says"),
    [("", "set QBTC_AMQP_URL"), ("amqp://guest:secret@127.0.0.1:1/", "cannot reach RabbitMQ at")],
)
def test_without_a_broker_the_demo_says_what_to_do(
    here: Call, checkout: Path, monkeypatch: pytest.MonkeyPatch, url: str, says: str
) -> None:
    monkeypatch.setenv("QBTC_AMQP_URL", url)
    monkeypatch.setenv("QBTC_DATABASE_URL", f"sqlite:///{checkout}/records.db")
    code, _, err = here("backtest", "configs/bus-demo.toml")
    assert code != 0
    assert says in err
    assert "secret" not in err
    assert "Traceback" not in err
    assert not list((checkout / "runs").glob("bus-demo-*"))
