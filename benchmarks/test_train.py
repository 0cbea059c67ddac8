"""Training: how long 50,000 rows take on two cores.

Sketch: a row costs about three forwards in f32, at bond 8 10,000 multiply-adds, at bond 16 four
times that; the compiler's 128-bit lanes give a few GFMA/s a core, so half a million row passes take
two seconds at bond 8. No peer: what matters is that people wait seconds, not minutes.
"""

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.reporting import Report
from benchmarks.timing import interleave, whole
from qbtc import _core

pytestmark = pytest.mark.benchmark

ROWS = 50_000
EPOCHS = 4
SEEDS = [1, 2]


def test_training_of_fifty_thousand_rows(benchmark: BenchmarkFixture, report: Report) -> None:
    rng = np.random.default_rng(0)
    u = rng.uniform(-0.9, 0.9, (ROWS, 26)).astype(np.float32)
    score = u[:, 0] + 2 * u[:, 1] * u[:, 2] + 0.7 * rng.normal(size=ROWS)
    y = np.digitize(score, [-0.5, 0.5]).astype(np.uint8)
    later = (u[:5000].copy(), y[:5000].copy())
    logistic = _core.train_logistic(u, y, l2=1e-3)
    recipe: _core.TrainRecipe = {
        "epochs": EPOCHS,
        "batch_size": 256,
        "learning_rate": 1e-3,
        "decay": 0.1,
        "ema": 0.995,
        "patience": EPOCHS,
        "seeds": SEEDS,
        "threads": 2,
    }

    def mps(bond: int) -> None:
        _core.train_mps(
            u,
            y,
            *later,
            weight=logistic["weight"],
            bias=logistic["bias"],
            perm=np.arange(26, dtype=np.int32),
            bond=bond,
            noise=0.05,
            recipe=recipe,
        )

    def mlp() -> None:
        _core.train_mlp(u, y, *later, hidden=32, recipe=recipe)

    passes = ROWS * EPOCHS * len(SEEDS)
    samples = interleave(
        benchmark,
        {
            "mps8": whole(lambda: mps(8), passes),
            "mps16": whole(lambda: mps(16), passes),
            "mlp": whole(mlp, passes),
            "logistic": whole(lambda: _core.train_logistic(u, y, l2=1e-3), ROWS),
        },
        rounds=3,
        warmup=0,
    )
    for name, sample in samples.items():
        alone = name == "logistic"
        fits = "to convergence, one thread" if alone else "12 epochs of two seeds, two threads"
        seconds = sample.p50 * 1e-9 * ROWS * (1 if alone else 12 * len(SEEDS))
        report.add(
            "training",
            f"{name}, row passes",
            sample,
            unit="M rows/s",
            note=f"50,000 rows, {fits}: {seconds:.1f} s.",
        )
