"""``qbtc train``: one data set to a file per model, each with its card.

The walk: events → features at every quote (:mod:`qbtc.core.features`) → labels
(:mod:`qbtc.evaluate.labels`) → time split with purge (:mod:`qbtc.evaluate.split`) → centre and
scale from the training slice → fits (:mod:`qbtc.core.training`) → choice on validation →
temperature on the calibration slice → one look at test → files (:mod:`qbtc.core.signal_model`) and
cards (:mod:`qbtc.evaluate.card`).

Every number in a card is of the file itself: the fitted tensors are saved, loaded by the Rust core
and applied to the raw features, as a backtest would.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from qbtc.config import DataSource, MpsConfig, TrainConfig
from qbtc.core.array import squash
from qbtc.core.columns import EventColumns
from qbtc.core.features import FEATURE_NAMES, N_FEATURES, bulk_features, schema_sha256
from qbtc.core.signal_model import (
    ModelMetadata,
    fit_guard,
    fit_preprocess,
    load_model,
    save_model,
)
from qbtc.core.training import core_hash, train_logistic, train_mlp, train_mps
from qbtc.errors import DataError
from qbtc.evaluate.baselines import Predict, has_lightgbm, lightgbm_fits, prior
from qbtc.evaluate.card import Card, Outcome, SliceFacts, SourceFacts, judge, revision, write_card
from qbtc.evaluate.labels import CLASS_NAMES, LabelledRows, horizon_ns, label_rows
from qbtc.evaluate.metrics import (
    apply_temperature,
    block_bootstrap,
    fit_temperature,
    log_losses,
    reliability,
    score,
)
from qbtc.evaluate.split import Split, split_rows

if TYPE_CHECKING:
    from qbtc.core.training import NetworkFit, TrainRecipe

__all__ = ["Trained", "Watcher", "train", "train_columns"]

BLOCK_MIN_NS = 5_000_000_000
BLOCK_HORIZONS = 5
"""Blocks of the bootstrap are the longer of 5 s and 5 horizons."""

type Tensors = dict[str, npt.NDArray[Any]]


class Watcher(Protocol):
    """Hears how far a training is; may draw it."""

    def stage(self, name: str, total: int) -> None:
        """Hear that a stage of ``total`` steps begins."""

    def step(self, name: str, done: int, note: str) -> None:
        """Hear that ``done`` steps of a stage are behind."""


class _Silent:
    def stage(self, name: str, total: int) -> None: ...

    def step(self, name: str, done: int, note: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training left: one card per model file, by name (``mps8``, ``logistic``, ...)."""

    cards: dict[str, Card]
    files: dict[str, Path]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Data:
    """What every fit reads. ``u_*`` are the squashed features of a slice, (n, 26) float32."""

    split: Split
    preprocess: Tensors
    guard: Tensors
    absent: npt.NDArray[np.bool_]
    u_train: npt.NDArray[np.float32]
    u_validation: npt.NDArray[np.float32]


@dataclass(kw_only=True, eq=False)
class _Entrant:
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
        return int(np.argmin(self.validation))


def train(
    config: TrainConfig,
    base: Path,
    *,
    cache_dir: Path | None = None,
    watcher: Watcher | None = None,
) -> Trained:
    """Train from a config.

    Parameters
    ----------
    config
        What to train.
    base
        Folder that relative data paths are against; models go to ``config.output_dir`` below the
        working directory.
    cache_dir
        Where imported catalogs are kept.
    watcher
        Hears the progress.

    Raises
    ------
    ConfigError, DataError, ModelError
        One line each; nothing has been written then, nor after Ctrl-C.
    """
    from qbtc.data.catalog import open_source

    watcher = watcher or _Silent()
    watcher.stage("data", len(config.data))
    columns: list[EventColumns] = []
    sources: list[SourceFacts] = []
    for source in config.data:
        data = open_source(source, base, cache_dir=cache_dir)
        columns.append(data.columns())
        sources.append(_source_facts(source, data.manifest))
        watcher.step("data", len(columns), data.instrument_id)
    lead = columns[1] if len(columns) > 1 else None
    return train_columns(
        config, columns[0], lead=lead, sources=sources, output_dir=Path.cwd() / config.output_dir,
        watcher=watcher,
    )  # fmt: skip


