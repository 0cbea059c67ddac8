"""Signal model files for tests that need one that loads."""

from pathlib import Path

import numpy as np

from qbtc.core.features import FEATURE_NAMES, schema_sha256
from qbtc.core.signal_model import ModelMetadata, fit_guard, fit_preprocess, save_model

HORIZON_NS = 1_000_000_000


def write_signal_model(path: Path, *, bias: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
    """Write a logistic regression with small random weights and the given leaning."""
    rng = np.random.default_rng(5)
    train = rng.normal(size=(500, 26)).astype(np.float32)
    tensors = {
        "temperature": np.ones(1, np.float32),
        "weight": rng.normal(0, 0.05, (26, 3)).astype(np.float32),
        "bias": np.float32(bias),
        **fit_preprocess(train),
        **fit_guard(train),
    }
    metadata = ModelMetadata(
        feature_names=FEATURE_NAMES,
        feature_schema_sha256=schema_sha256(),
        label_horizon_ns=HORIZON_NS,
        label_threshold_bp=0.25,
        train_start_ns=1,
        train_end_ns=2,
        val_logloss=1.0,
        val_ece=0.01,
        baseline_logloss={"prior": 1.1},
        created="2026-01-02T03:04:05Z",
        synthetic=True,
        instrument="BTCUSDT.BINANCE",
        seed=7,
    )
    save_model(path, kind="logistic", tensors=tensors, metadata=metadata)
