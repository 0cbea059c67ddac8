"""Model files: written whole or not at all, refused with the file and the field named."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from qbtc.core.features import FEATURE_NAMES, schema_sha256
from qbtc.core.signal_model import (
    ModelMetadata,
    fit_guard,
    fit_preprocess,
    load_model,
    save_model,
)
from qbtc.errors import ModelError

METADATA = ModelMetadata(
    feature_names=FEATURE_NAMES,
    feature_schema_sha256=schema_sha256(),
    label_horizon_ns=1_000_000_000,
    label_threshold_bp=0.25,
    train_start_ns=1,
    train_end_ns=2,
    val_logloss=1.0,
    val_ece=0.01,
    baseline_logloss={"prior": 1.0986},
    created="2026-01-02T03:04:05Z",
    synthetic=True,
    instrument="BTCUSDT-PERP.BINANCE",
    seed=1,
    notes={"why": "a test"},
)


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(500, 26)).astype(np.float32)
    every = {"temperature": np.ones(1), "weight": np.ones((26, 3)), "bias": np.zeros(3)}
    return {**every, **fit_preprocess(x), **fit_guard(x)}


def test_a_saved_model_says_what_it_was_told(
    tensors: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "m.safetensors"
    save_model(path, kind="logistic", tensors=tensors, metadata=METADATA)
    model = load_model(path)
    assert model.metadata == METADATA
    assert model.kind == "logistic"
    assert [p.name for p in path.parent.iterdir()] == ["m.safetensors"]
    assert sum(model.infer(np.zeros(26, np.float32))) == pytest.approx(1.0)


def test_a_bad_model_leaves_the_old_file(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, kind="logistic", tensors=tensors, metadata=METADATA)
    before = path.read_bytes()
    bad = {**tensors, "bias": np.array([0.0, np.nan, 0.0])}
    with pytest.raises(ModelError, match="`bias`: not finite"):
        save_model(path, kind="logistic", tensors=bad, metadata=METADATA)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_refusals_name_the_file_and_the_field(
    tensors: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, kind="logistic", tensors=tensors, metadata=METADATA)
    good = path.read_bytes()
    with pytest.raises(ModelError, match=r"absent.safetensors: cannot read"):
        load_model(tmp_path / "absent.safetensors")
    with pytest.raises(ModelError, match="cannot read"):
        load_model(tmp_path)
    for content, field in [
        (b"", "header"),
        (b"\xff" * 64, "header"),
        (b"PK\x03\x04" + b"\0" * 100, "header"),
        (good[: len(good) // 2], "header"),
        (good.replace(schema_sha256().encode(), b"0" * 64), "feature_schema_sha256"),
        (good.replace(b'"version":"1"', b'"version":"9"'), "version"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ModelError, match=f"m.safetensors: .*`{field}`"):
            load_model(path)


def test_deeply_nested_or_lying_headers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    lying = {"mu": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}}
    for header in [json.dumps(lying).encode(), b"[" * 100_000, b'{"a":' * 10_000]:
        path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
        with pytest.raises(ModelError, match="`header`"):
            load_model(path)


def test_preprocess_survives_missing_constant_and_discrete_features() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2000, 26)).astype(np.float32)
    x[:, 0] = np.nan
    x[:, 1] = 7.0
    x[:, 2] = np.where(rng.random(2000) < 0.02, 5.0, 1.0)
    x[rng.random(2000) < 0.3, 3] = np.nan
    fit = fit_preprocess(x)
    assert all(np.isfinite(v).all() for v in fit.values())
    assert (fit["inv_scale"] > 0).all()
    assert fit["mu"][1] == 7.0
    assert fit["inv_scale"][4] == pytest.approx(1.6 / 3.29, rel=0.1)
    guard = fit_guard(x)
    assert all(np.isfinite(v).all() for v in guard.values())


def test_training_rows_are_checked() -> None:
    with pytest.raises(ModelError, match="at least 100 rows"):
        fit_preprocess(np.zeros((5, 26), np.float32))
    bad = np.zeros((200, 26), np.float32)
    bad[3, 9] = np.inf
    with pytest.raises(ModelError, match="feature 9 is infinite"):
        fit_guard(bad)


def test_an_unknown_instruction_set_is_refused(
    tensors: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, kind="logistic", tensors=tensors, metadata=METADATA)
    with pytest.raises(ModelError, match=r"isa.*`neon` is unknown"):
        load_model(path, isa="neon")
    monkeypatch.setenv("QBTC_ISA", "scalar")
    assert load_model(path).isa == "scalar"
