"""The same config, data and seed give the same fills: again, elsewhere, on other threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hosted import PERP, STRATEGIES, cache, model, play, strategy, synthetic

from qbtc.trading.result import RunResult

__all__ = ["cache"]  # a fixture

MAKER = {
    "path": f"{STRATEGIES}/imbalance_maker.py:ImbalanceMaker",
    "params": {
        "instrument": PERP,
        "size": 0.01,
        "position_max": 0.05,
        "half_spread_bp": 0.05,
        "ood_max": 1.0,
        "entropy_max": 1.1,
    },
}
OPTIONS = {
    "data": [synthetic(duration_s=100.0)],
    "strategies": [MAKER, MAKER | {"params": MAKER["params"] | {"half_spread_bp": 0.02}}],
    "signals": [{"instrument": PERP, "model": "m.safetensors"}],
}
AGAIN = """
import sys
from pathlib import Path
from hosted import play
from test_host_repeat import OPTIONS
print(play(Path(sys.argv[1]), Path(sys.argv[2]), **OPTIONS).result.fills_sha256)
"""


def here(tmp_path: Path, cache: Path) -> RunResult:
    model(tmp_path / "m.safetensors")
    outcome = play(tmp_path, cache, **OPTIONS)
    outcome.raise_if_failed()
    return outcome.result


def elsewhere(tmp_path: Path, cache: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, str(tmp_path), str(cache)],
        cwd=Path(__file__).parent,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    return done.stdout.strip()


def test_twice_in_one_process(tmp_path: Path, cache: Path) -> None:
    first = here(tmp_path, cache)
    assert first.performance.fills > 10
    second = here(tmp_path, cache)
    assert first.fills_sha256 == second.fills_sha256
    assert first.performance == second.performance
    assert first.run_id != second.run_id


def test_in_another_process(tmp_path: Path, cache: Path) -> None:
    there = here(tmp_path, cache).fills_sha256
    assert elsewhere(tmp_path, cache, PYTHONHASHSEED="7") == there


@pytest.mark.parametrize("threads", ["1", "3"])
def test_with_another_number_of_threads(tmp_path: Path, cache: Path, threads: str) -> None:
    names = "RAYON_NUM_THREADS", "OMP_NUM_THREADS", "TOKIO_WORKER_THREADS", "OPENBLAS_NUM_THREADS"
    first = here(tmp_path, cache).fills_sha256
    assert elsewhere(tmp_path, cache, **dict.fromkeys(names, threads)) == first


def test_another_seed_or_cost_is_another_run(tmp_path: Path, cache: Path) -> None:
    same = here(tmp_path, cache)
    dearer = play(tmp_path, cache, **OPTIONS, venue={"maker_fee": "0.0003"})
    assert dearer.result.fills_sha256 != same.fills_sha256
    assert dearer.result.config_sha256 != same.config_sha256


ORDER = """
def on_start(self):
    self.id = InstrumentId.from_str(self.params.instrument)
    self.subscribe_quotes(self.id)
    self.note("start")
    self.heard = False

def note(self, what):
    with open(PLACE, "a") as file:
        file.write(f"{what} {self.strategy_id}\\n")

def on_quote(self, quote):
    if not self.heard:
        self.heard = True
        self.note("quote")

def on_stop(self): self.note("stop")
"""


@pytest.mark.parametrize("attempt", range(4))
def test_strategies_hear_events_in_the_order_of_the_config(
    tmp_path: Path, cache: Path, attempt: int
) -> None:
    place = tmp_path / "order"
    entry = strategy(tmp_path, ORDER.replace("PLACE", repr(str(place))))
    play(tmp_path, cache, strategies=[entry] * 5).raise_if_failed()
    names = [f"Mine-{number:03d}" for number in range(1, 6)]
    wanted = [f"{what} {name}" for what in ("start", "quote", "stop") for name in names]
    assert place.read_text().splitlines() == wanted