def train_columns(
    config: TrainConfig,
    columns: EventColumns,
    *,
    lead: EventColumns | None,
    sources: Sequence[SourceFacts],
    output_dir: Path,
    watcher: Watcher | None = None,
    created: datetime | None = None,
) -> Trained:
    """Train from events in memory; otherwise as :func:`train`."""
    watcher = watcher or _Silent()
    watcher.stage("features", 1)
    merged = columns if lead is None else columns.with_lead(lead)
    rows = label_rows(bulk_features(merged), config.label, sample_every=config.sample_every)
    data = _prepare(split_rows(rows, config.split))
    watcher.step("features", 1, f"{len(rows)} rows")

    with tempfile.TemporaryDirectory(prefix="qbtc-train-") as scratch:
        door = _Door(config, columns, data, Path(scratch))
        entrants = _fit_all(config, data, door, watcher)
        outcomes = _judge_all(config, data, entrants, door)
    common = _common_card(config, columns, lead, sources, data, outcomes, created)
    return _write(config, entrants, outcomes, common, door, output_dir)


def _prepare(split: Split) -> _Data:
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

    return _Data(
        split=split,
        preprocess=preprocess,
        guard=dict(fit_guard(x)),
        absent=absent,
        u_train=squashed(split.train),
        u_validation=squashed(split.validation),
    )


# ----------------------------------------------------------------------------- fits


def _fit_all(
    config: TrainConfig, data: _Data, door: "_Door", watcher: Watcher
) -> dict[str, _Entrant]:
    validation = data.split.validation
    predict = prior(data.split.train)
    entrants = [_entrant("prior", "prior", [predict], validation)]
    logistic = _fit_logistic(config, data, door, watcher)
    entrants.append(logistic)
    entrants.append(_fit_mlp(config, data, door, watcher))
    entrants.extend(_fit_mps(config, mps, logistic, data, door, watcher) for mps in config.mps)
    if config.lightgbm and has_lightgbm():
        entrants.append(_fit_lightgbm(config, data, watcher))
    return {entrant.name: entrant for entrant in entrants}


def _entrant(
    name: str, kind: str, predictors: list[Predict], validation: LabelledRows, **more: Any
) -> _Entrant:
    losses = [float(log_losses(p(validation.x), validation.y).mean()) for p in predictors]
    return _Entrant(name=name, kind=kind, predictors=predictors, validation=losses, **more)


def _fit_logistic(config: TrainConfig, data: _Data, door: "_Door", watcher: Watcher) -> _Entrant:
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


def _fit_mlp(config: TrainConfig, data: _Data, door: "_Door", watcher: Watcher) -> _Entrant:
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
    logistic: _Entrant,
    data: _Data,
    door: "_Door",
    watcher: Watcher,
) -> _Entrant:
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


def _fit_lightgbm(config: TrainConfig, data: _Data, watcher: Watcher) -> _Entrant:
    split = data.split
    started = time.perf_counter()
    predictors, settings, sizes = [], [], []
    watcher.stage("lightgbm", 3)
    for setting, trees, predict in lightgbm_fits(split.train, split.validation, seed=config.seed):
        predictors.append(predict)
        settings.append({**setting, "trees": trees})
        sizes.append(trees * (2 * setting["num_leaves"] - 1))
        watcher.step("lightgbm", len(predictors), f"{trees} trees")
    seconds = time.perf_counter() - started
    entrant = _entrant("lightgbm", "lightgbm", predictors, split.validation, seconds=seconds)
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


