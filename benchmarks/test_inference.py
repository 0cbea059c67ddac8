"""One row to probabilities: our models against the strong ways to ask others.

Sketch (26 sites, 3 classes, f32): mps with bond 8 is 3.5k fused multiply-adds on 14 kB of
weights, 28 ns at AVX-512 peak, bound by seven dependent pair steps to about 100 ns; bond 16 is
14k on 56 kB, more than the L1 cache. 210 trees of depth 4 to 6 are a thousand dependent,
unpredictable branches: about 1 us. A Python call that takes an array and returns a tuple: 150 ns.
"""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import models, peers
from benchmarks.reporting import Report, Target
from benchmarks.timing import Burst, Samples, interleave, python_calls
from qbtc import _core
from qbtc.core.array import squash
from qbtc.core.signal_model import SignalModel

pytestmark = pytest.mark.benchmark

BLOCKS, CALLS = 300, 20
ROUNDS = 9
LIGHTGBM, LIGHTGBM_C = "LightGBM Booster.predict", "LightGBM single-row C API"
ONNX = "ONNX Runtime, same mlp"
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
    group = "inference of one row, no Python"

    def trees(name: str) -> tuple[str, Samples]:
        return f"{trained.trees.num_trees()} trees, tl2cgen ({name})", samples[name]

    for name, model in trained.ours.items():
        report.add(
            group,
            name,
            samples[name],
            trees(best),
            target=Target("ratio", 10.0) if name == "mps8" else None,
            note=f"{model.isa} kernel; every call waits for the one before, ours and the peer's."
            if name == "mps8"
            else "",
        )
    if best != "plain":
        report.add(
            group,
            "mps8, trees as tl2cgen compiles them by default",
            samples["mps8"],
            trees("plain"),
        )


def test_one_row_from_python(
    benchmark: BenchmarkFixture, report: Report, trained: models.Trained
) -> None:
    rows = list(trained.x[:ROWS])
    addresses, batches_of_one = [row.ctypes.data for row in rows], [row[None] for row in rows]
    trees, fast = trained.trees, peers.single_row(trained.trees)
    squashed = squash(np, trained.x[:ROWS], **trained.preprocess)
    onnx = peers.onnx_mlp(trained.mlp_tensors, squashed)
    bound = {name: [_bound(model, row) for row in rows] for name, model in trained.ours.items()}
    for i in range(20):
        fast.call(addresses[i])
        np.testing.assert_allclose(fast.out, trees.predict(batches_of_one[i])[0], atol=1e-9)
        onnx.call(onnx.rows[i])
        np.testing.assert_allclose(onnx.out[0], trained.ours["mlp"].infer(rows[i]), atol=1e-5)
        assert bound["mps8"][i].infer() == trained.ours["mps8"].infer(rows[i])

    infer = _core.SignalBuffer.infer
    contenders = {name: python_calls(infer, buffers) for name, buffers in bound.items()}
    contenders |= {
        "mps8, any array": python_calls(trained.ours["mps8"].infer, rows),
        LIGHTGBM_C: python_calls(fast.call, addresses),
        LIGHTGBM: python_calls(
            lambda row: trees.predict(row, num_threads=1), batches_of_one, blocks=20
        ),
        ONNX: python_calls(onnx.call, onnx.rows),
    }
    samples = interleave(benchmark, contenders, rounds=ROUNDS)
    group = "inference of one row, from Python"
    for name, peer, bound_ratio in (
        ("mps8", LIGHTGBM_C, 12.0),
        ("mps8", LIGHTGBM, 40.0),
        ("mps8", ONNX, 10.0),
        ("mps8, any array", LIGHTGBM_C, None),
        ("mps16", LIGHTGBM_C, None),
        ("logistic", LIGHTGBM_C, None),
        ("mlp", ONNX, None),
    ):
        report.add(
            group,
            f"{name} against {peer}",
            samples[name],
            (peer, samples[peer]),
            target=Target("ratio", bound_ratio) if bound_ratio else None,
            note="Every row lies prepared, ours in a SignalBuffer, the C peers' by address or"
            " bound. About 15 ns of each call is the loop."
            if bound_ratio == 12.0
            else "",
        )


def _bound(model: SignalModel, row: NDArray[np.float32]) -> _core.SignalBuffer:
    buffer = model.buffer()
    buffer.x[:] = row
    return buffer
