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
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qbtc.config import DataSource, TrainConfig
from qbtc.core.columns import EventColumns
from qbtc.core.features import FEATURE_NAMES, bulk_features
from qbtc.core.signal_model import save_model
from qbtc.core.training import core_hash
from qbtc.errors import ConfigError
from qbtc.evaluate.card import Card, Outcome, SliceFacts, SourceFacts, judge, revision, write_card
from qbtc.evaluate.entrants import Door, Entrant, FitData, prepare
from qbtc.evaluate.fits import Silent, Watcher, fit_all
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

__all__ = ["Trained", "Watcher", "train", "train_columns"]

BLOCK_MIN_NS = 5_000_000_000
BLOCK_HORIZONS = 5
"""Blocks of the bootstrap are the longer of 5 s and 5 horizons."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training left: one card per model file, by name (``mps8``, ``logistic``, ...)."""

    cards: dict[str, Card]
    files: dict[str, Path]


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

    watcher = watcher or Silent()
    output_dir = Path.cwd() / Path(config.output_dir).expanduser()
    _check_output(output_dir)
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
        config, columns[0], lead=lead, sources=sources, output_dir=output_dir, watcher=watcher
    )


def _check_output(folder: Path) -> None:
    """Find out before the training whether models can be written after it; write nothing."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise _cannot_write(folder, f"{there} is no folder that can be written to")


def _cannot_write(folder: Path, why: str | None) -> ConfigError:
    return ConfigError(f"models cannot go to {folder}: {why}; give another output_dir")


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
    watcher = watcher or Silent()
    watcher.stage("features", 1)
    merged = columns if lead is None else columns.with_lead(lead)
    rows = label_rows(bulk_features(merged), config.label, sample_every=config.sample_every)
    data = prepare(split_rows(rows, config.split))
    watcher.step("features", 1, f"{len(rows)} rows")

    with tempfile.TemporaryDirectory(prefix="qbtc-train-") as scratch:
        door = Door(config, columns, data, Path(scratch))
        entrants = fit_all(config, data, door, watcher)
        outcomes = _judge_all(config, data, entrants)
    common = _common_card(config, columns, lead, sources, data, outcomes, created)
    return _write(config, entrants, outcomes, common, door, output_dir)


def _judge_all(
    config: TrainConfig, data: FitData, entrants: dict[str, Entrant]
) -> dict[str, Outcome]:
    """Fit temperatures on calibration, then look at test: once, every model, the same rows."""
    outcomes: dict[str, Outcome] = {}
    losses: dict[str, npt.NDArray[np.float64]] = {}
    for name, entrant in entrants.items():
        outcomes[name], losses[name] = _judge_one(entrant, data.split)
    block_ns = max(BLOCK_MIN_NS, BLOCK_HORIZONS * horizon_ns(config.label))

    def compare(name: str, rival: str) -> None:
        rng = np.random.default_rng(config.seed)
        difference = losses[name] - losses[rival]
        interval = block_bootstrap(difference, data.split.test.ts, block_ns, rng)
        outcomes[name].against[rival] = interval

    for name in outcomes:
        compare(name, "prior")
        compare(name, "logistic")
    first, second, *_ = sorted(outcomes, key=lambda name: outcomes[name].test.log_loss)
    compare(first, second)
    return outcomes


def _judge_one(entrant: Entrant, split: Split) -> tuple[Outcome, npt.NDArray[np.float64]]:
    """Judge every candidate with its own temperature; also the chosen one's test losses (n,)."""
    # The prior too gets one: its class frequencies may be of another regime, like any model's.
    temperatures = [
        fit_temperature(predict(split.calibration.x), split.calibration.y)
        for predict in entrant.predictors
    ]

    def calibrated(candidate: int, rows: LabelledRows) -> npt.NDArray[np.float64]:
        return apply_temperature(entrant.predictors[candidate](rows.x), temperatures[candidate])

    best = entrant.chosen
    tests = [calibrated(i, split.test) for i in range(len(temperatures))]
    losses = [log_losses(p, split.test.y) for p in tests]
    bins = reliability(tests[best], split.test.y)
    points = (bins.confidence.tolist(), bins.accuracy.tolist(), bins.rows.tolist())
    outcome = Outcome(
        name=entrant.name,
        kind=entrant.kind,
        fits=len(temperatures),
        settings=entrant.settings,
        n_params=entrant.n_params,
        seconds=round(entrant.seconds, 3),
        temperature=temperatures[best],
        validation_raw=entrant.validation[best],
        validation=score(calibrated(best, split.validation), split.validation.y),
        test=score(tests[best], split.test.y),
        test_losses=[float(loss.mean()) for loss in losses],
        curves=entrant.curves,
        reliability=list(zip(*points, strict=True)),
    )
    return outcome, losses[best]


def _common_card(
    config: TrainConfig,
    columns: EventColumns,
    lead: EventColumns | None,
    sources: Sequence[SourceFacts],
    data: FitData,
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
    entrants: dict[str, Entrant],
    outcomes: dict[str, Outcome],
    common: Card,
    door: Door,
    output_dir: Path,
) -> Trained:
    """Write every model file and card, each complete or not at all."""
    losses = {name: outcome.validation.log_loss for name, outcome in outcomes.items()}
    cards: dict[str, Card] = {}
    files: dict[str, Path] = {}
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(output_dir, error.strerror) from None
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
