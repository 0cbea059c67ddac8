"""Our models and the peer's trees, trained on the same rows of the synthetic market.

Training is short (two passes): how well a model predicts does not change how fast it answers. All
of them see the same rows, so that none is timed on inputs it was not made for.
"""

from dataclasses import dataclass
from pathlib import Path

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from benchmarks import market, peers
from qbtc import _core
from qbtc.core.array import squash
from qbtc.core.features import FEATURE_NAMES, bulk_features, schema_sha256
from qbtc.core.signal_model import (
    ModelMetadata,
    SignalModel,
    fit_guard,
    fit_preprocess,
    load_model,
    save_model,
)

HIDDEN = 32
"""Width of the mlp."""


@dataclass(frozen=True)
class Trained:
    """Everything that answers the same question, and rows to ask it about."""

    x: NDArray[np.float32]
    """(n, 26) rows none of them was trained on."""
    ours: dict[str, SignalModel]
    """``mps8``, ``mps16``, ``logistic``, ``mlp``."""
    mlp_tensors: dict[str, NDArray[np.float32]]
    preprocess: dict[str, NDArray[np.float32]]
    trees: lgb.Booster


def train(folder: Path) -> Trained:
    """Train on twelve minutes of the synthetic market, model files below ``folder``."""
    columns = market.synthetic(900.0)
    bulk = bulk_features(columns)
    rows, y = bulk.X[bulk.warm], market.labels(bulk.ts, bulk.mid)[bulk.warm]
    first_validation, first_test = int(0.7 * len(y)), int(0.8 * len(y))
    preprocess = fit_preprocess(rows[:first_validation])
    common = {
        **preprocess,
        **fit_guard(rows[:first_validation]),
        "temperature": np.ones(1, np.float32),
    }
    metadata = ModelMetadata(
        feature_names=FEATURE_NAMES,
        feature_schema_sha256=schema_sha256(),
        label_horizon_ns=market.HORIZON_NS,
        label_threshold_bp=0.0,
        train_start_ns=int(columns.ts[0]),
        train_end_ns=int(columns.ts[-1]),
        val_logloss=1.0,
        val_ece=0.0,
        baseline_logloss={},
        created="2024-01-01T00:00:00Z",
        synthetic=True,
        instrument=columns.instrument,
        seed=market.SEED,
    )
    u, classes = squash(np, rows, **preprocess), y.astype(np.uint8)
    fitting, validation = slice(first_validation), slice(first_validation, first_test)
    data = (u[fitting], classes[fitting], u[validation], classes[validation])
    recipe: _core.TrainRecipe = {
        "epochs": 2,
        "batch_size": 256,
        "learning_rate": 1e-3,
        "decay": 0.1,
        "ema": 0.99,
        "patience": 2,
        "seeds": [market.SEED],
        "threads": 1,
    }
    logistic = _core.train_logistic(*data[:2], l2=0.01)
    warm = {"weight": logistic["weight"], "bias": logistic["bias"]}
    (mlp,) = _core.train_mlp(*data, hidden=HIDDEN, recipe=recipe)
    tensors = {"logistic": warm, "mlp": mlp["tensors"]}
    order = np.arange(len(FEATURE_NAMES), dtype=np.int32)
    for bond in (8, 16):
        (fit,) = _core.train_mps(*data, **warm, perm=order, bond=bond, noise=0.05, recipe=recipe)
        tensors[f"mps{bond}"] = {**fit["tensors"], "perm": order}
    ours = {}
    for name, own in tensors.items():
        path, kind = folder / f"{name}.safetensors", name.rstrip("0123456789")
        save_model(path, kind=kind, tensors={**common, **own}, metadata=metadata)
        ours[name] = load_model(path)
    return Trained(
        x=np.ascontiguousarray(rows[first_test:]),
        ours={name: ours[name] for name in ("mps8", "mps16", "logistic", "mlp")},
        mlp_tensors=mlp["tensors"],
        preprocess=preprocess,
        trees=peers.train_trees(rows[fitting], y[fitting]),
    )
