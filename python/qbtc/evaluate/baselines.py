"""Rivals that are not shipped: the prior, and LightGBM where it is installed.

A budget is a number of fits, stated in the card; LightGBM's is a small grid with early stopping
on the validation slice, chosen there like every other model.
"""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from qbtc.evaluate.labels import CLASS_NAMES, LabelledRows

__all__ = ["has_lightgbm", "lightgbm_fits", "prior"]

type Predict = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float64]]

ROUNDS_MAX = 400
ROUNDS_PATIENCE = 30
GRID: tuple[dict[str, Any], ...] = (
    {"num_leaves": 7, "min_child_samples": 50, "learning_rate": 0.03},
    {"num_leaves": 15, "min_child_samples": 100, "learning_rate": 0.03},
    {"num_leaves": 31, "min_child_samples": 200, "learning_rate": 0.05},
)


def prior(train: LabelledRows) -> Predict:
    """Class frequencies of the training rows, whatever the features."""
    counts = np.bincount(train.y, minlength=len(CLASS_NAMES)).astype(np.float64)
    frequencies = counts / counts.sum()
    return lambda x: np.tile(frequencies, (len(x), 1))


def has_lightgbm() -> bool:
    """Say whether the package is installed."""
    return importlib.util.find_spec("lightgbm") is not None


def lightgbm_fits(
    train: LabelledRows, validation: LabelledRows, *, seed: int
) -> Iterator[tuple[dict[str, Any], int, Predict]]:
    """Fit each entry of the grid: its settings, the trees kept, its probabilities.

    Missing features go in as NaN, which LightGBM handles itself.
    """
    import lightgbm

    for settings in GRID:
        params = {
            "objective": "multiclass",
            "num_class": len(CLASS_NAMES),
            "feature_fraction": 0.6,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "lambda_l2": 5.0,
            "seed": seed % 2**31,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,  # its threads spin: slower than one on a busy machine at this size
            "verbose": -1,
            **settings,
        }
        data = lightgbm.Dataset(train.x, train.y)
        booster = lightgbm.train(
            params,
            data,
            ROUNDS_MAX,
            valid_sets=[lightgbm.Dataset(validation.x, validation.y, reference=data)],
            callbacks=[lightgbm.early_stopping(ROUNDS_PATIENCE, verbose=False)],
        )
        trees = booster.best_iteration * len(CLASS_NAMES)

        def predict(x: npt.NDArray[np.float32], booster: Any = booster) -> npt.NDArray[np.float64]:
            return np.asarray(booster.predict(x), np.float64)

        yield settings, trees, predict
