"""Random but realistic model files for the signal tests."""

from pathlib import Path
from typing import Any

import numpy as np

from qbtc.core.features import FEATURE_NAMES, schema_sha256
from qbtc.core.signal_model import ModelMetadata, fit_guard, fit_preprocess, save_model

KINDS = ["mps8", "mps16", "logistic", "mlp32", "mlp100"]


def metadata(**changes: Any) -> ModelMetadata:
    values: dict[str, Any] = {
        "feature_names": FEATURE_NAMES,
        "feature_schema_sha256": schema_sha256(),
        "label_horizon_ns": 1_000_000_000,
        "label_threshold_bp": 0.25,
        "train_start_ns": 1_700_000_000_000_000_000,
        "train_end_ns": 1_700_000_600_000_000_000,
        "val_logloss": 1.04,
        "val_ece": 0.02,
        "baseline_logloss": {"prior": 1.09, "logistic": 1.05},
        "created": "2026-01-02T03:04:05Z",
        "synthetic": True,
        "instrument": "BTCUSDT-PERP.BINANCE",
        "seed": 7,
    }
    return ModelMetadata(**{**values, **changes})


def rows(n: int, seed: int = 0, missing: float = 0.0) -> np.ndarray:
    """Correlated, skewed, partly discrete features (n, 26) with NaN for missing."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(26) + 0.15 * np.random.default_rng(99).normal(size=(26, 26))
    x = rng.normal(size=(n, 26)) @ mixing
    x[:, 3] = np.exp(x[:, 3])
    x[:, 5] = np.round(x[:, 5])
    x = x * np.geomspace(1e-3, 1e3, 26) + np.linspace(-5, 5, 26)
    x[rng.random(x.shape) < missing] = np.nan
    return np.ascontiguousarray(x, np.float32)


def weights(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    if name == "logistic":
        return {"weight": rng.normal(0, 0.5, (26, 3)), "bias": rng.normal(0, 0.3, 3)}
    size = int(name[3:])
    if name.startswith("mlp"):
        shapes = {"w1": (26, size), "b1": (size,), "w2": (size, size), "b2": (size,)}
        shapes |= {"w3": (size, 3), "b3": (3,)}
        return {k: rng.normal(0, s[0] ** -0.5, s) for k, s in shapes.items()}
    scale = 0.15 / size**0.5
    return {
        "A": rng.normal(0, scale, (26, 2, size, size)),
        "W": rng.normal(0, 1 / size, (3, size, size)),
        "l": rng.normal(0, 1, size),
        "r": rng.normal(0, 1, size),
        "b": rng.normal(0, 0.3, 3),
        "perm": rng.permutation(26).astype(np.int32),
    }


def tensors(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """All tensors of a file, as they are stored."""
    train = rows(3000, seed=11, missing=0.02)
    every = {"temperature": np.array([1.3]), **fit_preprocess(train), **fit_guard(train)}
    every |= weights(name, seed)
    return {k: v if k == "perm" else np.float32(v) for k, v in every.items()}


def kind(name: str) -> str:
    return name.rstrip("0123456789")


def write(path: Path, name: str, seed: int = 0, **changes: Any) -> dict[str, np.ndarray]:
    """Save a random model and return its tensors."""
    values = {**tensors(name, seed), **changes}
    save_model(path, kind=kind(name), tensors=values, metadata=metadata())  # type: ignore[arg-type]
    return values