class _Door:
    """Turns fitted tensors into model files and loads them back."""

    def __init__(
        self, config: TrainConfig, columns: EventColumns, data: _Data, scratch: Path
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

    def entrant(self, name: str, kind: str, tensors: list[Tensors], *, seconds: float) -> _Entrant:
        predictors = [self.predictor(kind, candidate) for candidate in tensors]
        n_params = sum(t.size for key, t in tensors[0].items() if key != "perm")
        return _entrant(
            name, kind, predictors, self._data.split.validation, tensors=tensors,
            n_params=n_params, seconds=seconds,
        )  # fmt: skip

    def networks(
        self, name: str, kind: str, fits: "list[NetworkFit]", *, seconds: float
    ) -> _Entrant:
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


# ----------------------------------------------------------------------------- judgement


def _judge_all(
    config: TrainConfig, data: _Data, entrants: dict[str, _Entrant], door: _Door
) -> dict[str, Outcome]:
    """Fit temperatures on calibration, then look at test: once, every model, the same rows."""
    split = data.split
    block_ns = max(BLOCK_MIN_NS, BLOCK_HORIZONS * horizon_ns(config.label))
    outcomes: dict[str, Outcome] = {}
    test_losses: dict[str, npt.NDArray[np.float64]] = {}
    for name, entrant in entrants.items():
        calibration = split.calibration
        # The prior too: its class frequencies may be of another regime, like any model's.
        temperatures = [
            fit_temperature(predict(calibration.x), calibration.y) for predict in entrant.predictors
        ]
        p_test = [
            apply_temperature(predict(split.test.x), t)
            for predict, t in zip(entrant.predictors, temperatures, strict=True)
        ]
        best = entrant.chosen
        losses = [float(log_losses(p, split.test.y).mean()) for p in p_test]
        validation = score(
            apply_temperature(entrant.predictors[best](split.validation.x), temperatures[best]),
            split.validation.y,
        )
        test_losses[name] = log_losses(p_test[best], split.test.y)
        bins = reliability(p_test[best], split.test.y)
        outcomes[name] = Outcome(
            name=name,
            kind=entrant.kind,
            fits=len(entrant.predictors),
            settings=entrant.settings,
            n_params=entrant.n_params,
            seconds=round(entrant.seconds, 3),
            temperature=temperatures[best],
            validation_raw=entrant.validation[best],
            validation=validation,
            test=score(p_test[best], split.test.y),
            test_losses=losses,
            curves=entrant.curves,
            reliability=list(
                zip(
                    bins.confidence.tolist(),
                    bins.accuracy.tolist(),
                    bins.rows.tolist(),
                    strict=True,
                )
            ),
        )
    for outcome in outcomes.values():
        for rival in ("prior", "logistic"):
            difference = test_losses[outcome.name] - test_losses[rival]
            rng = np.random.default_rng(config.seed)
            outcome.against[rival] = block_bootstrap(difference, split.test.ts, block_ns, rng)
    ranking = sorted(outcomes, key=lambda name: outcomes[name].test.log_loss)
    winner, second = ranking[0], ranking[1]
    rng = np.random.default_rng(config.seed)
    lead = test_losses[winner] - test_losses[second]
    outcomes[winner].against[second] = block_bootstrap(lead, split.test.ts, block_ns, rng)
    return outcomes


# ----------------------------------------------------------------------------- files


def _common_card(
    config: TrainConfig,
    columns: EventColumns,
    lead: EventColumns | None,
    sources: Sequence[SourceFacts],
    data: _Data,
    outcomes: dict[str, Outcome],
    created: datetime | None,
) -> Card:
    horizon = horizon_ns(config.label)
    missing = np.isnan(data.split.train.x).mean(axis=0)
    slices = {
        name: SliceFacts(
            rows=len(rows),
            start_ns=int(rows.ts[0]),
            end_ns=int(rows.ts[-1]),
            classes=dict(zip(CLASS_NAMES, np.bincount(rows.y, minlength=3).tolist(), strict=True)),
        )
        for name, rows in data.split.slices().items()
    }
    return Card(
        model="",
        file="",
        weights_sha256="",
        created=(created or datetime.now(UTC)).isoformat(timespec="seconds"),
        revision=revision(),
        core=core_hash(),
        instrument=columns.instrument,
        lead=lead.instrument if lead is not None else None,
        synthetic=columns.synthetic,
        sources=list(sources),
        label_horizon_ns=horizon,
        label_threshold_bp=config.label.threshold_bp,
        purge_ns=round(config.split.purge_ms * 1e6),
        seen_until_ns=data.split.seen_until(horizon),
        slices=slices,
        missing={
            name: round(float(share), 4)
            for name, share in zip(FEATURE_NAMES, missing, strict=True)
            if share > 0
        },
        outcomes=outcomes,
        verdict=judge(outcomes, synthetic=columns.synthetic),
        config=config,
        lightgbm="lightgbm" in outcomes,
    )


def _write(
    config: TrainConfig,
    entrants: dict[str, _Entrant],
    outcomes: dict[str, Outcome],
    common: Card,
    door: _Door,
    output_dir: Path,
) -> Trained:
    """Write every model file and card, each complete or not at all."""
    losses = {name: outcome.validation.log_loss for name, outcome in outcomes.items()}
    cards: dict[str, Card] = {}
    files: dict[str, Path] = {}
    for name, entrant in entrants.items():
        if not entrant.tensors:
            continue
        outcome = outcomes[name]
        rivals = {rival: loss for rival, loss in losses.items() if rival != name}
        path = output_dir / f"{config.name}-{name}.safetensors"
        validation = outcome.validation
        save_model(
            path,
            kind=entrant.kind,  # type: ignore[arg-type]
            tensors=door.complete(entrant.tensors[entrant.chosen], outcome.temperature),
            metadata=door.metadata(validation.log_loss, validation.ece, rivals, common.created),
        )
        files[name] = path
        cards[name] = write_card(common, model=name, path=path)
    return Trained(cards=cards, files=files)


def _source_facts(source: DataSource, manifest: dict[str, Any]) -> SourceFacts:
    return SourceFacts(config=source, manifest=manifest)
