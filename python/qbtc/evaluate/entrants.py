"""What is fitted and what comes of it: fit data, entrants, and the door to model files.

An entrant is a model with all its candidates (seeds or settings); validation chooses one. Tensors
become predictions only through a model file: saved, loaded by the Rust core and applied to the raw
features, as a backtest would.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbtc.config import TrainConfig
from qbtc.core.array import squash
from qbtc.core.columns import EventColumns
from qbtc.core.features import FEATURE_NAMES, schema_sha256
from qbtc.core.signal_model import (
    ModelMetadata,
    fit_guard,
    fit_preprocess,
    load_model,
    save_model,
)
from qbtc.errors import DataError
from qbtc.evaluate.baselines import Predict
from qbtc.evaluate.labels import LabelledRows, horizon_ns
from qbtc.evaluate.metrics import log_losses
from qbtc.evaluate.split import Split

if TYPE_CHECKING:
    from qbtc.core.training import NetworkFit

__all__ = ["Door", "Entrant", "FitData", "Tensors", "prepare", "rank"]

type Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class FitData:
    """What every fit reads; centre, scale and guard are of the training slice.

    ``u_*`` are the squashed features of a slice, (n, 26) float32; ``absent`` (26,) marks features
    that the training slice never carries.
    """

    split: Split
    preprocess: Tensors
    guard: Tensors
    absent: npt.NDArray[np.bool_]
    u_train: npt.NDArray[np.float32]
    u_validation: npt.NDArray[np.float32]


@dataclass(kw_only=True, eq=False)
class Entrant:
    """A model that was fitted: all its candidates, and which of them validation chose."""

    name: str
    kind: str
    predictors: list[Predict]
    validation: list[float]
    tensors: list[Tensors] = field(default_factory=list)
    curves: list[list[tuple[float, float]]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    n_params: int = 0
    seconds: float = 0.0

    @property
    def chosen(self) -> int:
        """Candidate of the least validation loss."""
        return int(np.argmin(self.validation))


def prepare(split: Split) -> FitData:
    """Fit centre, scale and guard to the training slice, and squash what fits read.

    Raises
    ------
    DataError
        No feature is ever there.
    """
    x = split.train.x
    absent = np.asarray(np.isnan(x).all(axis=0))
    if absent.all():
        raise DataError("every feature is missing in the training slice; give quotes with sizes")
    preprocess: Tensors = dict(fit_preprocess(x))

    def squashed(rows: LabelledRows) -> npt.NDArray[np.float32]:
        u = squash(np, rows.x, **preprocess)
        # A feature the training slice never saw teaches nothing: hold it at its mean everywhere.
        u = np.where(absent, preprocess["u_mean"], u)
        return np.ascontiguousarray(np.clip(u, -1.0, 1.0), np.float32)

    return FitData(
        split=split,
        preprocess=preprocess,
        guard=dict(fit_guard(x)),
        absent=absent,
        u_train=squashed(split.train),
        u_validation=squashed(split.validation),
    )


def rank(
    name: str, kind: str, predictors: list[Predict], validation: LabelledRows, **more: Any
) -> Entrant:
    """Weigh candidates on the validation slice."""
    losses = [float(log_losses(p(validation.x), validation.y).mean()) for p in predictors]
    return Entrant(name=name, kind=kind, predictors=predictors, validation=losses, **more)


class Door:
    """Turns fitted tensors into model files and loads them back."""

    def __init__(
        self, config: TrainConfig, columns: EventColumns, data: FitData, scratch: Path
    ) -> None:
        self._config = config
        self._columns = columns
        self._data = data
        self._scratch = scratch

    def complete(self, tensors: Tensors, temperature: float = 1.0) -> Tensors:
        """Add what every kind carries, and silence the inputs of features never seen."""
        data = self._data
        whole = {**data.preprocess, **data.guard, **tensors}
        whole["temperature"] = np.array([temperature])
        # Their u was constant 0 in training, so this changes no output there; without it, the
        # noise of the start would speak when another source carries the feature.
        if "A" in whole:
            whole["A"] = whole["A"].copy()
            whole["A"][np.flatnonzero(data.absent[whole["perm"]]), 1] = 0.0
        if "w1" in whole:
            whole["w1"] = np.where(data.absent[:, None], 0.0, whole["w1"])
        return whole

    def predictor(self, kind: str, tensors: Tensors, temperature: float = 1.0) -> Predict:
        """Save, load, and apply by the Rust core."""
        path = self._scratch / "candidate.safetensors"
        metadata = self.metadata(0.0, 0.0, {}, "1970-01-01T00:00:00Z")
        whole = self.complete(tensors, temperature)
        save_model(path, kind=kind, tensors=whole, metadata=metadata)  # type: ignore[arg-type]
        model = load_model(path)
        return lambda x: model.infer_batch(x).astype(np.float64)

    def entrant(self, name: str, kind: str, tensors: list[Tensors], *, seconds: float) -> Entrant:
        """Weigh fitted tensors."""
        predictors = [self.predictor(kind, candidate) for candidate in tensors]
        n_params = sum(t.size for key, t in tensors[0].items() if key != "perm")
        return rank(
            name, kind, predictors, self._data.split.validation, tensors=tensors,
            n_params=n_params, seconds=seconds,
        )  # fmt: skip

    def networks(
        self, name: str, kind: str, fits: "list[NetworkFit]", *, seconds: float
    ) -> Entrant:
        """Weigh the fits of a network, one per seed."""
        entrant = self.entrant(name, kind, [dict(fit["tensors"]) for fit in fits], seconds=seconds)
        entrant.curves = [fit["curve"] for fit in fits]
        entrant.settings = {
            "seed": self._config.seed + entrant.chosen,
            "epoch": fits[entrant.chosen]["best_epoch"],
        }
        return entrant

    def metadata(
        self, loss: float, ece: float, baselines: dict[str, float], created: str
    ) -> ModelMetadata:
        """Say what the file says about itself."""
        config, split = self._config, self._data.split
        horizon = horizon_ns(config.label)
        return ModelMetadata(
            feature_names=FEATURE_NAMES,
            feature_schema_sha256=schema_sha256(),
            label_horizon_ns=horizon,
            label_threshold_bp=config.label.threshold_bp,
            train_start_ns=int(split.train.ts[0]),
            train_end_ns=split.seen_until(horizon),
            val_logloss=loss,
            val_ece=ece,
            baseline_logloss=baselines,
            created=created,
            synthetic=self._columns.synthetic,
            instrument=self._columns.instrument,
            seed=config.seed,
        )
