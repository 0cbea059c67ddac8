"""``qbtc backtest`` as a user meets it: exit codes, one line of error, JSON, Ctrl-C."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

STRATEGIES = Path(__file__).resolve().parents[2] / "strategies"
RUN = f"""
name = "tiny"
seed = 3

[[data]]
source = "synthetic"
instrument = "BTCUSDT-PERP.BINANCE"
seed = 3
duration_s = 4.0

[[strategies]]
path = "{STRATEGIES}/buy_and_hold.py:BuyAndHold"
params = {{ instrument = "BTCUSDT-PERP.BINANCE", size = 0.01 }}

[[baselines]]
path = "{STRATEGIES}/flat.py:Flat"
params = {{ instrument = "BTCUSDT-PERP.BINANCE" }}
"""
MINE = """
import os, signal
from nautilus_trader.model import InstrumentId
from qbtc.trading.strategy import QbtcStrategy, StrategyParams

class MineParams(StrategyParams, frozen=True):
    instrument: str

class Mine(QbtcStrategy[MineParams]):
    def on_start(self):
        self.count = 0
        self.subscribe_quotes(InstrumentId.from_str(self.params.instrument))

    def on_quote(self, quote):
        self.count += 1
        if self.count == 50:
            WHAT
"""


def qbtc(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from qbtc.cli import main; main()", *args],
        cwd=folder,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


type Call = Callable[..., tuple[int, str, str]]


def write(folder: Path, text: str = RUN) -> str:
    (folder / "run.toml").write_text(text)
    return "run.toml"


def with_mine(folder: Path, what: str) -> str:
    (folder / "mine.py").write_text(dedent(MINE).replace("WHAT", what))
    return write(
        folder,
        RUN.replace(f"{STRATEGIES}/buy_and_hold.py:BuyAndHold", "mine.py:Mine").replace(
            ", size = 0.01", ""
        ),
    )


def test_json_on_stdout_a_summary_on_stderr_and_a_report(tmp_path: Path) -> None:
    done = qbtc(tmp_path, "backtest", write(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "complete"
    assert result["synthetic"] is True
    folder = tmp_path / "runs" / result["run_id"]
    assert (folder / "report.html").stat().st_size > 10_000
    assert result["fills_sha256"] in done.stderr
    assert f"runs/{result['run_id']}/report.html" in done.stderr
    assert "SYNTHETIC" in done.stderr

    again = json.loads(qbtc(tmp_path, "backtest", "run.toml", "--json").stdout)
    assert again["fills_sha256"] == result["fills_sha256"]
    assert again["performance"] == result["performance"]


def test_a_strategy_that_raises_ends_with_1_and_its_traceback(tmp_path: Path) -> None:
    config = with_mine(tmp_path, "raise ValueError('a bug [bold]here[/]')")
    done = qbtc(tmp_path, "backtest", config, "--json")
    assert done.returncode == 1
    assert "error: ValueError: a bug [bold]here[/] (mine.py:" in done.stderr
    assert "Traceback" in done.stderr
    result = json.loads(done.stdout)
    assert (result["status"], result["partial"]) == ("failed", True)


def test_ctrl_c_writes_partial_results_and_ends_with_130(tmp_path: Path) -> None:
    config = with_mine(tmp_path, "os.kill(os.getpid(), signal.SIGINT)")
    done = qbtc(tmp_path, "backtest", config, "--json")
    assert done.returncode == 130, done.stderr
    assert "partial results" in done.stderr
    result = json.loads(done.stdout)
    assert (result["status"], result["partial"]) == ("partial", True)
    assert 0 < result["events"] < sum(result["data"][0]["replayed"].values())
    assert result["span_ns"][1] < result["data"][0]["span_ns"][1]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("seed = 3\n\n", "sed = 3\n\n", "did you mean 'seed'"),
        ("buy_and_hold.py", "buy_and_hole.py", "no such strategy file; did you mean"),
        (":BuyAndHold", ":BuyAndFold", "did you mean 'BuyAndHold'"),
        ("size = 0.01", "sise = 0.01", "did you mean 'size'"),
        ("duration_s = 4.0", "duration_s = -4.0", "duration"),
        ('name = "tiny"', 'name = "tiny', "line 2"),
        ('name = "tiny"', 'name = "tiny"\nmode = "live"', "not available yet"),
    ],
)
def test_wrong_input_ends_with_2_and_one_line(
    tmp_path: Path, here: Call, old: str, new: str, says: str
) -> None:
    assert old in RUN
    code, _, err = here("backtest", write(tmp_path, RUN.replace(old, new)))
    assert code == 2
    assert says in " ".join(err.split())
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert not list((tmp_path / "runs").glob("*"))


def test_config_check_and_show(tmp_path: Path, here: Call) -> None:
    config = write(tmp_path)
    code, out, _ = here("config", "check", config)
    assert (code, "ok" in out) == (0, True)
    _, out, _ = here("config", "show", config)
    assert json.loads(out)["venue"]["taker_fee"] == "0.0005", "defaults are filled in"
    code, _, err = here(
        "config", "check", write(tmp_path, RUN.replace("[[baselines]]", "[[baseline]]"))
    )
    assert code == 2
    assert "did you mean 'baselines'" in err


@pytest.mark.parametrize("name", ["btcusdt-l2", "btcusdt-1m", "demo"])
def test_the_configs_of_the_repository_are_readable(here: Call, name: str) -> None:
    path = STRATEGIES.parent / "configs" / f"{name}.toml"
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    code, _, err = here("config", "show", str(path))
    assert code == 0, err


@pytest.mark.realdata
def test_a_year_of_real_bars_is_replayed_bar_by_bar(tmp_path: Path, real_data: Path) -> None:
    bars = (
        RUN.replace('source = "synthetic"', 'source = "klines"')
        .replace(
            "seed = 3\nduration_s = 4.0",
            f'path = "{real_data}/klines/BTCUSDT-1m-2023.parquet"',
        )
        .replace("BTCUSDT-PERP", "BTCUSDT")
    )
    done = qbtc(tmp_path, "backtest", write(tmp_path, bars), "--json")
    assert done.returncode == 0, done.stderr
    (data,) = json.loads(done.stdout)["data"]
    assert data["replayed"] == data["source_counts"]
    assert data["replayed"]["bars"] == 525_520
    assert data["synthetic"] is False
