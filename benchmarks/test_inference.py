"""One row to probabilities: our models against the strong ways to ask others.

Sketch (26 sites, 3 classes, f32): mps with bond 8 is 3.5k fused multiply-adds on 14 kB of
weights, 28 ns at AVX-512 peak, bound by seven dependent pair steps to about 100 ns; bond 16 is
14k on 56 kB, more than the L1 cache. 210 trees of depth 4 to 6 are a thousand dependent,
unpredictable branches: about 1 us. A Python call that takes an array and returns a tuple: 150 ns.
"""

from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import models, peers
from benchmarks.reporting import Report, Target
from benchmarks.timing import Burst, interleave, python_calls
from qbtc import _core
from qbtc.core.array import squash
from qbtc.core.signal_model import SignalModel

pytestmark = pytest.mark.benchmark

BLOCKS, CALLS = 300, 20
ROUNDS = 9
ROWS = 2000
"""Rows that the loops go round in: real values, and branches that are not learnt by heart."""


def test_one_row_without_python(
    benchmark: BenchmarkFixture, report: Report, trained: models.Trained, tmp_path: Path
) -> None:
    rows = trained.x[:ROWS]
    kernels = peers.compile_trees(trained.trees, tmp_path)
    expected = trained.trees.predict(rows[:50])
    for kernel in kernels.values():
        got = np.array([kernel.predict(row) for row in rows[:50]])
        np.testing.assert_allclose(got, expected, atol=1e-6)

    def ours(model: SignalModel) -> Burst:
        return lambda: _core.time_inference(model.core, rows, blocks=BLOCKS, block_calls=CALLS)

    contenders = {name: ours(model) for name, model in trained.ours.items()}
    contenders |= {n: k.burst(rows, blocks=BLOCKS, calls=CALLS) for n, k in kernels.items()}
    samples = interleave(benchmark, contenders, rounds=ROUNDS)
    best = min(kernels, key=lambda name: samples[name].p50)
    trees = (f"{trained.trees.num_trees()} trees, tl2cgen ({best})", samples[best])
    for name, model in trained.ours.items():
        report.add(
            "inference of one row, no Python",
            name,
            samples[name],
            trees,
            target=Target("ratio", 10.0) if name == "mps8" else None,
            note=f"{model.isa} kernel; every call waits for the one before, ours and the peer's.",
        )


def test_one_row_from_python(
    benchmark: BenchmarkFixture, report: Report, trained: models.Trained
) -> None:
    rows = list(trained.x[:ROWS])
    trees, fast = trained.trees, peers.single_row(trained.trees)
    onnx = peers.onnx_mlp(trained.mlp_tensors)
    squashed = list(squash(np, trained.x[:ROWS], **trained.preprocess))
    fast.call(rows[7].ctypes.data)
    np.testing.assert_allclose(fast.out, trees.predict(rows[7][None])[0], atol=1e-9)
    for row, u in zip(rows[:20], squashed, strict=False):
        np.testing.assert_allclose(onnx(u)[0], trained.ours["mlp"].infer(row), atol=1e-5)

    batch_of_one = [row[None] for row in rows]
    contenders = {
        name: python_calls(model.infer, rows, calls=CALLS) for name, model in trained.ours.items()
    }
    contenders |= {
        "LightGBM single-row C API": python_calls(fast.call, [row.ctypes.data for row in rows]),
        "LightGBM Booster.predict": python_calls(
            lambda row: trees.predict(row, num_threads=1), batch_of_one, blocks=20
        ),
        "ONNX Runtime, same mlp": python_calls(onnx, squashed),
    }
    samples = interleave(benchmark, contenders, rounds=ROUNDS)
    targets = {
        ("mps8", "LightGBM single-row C API"): 12.0,
        ("mps8", "LightGBM Booster.predict"): 40.0,
        ("mps8", "ONNX Runtime, same mlp"): 10.0,
    }
    group = "inference of one row, from Python"
    for (name, peer), bound in targets.items():
        report.add(
            group,
            f"{name} against {peer}",
            samples[name],
            (peer, samples[peer]),
            target=Target("ratio", bound),
        )
    for name in ("mps16", "logistic", "mlp"):
        peer = "ONNX Runtime, same mlp" if name == "mlp" else "LightGBM single-row C API"
        report.add(group, f"{name} against {peer}", samples[name], (peer, samples[peer]))
