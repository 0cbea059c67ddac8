"""The Rust trainers, with errors of ``qbtc.errors``; shapes and recipe in ``_core.pyi``."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qbtc import _core
from qbtc.errors import DataError

if TYPE_CHECKING:
    from qbtc._core import LogisticFit as LogisticFit
    from qbtc._core import NetworkFit as NetworkFit
    from qbtc._core import TrainRecipe as TrainRecipe

__all__ = ["Progress", "core_hash", "train_logistic", "train_mlp", "train_mps"]

type Progress = Callable[[int, int, float, float], object]
"""Called with fit, epoch, train loss, validation loss; what it raises stops the training."""
type Inputs = npt.NDArray[np.float32]
type Classes = npt.NDArray[np.uint8]


def core_hash() -> str:
    """Return the hash of the Rust sources in use."""
    return _core.build_info()["source_hash"]


def train_logistic(u: Inputs, y: Classes, *, l2: float) -> "LogisticFit":
    """Fit multinomial logistic regression on squashed features ``u`` (n, 26) to convergence."""
    try:
        return _core.train_logistic(u, y, l2=l2)
    except _core.CoreInputError as error:
        raise DataError(f"logistic: {error}") from None


def train_mlp(
    train: tuple[Inputs, Classes],
    validation: tuple[Inputs, Classes],
    *,
    hidden: int,
    recipe: "TrainRecipe",
    progress: Progress,
) -> "list[NetworkFit]":
    """Fit the multilayer perceptron once per seed."""
    try:
        return _core.train_mlp(*train, *validation, hidden=hidden, recipe=recipe, progress=progress)
    except _core.CoreInputError as error:
        raise DataError(f"mlp: {error}") from None


def train_mps(
    train: tuple[Inputs, Classes],
    validation: tuple[Inputs, Classes],
    *,
    start: "LogisticFit",
    perm: npt.NDArray[np.int32],
    bond: int,
    noise: float,
    recipe: "TrainRecipe",
    progress: Progress,
) -> "list[NetworkFit]":
    """Fit the matrix product state once per seed, from the logistic model ``start``."""
    try:
        return _core.train_mps(
            *train,
            *validation,
            weight=start["weight"],
            bias=start["bias"],
            perm=perm,
            bond=bond,
            noise=noise,
            recipe=recipe,
            progress=progress,
        )
    except _core.CoreInputError as error:
        raise DataError(f"mps{bond}: {error}") from None
