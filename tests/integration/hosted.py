"""What the tests of the host share: a small synthetic market and strategies written on the spot."""

from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from qbtc.config import RunConfig, convert
from qbtc.core.features import FEATURE_NAMES, schema_sha256
from qbtc.core.signal_model import (
    N_FEATURES,
    ModelMetadata,
    fit_guard,
    fit_preprocess,
    save_model,
)
from qbtc.data.catalog import open_source
from qbtc.trading.host import Outcome, execute
from qbtc.trading.plan import make_plan

PERP = "BTCUSDT-PERP.BINANCE"
SPOT = "BTCUSDT.BINANCE"
STRATEGIES = Path(__file__).resolve().parents[2] / "strategies"
HOLD = {
    "path": f"{STRATEGIES}/buy_and_hold.py:BuyAndHold",
    "params": {"instrument": PERP, "size": 0.01},
}
FLAT = {"path": f"{STRATEGIES}/flat.py:Flat", "params": {"instrument": PERP}}
DURATION_S = 4.0


def synthetic(instrument: str = PERP, **options: Any) -> dict[str, Any]:
    return {
        "source": "synthetic",
        "instrument": instrument,
        "seed": 3,
        "duration_s": DURATION_S,
    } | options


def config(**options: Any) -> RunConfig:
    tree = {"name": "t", "data": [synthetic()], "strategies": [HOLD]} | options
    return convert(tree, RunConfig, "test")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("catalogs")


def play(folder: Path, cache: Path, **options: Any) -> Outcome:
    """Run a config made of ``options`` in ``folder`` without raising what stopped it."""
    return execute(
        make_plan(config(**options), folder),
        output_dir=folder / "runs",
        opener=partial(open_source, cache_dir=cache),
    )


def strategy(folder: Path, body: str, name: str = "mine") -> dict[str, Any]:
    """Write a strategy file whose class body is given, and return its config entry."""
    text = dedent(
        """
        from datetime import timedelta
        from nautilus_trader.model import BookType, InstrumentId, OrderSide, Price
        from qbtc.trading.strategy import QbtcStrategy, StrategyParams


        class MineParams(StrategyParams, frozen=True):
            instrument: str


        class Mine(QbtcStrategy[MineParams]):
        """
    )
    lines = dedent(body).strip("\n").splitlines()
    (folder / f"{name}.py").write_text(text + "\n".join(f"    {line}" for line in lines) + "\n")
    return {"path": f"{name}.py:Mine", "params": {"instrument": PERP}}


def model(path: Path, *, train_end_ns: int = 0, instrument: str = PERP, horizon_s: int = 1) -> Path:
    """Save a logistic model with random weights."""
    rng = np.random.default_rng(5)
    rows = np.ascontiguousarray(rng.normal(size=(1000, N_FEATURES)), np.float32)
    tensors = {
        "temperature": np.ones(1),
        **fit_preprocess(rows),
        **fit_guard(rows),
        "weight": rng.normal(0, 0.5, (N_FEATURES, 3)),
        "bias": np.zeros(3),
    }
    metadata = ModelMetadata(
        feature_names=FEATURE_NAMES,
        feature_schema_sha256=schema_sha256(),
        label_horizon_ns=horizon_s * 1_000_000_000,
        label_threshold_bp=0.25,
        train_start_ns=0,
        train_end_ns=train_end_ns,
        val_logloss=1.0,
        val_ece=0.0,
        baseline_logloss={},
        created="2026-01-01T00:00:00Z",
        synthetic=True,
        instrument=instrument,
        seed=1,
    )
    floats = {name: np.float32(values) for name, values in tensors.items()}
    save_model(path, kind="logistic", tensors=floats, metadata=metadata)
    return path
