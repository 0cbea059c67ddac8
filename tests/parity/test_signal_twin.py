"""The Rust models, their array twin and the float64 reference say the same."""

from pathlib import Path

import numpy as np
import pytest
import signal_models as models

from qbtc.core.array import ArrayModel, gpu_namespace
from qbtc.core.signal_model import init_mps_from_logistic, load_model

ISAS = ["scalar", "avx2", "avx512"]


def load(path: Path, isa: str):
    try:
        return load_model(path, isa=isa)
    except Exception as error:
        if "does not have" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", models.KINDS)
def test_rust_equals_its_array_twin_and_the_reference(name: str, isa: str, tmp_path: Path) -> None:
    tensors = models.write(tmp_path / "m.safetensors", name)
    model = load(tmp_path / "m.safetensors", isa)
    x = models.rows(2000, seed=3, missing=0.1)
    rust = model.infer_batch(x)
    twin = ArrayModel(models.kind(name), tensors, dtype="float32").infer(x)
    reference = ArrayModel(models.kind(name), tensors, dtype="float64").infer(x)
    assert twin.dtype == np.float32
    assert np.abs(rust - twin).max() <= 1e-5
    assert np.abs(twin - reference).max() <= 1e-6
    assert np.abs(rust - reference).max() <= 1e-6


@pytest.mark.parametrize("name", models.KINDS)
def test_one_row_and_a_batch_give_the_same_bits(name: str, tmp_path: Path) -> None:
    models.write(tmp_path / "m.safetensors", name)
    model = load_model(tmp_path / "m.safetensors")
    x = models.rows(5000, seed=4, missing=0.05)
    batch = model.infer_batch(x)
    assert np.array_equal(batch, model.infer_batch(x, threads=1))
    assert np.array_equal(batch, model.infer_batch(x, threads=3))
    single = np.array([model.infer(row) for row in x[:500]], np.float32)
    assert np.array_equal(batch[:500], single)


def test_a_buffer_infers_the_row_as_it_stands(tmp_path: Path) -> None:
    models.write(tmp_path / "m.safetensors", "mps8")
    model = load_model(tmp_path / "m.safetensors")
    buffer = model.buffer()
    x = buffer.x
    assert x.shape == (26,)
    assert np.isnan(x).all()
    assert buffer.infer() == model.infer(np.full(26, np.nan, np.float32))
    for row in models.rows(50, seed=12, missing=0.1):
        x[:] = row
        assert buffer.infer() == model.infer(row)
    del buffer
    x[:] = 0.0  # the array keeps the memory alive


@pytest.mark.parametrize("name", models.KINDS)
def test_explain_equals_26_ablated_forwards(name: str, tmp_path: Path) -> None:
    tensors = models.write(tmp_path / "m.safetensors", name)
    model = load_model(tmp_path / "m.safetensors")
    x = models.rows(50, seed=5, missing=0.1)
    reference = ArrayModel(models.kind(name), tensors).explain(x)
    rust = np.stack([model.explain(row) for row in x])
    assert np.abs(rust - reference).max() <= 1e-5 * max(1.0, np.abs(reference).max())
    assert np.all(rust[np.isnan(x)] == 0.0), "a missing feature is at its mean already"


@pytest.mark.parametrize("name", ["mps8", "mps16", "logistic"])
def test_a_missing_feature_is_integrated_out_exactly(name: str, tmp_path: Path) -> None:
    """The logits with NaN are the mean of the logits over any distribution with mean u_mean."""
    tensors = models.write(tmp_path / "m.safetensors", name)
    model = ArrayModel(models.kind(name), tensors)
    u = model.squash(models.rows(1, seed=6))
    missing = [2, 17, 25]
    rng = np.random.default_rng(0)
    # Two-point distributions with the right means, all 8 combinations with their weights.
    low = rng.uniform(-1, tensors["u_mean"][missing])
    high = rng.uniform(tensors["u_mean"][missing], 1)
    share = (tensors["u_mean"][missing] - low) / (high - low)
    expected = np.zeros(3)
    for pick in np.ndindex(2, 2, 2):
        point = u.copy()
        point[0, missing] = np.where(pick, high, low)
        expected += np.prod(np.where(pick, share, 1 - share)) * model.logits_from_u(point)[0]
    x = models.rows(1, seed=6)
    x[0, missing] = np.nan
    rust = load_model(tmp_path / "m.safetensors").core.logits(x[0])
    assert np.abs(np.array(rust) - expected).max() < 1e-5


@pytest.mark.parametrize("bond", [4, 8, 16])
def test_the_warm_start_equals_the_logistic_regression(bond: int) -> None:
    logistic = models.tensors("logistic", seed=2)
    perm = np.random.default_rng(5).permutation(26).astype(np.int32)
    weight, bias = logistic["weight"], logistic["bias"]
    start = init_mps_from_logistic(weight, bias, bond, perm, noise=0.05, seed=1)
    x = models.rows(500, seed=7)
    mps = ArrayModel("mps", {**logistic, **start}).infer(x)
    assert np.abs(mps - ArrayModel("logistic", logistic).infer(x)).max() < 1e-12
    single = ArrayModel("mps", {**logistic, **start}, dtype="float32").infer(x)
    assert np.abs(single - mps).max() < 1e-6


def test_the_guard_equals_its_twin_and_is_calibrated(tmp_path: Path) -> None:
    tensors = models.write(tmp_path / "m.safetensors", "logistic")
    model = load_model(tmp_path / "m.safetensors")
    twin = ArrayModel("logistic", tensors)
    x = models.rows(1000, seed=8, missing=0.05)
    x[0] = np.nan
    scores = np.array([model.ood(row) for row in x])
    assert np.abs(scores - twin.ood(x)).max() < 1e-4
    assert scores[0] == 1.0
    usual = models.rows(2000, seed=9, missing=0.02)
    assert abs(np.mean([model.ood(row) > 0.9 for row in usual]) - 0.1) < 0.04
    broken = usual.copy()
    broken[:, :13] = np.random.default_rng(1).permutation(broken[:, :13])
    far = usual + 20 * np.nanstd(usual, axis=0).astype(np.float32)
    assert np.mean([model.ood(row) for row in broken]) > 0.7
    assert np.mean([model.ood(row) for row in far]) > 0.99


@pytest.mark.gpu
@pytest.mark.parametrize("name", models.KINDS)
def test_the_gpu_twin_equals_the_reference(name: str) -> None:
    try:
        xp = gpu_namespace()
    except RuntimeError as error:
        pytest.skip(str(error))
    tensors = models.tensors(name)
    x = models.rows(4096, seed=10, missing=0.1)
    reference = ArrayModel(models.kind(name), tensors).infer(x)
    gpu = ArrayModel(models.kind(name), tensors, xp=xp, dtype="float32")
    assert np.abs(xp.asnumpy(gpu.infer(x)) - reference).max() < 1e-5
    assert (
        np.abs(
            xp.asnumpy(gpu.ood(x)) - ArrayModel("logistic", models.tensors("logistic")).ood(x)
        ).max()
        < 1e-4
    )
