"""The fits of a training: prior, logistic, MLP, MPS and LightGBM on the same rows."""

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from qbtc.config import MpsConfig, TrainConfig
from qbtc.core.features import N_FEATURES
from qbtc.core.training import train_logistic, train_mlp, train_mps
from qbtc.evaluate.baselines import GRID, has_lightgbm, lightgbm_fits, prior
from qbtc.evaluate.entrants import Door, Entrant, FitData, Tensors, rank

if TYPE_CHECKING:
    from qbtc.core.training import TrainRecipe

__all__ = ["Silent", "Watcher", "fit_all"]


class Watcher(Protocol):
    """Hears how far a training is; may draw it."""

    def stage(self, name: str, total: int) -> None:
        """Hear that a stage of ``total`` steps begins."""

    def step(self, name: str, done: int, note: str) -> None:
        """Hear that ``done`` steps of a stage are behind."""


class Silent:
    """A watcher that does nothing."""

    def stage(self, name: str, total: int) -> None:
        """Ignore it."""

    def step(self, name: str, done: int, note: str) -> None:
        """Ignore it."""


def fit_all(config: TrainConfig, data: FitData, door: Door, watcher: Watcher) -> dict[str, Entrant]:
    """Fit every model of the config, by name."""
    validation = data.split.validation
    predict = prior(data.split.train)
    entrants = [rank("prior", "prior", [predict], validation)]
    logistic = _fit_logistic(config, data, door, watcher)
    entrants.append(logistic)
    entrants.append(_fit_mlp(config, data, door, watcher))
    entrants.extend(_fit_mps(config, mps, logistic, data, door, watcher) for mps in config.mps)
    if config.lightgbm and has_lightgbm():
        entrants.append(_fit_lightgbm(config, data, watcher))
    return {entrant.name: entrant for entrant in entrants}


def _fit_logistic(config: TrainConfig, data: FitData, door: Door, watcher: Watcher) -> Entrant:
    watcher.stage("logistic", len(config.logistic.l2))
    started = time.perf_counter()
    tensors: list[Tensors] = []
    for done, l2 in enumerate(config.logistic.l2, 1):
        fit = train_logistic(data.u_train, data.split.train.y, l2=l2)
        tensors.append({"weight": fit["weight"], "bias": fit["bias"]})
        watcher.step("logistic", done, f"l2 {l2:g}")
    seconds = time.perf_counter() - started
    entrant = door.entrant("logistic", "logistic", tensors, seconds=seconds)
    entrant.settings = {"l2": config.logistic.l2[entrant.chosen]}
    return entrant


def _fit_mlp(config: TrainConfig, data: FitData, door: Door, watcher: Watcher) -> Entrant:
    mlp = config.mlp
    split = data.split
    recipe = _recipe(config, mlp.seeds, mlp.epochs, mlp.learning_rate, mlp.weight_decay)
    recipe |= {"ema": mlp.ema, "patience": mlp.patience}
    started = time.perf_counter()
    fits = train_mlp(
        (data.u_train, split.train.y),
        (data.u_validation, split.validation.y),
        hidden=mlp.hidden,
        recipe=recipe,
        progress=_progress(watcher, "mlp", mlp.seeds, mlp.epochs),
    )
    return door.networks("mlp", "mlp", fits, seconds=time.perf_counter() - started)


def _fit_mps(
    config: TrainConfig,
    mps: MpsConfig,
    logistic: Entrant,
    data: FitData,
    door: Door,
    watcher: Watcher,
) -> Entrant:
    name = f"mps{mps.bond}"
    split = data.split
    recipe = _recipe(config, mps.seeds, mps.epochs, mps.learning_rate, mps.decay)
    recipe |= {"ema": mps.ema, "patience": mps.patience}
    perm = np.arange(N_FEATURES, dtype=np.int32)
    warm = logistic.tensors[logistic.chosen]
    started = time.perf_counter()
    fits = train_mps(
        (data.u_train, split.train.y),
        (data.u_validation, split.validation.y),
        start=warm,  # type: ignore[arg-type]
        perm=perm,
        bond=mps.bond,
        noise=mps.noise,
        recipe=recipe,
        progress=_progress(watcher, name, mps.seeds, mps.epochs),
    )
    for fit in fits:
        fit["tensors"]["perm"] = perm  # type: ignore[assignment]
    return door.networks(name, "mps", fits, seconds=time.perf_counter() - started)


def _fit_lightgbm(config: TrainConfig, data: FitData, watcher: Watcher) -> Entrant:
    split = data.split
    started = time.perf_counter()
    predictors, settings, sizes = [], [], []
    watcher.stage("lightgbm", len(GRID))
    for setting, trees, predict in lightgbm_fits(split.train, split.validation, seed=config.seed):
        predictors.append(predict)
        settings.append({**setting, "trees": trees})
        sizes.append(trees * (2 * setting["num_leaves"] - 1))
        watcher.step("lightgbm", len(predictors), f"{trees} trees")
    seconds = time.perf_counter() - started
    entrant = rank("lightgbm", "lightgbm", predictors, split.validation, seconds=seconds)
    entrant.settings, entrant.n_params = settings[entrant.chosen], sizes[entrant.chosen]
    return entrant


def _recipe(
    config: TrainConfig, seeds: int, epochs: int, learning_rate: float, decay: float
) -> "TrainRecipe":
    return {
        "epochs": epochs,
        "batch_size": config.batch_size,
        "learning_rate": learning_rate,
        "decay": decay,
        "ema": 0.0,
        "patience": 1,
        "seeds": [config.seed + i for i in range(seeds)],
        "threads": _threads(),
    }


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _progress(
    watcher: Watcher, name: str, seeds: int, epochs: int
) -> Callable[[int, int, float, float], None]:
    """Add the epochs of all seeds up; early stopping makes the last step jump."""
    done = [0] * seeds
    watcher.stage(name, seeds * epochs)

    def progress(fit: int, epoch: int, _train: float, validation: float) -> None:
        done[fit] = epoch
        watcher.step(name, sum(done), f"seed {fit + 1}/{seeds} validation {validation:.4f}")

    return progress
