"""The peers, each at its best: the fastest documented way to ask each for one row.

All answer the question of the signal models: 26 features in, three probabilities out.
"""

import ctypes as ct
import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightgbm as lgb
import numpy as np
import onnxruntime as ort
import tl2cgen
import treelite
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

from benchmarks.timing import Burst

type F32 = NDArray[np.float32]
type F64 = NDArray[np.float64]

N_FEATURES = 26
TREES_PER_CLASS = 70
"""Three classes: 210 trees."""
_HERE = Path(__file__).parent


def train_trees(x: F32, y: NDArray[np.int64]) -> lgb.Booster:
    """Fit 210 trees of up to 15 leaves (3 classes, 70 rounds) to rows (n, 26), labels 0..2."""
    params = {
        "objective": "multiclass",
        "num_class": 3,
        "num_leaves": 15,
        "learning_rate": 0.05,
        "num_threads": 2,
        "seed": 1,
        "deterministic": True,
        "verbosity": -1,
    }
    return lgb.train(params, lgb.Dataset(x, y), num_boost_round=TREES_PER_CLASS)


@dataclass(frozen=True)
class SingleRow:
    """LightGBM's fast single-row C interface, through ctypes, every pointer prepared."""

    call: Callable[[int], int]
    """Takes the address of a float32 row (26,)."""
    out: F64
    """The probabilities (3,) of the last call."""


def single_row(booster: lgb.Booster) -> SingleRow:
    """Prepare ``LGBM_BoosterPredictForMatSingleRowFast`` for one thread."""
    library = lgb.basic._LIB
    config, length = ct.c_void_p(), ct.c_int64()
    out = np.zeros(3)
    normal, every_tree, float32 = ct.c_int(0), ct.c_int(-1), ct.c_int(0)
    status = library.LGBM_BoosterPredictForMatSingleRowFastInit(
        booster._handle, normal, ct.c_int(0), every_tree, float32, ct.c_int32(N_FEATURES),
        b"num_threads=1", ct.byref(config),
    )  # fmt: skip
    if status != 0:
        raise RuntimeError("LightGBM refused its fast single-row configuration")
    predict = library.LGBM_BoosterPredictForMatSingleRowFast
    length_at, out_at = ct.byref(length), out.ctypes.data_as(ct.POINTER(ct.c_double))
    pointer = ct.c_void_p
    keep = (booster, config, length)  # the C side holds their addresses

    def call(address: int, _keep: object = keep) -> int:
        return predict(config, pointer(address), length_at, out_at)

    return SingleRow(call, out)


@dataclass(frozen=True)
class CompiledTrees:
    """The same trees as a C kernel, with the C loop that times it."""

    kernel: ct.c_void_p
    loop: ct.CDLL

    def predict(self, row: F32) -> F64:
        """Return the probabilities (3,) of one row (26,)."""
        x, out = _entries(row), np.zeros(3)
        self.loop.predict_row(self.kernel, _address(x), _address(out))
        return out

    def burst(self, rows: F32, *, blocks: int, calls: int) -> Burst:
        """Return a burst of blocks of calls over rows (n, 26); no Python in the loop."""
        x = _entries(rows)

        def run() -> F64:
            ns = np.empty(blocks)
            count, n_blocks, n_calls = ct.c_long(len(x)), ct.c_long(blocks), ct.c_long(calls)
            self.loop.time_blocks(self.kernel, _address(x), count, n_blocks, n_calls, _address(ns))
            return ns

        return run


def compile_trees(booster: lgb.Booster, folder: Path) -> dict[str, CompiledTrees]:
    """Compile the trees with tl2cgen and gcc -O3 -march=native, in the ways it offers.

    Returns
    -------
    dict of str to CompiledTrees
        ``plain`` thresholds and ``quantized`` ones (integer comparisons); the caller takes the
        faster.
    """
    model_file = folder / "trees.txt"
    booster.save_model(model_file)
    model = treelite.frontend.load_lightgbm_model(model_file)
    loop = folder / f"loops{sysconfig.get_config_var('SHLIB_SUFFIX')}"
    source = str(_HERE / "loops.c")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", source, "-o", str(loop)], check=True)
    kernels = {}
    for name, params in {"plain": {}, "quantized": {"quantize": 1}}.items():
        library = folder / f"{name}.so"
        tl2cgen.export_lib(
            model, "gcc", library, params=params, options=["-march=native"], nthread=2
        )
        address = ct.cast(ct.CDLL(str(library)).predict, ct.c_void_p)
        kernels[name] = CompiledTrees(address, ct.CDLL(str(loop)))
    return kernels


@dataclass(frozen=True)
class BoundSession:
    """An ONNX Runtime session with every row bound beforehand."""

    call: Callable[[object], None]
    """Takes one of ``rows``."""
    rows: list[object]
    out: F32
    """The probabilities (1, 3) of the last call."""


def onnx_mlp(tensors: dict[str, F32], rows: F32) -> BoundSession:
    """Prepare ONNX Runtime with our mlp's weights for one thread.

    Inputs and output are bound once (its I/O binding), a third faster than ``session.run``.

    Parameters
    ----------
    tensors
        ``w1 (26, h) b1 w2 (h, h) b2 w3 (h, 3) b3`` as in the model file.
    rows
        Squashed features (n, 26): the peer is spared the preprocessing that ours does.
    """
    nodes = [
        helper.make_node("Gemm", ["u", "w1", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["a1"]),
        helper.make_node("Gemm", ["a1", "w2", "b2"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["a2"]),
        helper.make_node("Gemm", ["a2", "w3", "b3"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("u", TensorProto.FLOAT, [1, N_FEATURES])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(tensors[n], n) for n in ("w1", "b1", "w2", "b2", "w3", "b3")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    out = np.zeros((1, 3), np.float32)

    def bind(row: F32) -> object:
        bound = session.io_binding()
        bound.bind_cpu_input("u", row[None])
        bound.bind_output("p", "cpu", 0, np.float32, out.shape, out.ctypes.data)
        return bound

    return BoundSession(session.run_with_iobinding, [bind(row) for row in rows], out)


def _entries(rows: F32) -> F64:
    """Rows as the kernel takes them: doubles, and missing values with low bits -1."""
    x = np.array(rows, dtype=np.float64, order="C")
    x.view(np.uint64)[np.isnan(x)] = 0x7FF8_0000_FFFF_FFFF
    return x


def _address(array: NDArray[np.generic]) -> ct.c_void_p:
    return ct.c_void_p(array.ctypes.data)
