"""Signal models: make the file, read it, apply it.

A model maps one row of 26 features to the probabilities of down, flat and up. This module is the
Python door to the Rust models (``qbtc._core.SignalModel``); the file format is documented in
``core-rs/core/src/signal/file.rs`` and the mathematics in ``core-rs/core/src/signal/mod.rs``.

Shapes: ``n`` rows, 26 features, 3 classes (down, flat, up), ``X`` the bond, ``h`` hidden units.
A missing feature is NaN. It is integrated out exactly by ``mps`` and ``logistic`` (their logits
are affine in each ``u_i``); ``mlp`` imputes the mean.
"""

import os
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from qbtc import _core
from qbtc.core.array import normal_scores, squash, standardised_distance
from qbtc.core.columns import EventColumns
from qbtc.errors import DataError, ModelError

__all__ = [
    "N_CLASSES",
    "N_FEATURES",
    "BulkSignals",
    "ModelMetadata",
    "SignalModel",
    "bulk_signals",
    "fit_guard",
    "fit_preprocess",
    "init_mps_from_logistic",
    "load_model",
    "save_model",
]

N_FEATURES = 26
N_CLASSES = 3
SCALE_SPAN = 1.6
"""``t`` spans this from the 5 % to the 95 % quantile."""
KNOTS = 65
"""Quantile knots per feature in the guard."""
TAIL_LEVELS = 257
"""Steps of the guard's tail table."""
CORRELATION_SHRINK = 0.01
"""Share of the diagonal mixed into the score covariance, so that it can be inverted."""
EIGENVALUE_MIN = 1e-3
"""Floor of the score covariance's eigenvalues."""
TRAINING_ROWS_MIN = 100
"""Fewer rows say nothing about quantiles."""
GUARD_ROWS_MAX = 200_000
"""Rows used by :func:`fit_guard`: an even subsample above this."""

Kind = Literal["mps", "logistic", "mlp"]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model file says about itself; ``kind`` and the format are added on saving.

    Parameters
    ----------
    feature_names
        The 26 features in column order.
    feature_schema_sha256
        ``qbtc.core.features.schema_sha256()``; loading refuses any other.
    label_horizon_ns, label_threshold_bp
        The label: mid return over the horizon beyond the threshold (basis points).
    train_start_ns, train_end_ns
        First training row, and the last instant that anything fitted or chosen could see (the
        horizon of the last calibration row included), UNIX nanoseconds.
    val_logloss, val_ece
        On the validation slice, after the temperature; nats and [0, 1].
    baseline_logloss
        The same loss of every baseline trained beside it (``prior``, ``logistic``, ...).
    created
        ISO 8601 time, given by the caller.
    synthetic
        True if any training row came from the synthetic market.
    instrument
        Nautilus instrument id, or several joined by commas.
    seed
        Of the training run.
    notes
        Free strings.
    """

    feature_names: tuple[str, ...]
    feature_schema_sha256: str
    label_horizon_ns: Annotated[int, msgspec.Meta(gt=0)]
    label_threshold_bp: Annotated[float, msgspec.Meta(ge=0)]
    train_start_ns: int
    train_end_ns: int
    val_logloss: float
    val_ece: float
    baseline_logloss: dict[str, float]
    created: str
    synthetic: bool
    instrument: str
    seed: Annotated[int, msgspec.Meta(ge=0)]
    notes: dict[str, str] = {}

    def to_strings(self, kind: Kind) -> dict[str, str]:
        """Encode as safetensors metadata (string to string)."""
        plain = {"format": "qbtc-signal", "version": "1", "kind": kind}
        for name in self.__struct_fields__:
            value = getattr(self, name)
            plain[name] = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        return plain

    @classmethod
    def from_strings(cls, strings: Mapping[str, str]) -> "ModelMetadata":
        """Decode safetensors metadata.

        Raises
        ------
        ModelError
            If a key is missing or has a value of another type.
        """
        texts = {"feature_schema_sha256", "created", "instrument"}
        known = {k: v for k, v in strings.items() if k in cls.__struct_fields__}
        try:
            values = {k: v if k in texts else msgspec.json.decode(v) for k, v in known.items()}
            return msgspec.convert(values, cls)
        except msgspec.MsgspecError as error:
            raise ModelError(f"model metadata: {error}") from error


@dataclass(frozen=True, slots=True)
class SignalModel:
    """A loaded model on the Rust core; read-only and shareable between threads.

    Attributes
    ----------
    path
        The file it came from.
    kind
        ``mps``, ``logistic`` or ``mlp``.
    metadata
        What the file says about itself.
    core
        The ``qbtc._core.SignalModel`` underneath.
    """

    path: Path
    kind: Kind
    metadata: ModelMetadata
    core: _core.SignalModel

    @property
    def isa(self) -> str:
        """Instruction set in use: ``avx512``, ``avx2`` or ``scalar``."""
        return self.core.isa

    def infer(self, x: Floats) -> tuple[float, float, float]:
        """Probabilities (down, flat, up) of one float32 row, shape (26,)."""
        return self.core.infer(x)

    def infer_batch(self, x: Floats, *, threads: int | None = None) -> Floats:
        """Probabilities (n, 3) of float32 rows (n, 26).

        The same bits as :meth:`infer` row by row, on any number of threads (default: all cores);
        the GIL is released.
        """
        return self.core.infer_batch(np.ascontiguousarray(x, np.float32), threads=threads)

    def explain(self, x: Floats) -> Floats:
        """Logit changes (26, 3) when one feature alone is replaced by its training mean; exact."""
        return self.core.explain(x)

    def buffer(self) -> _core.SignalBuffer:
        """Make a row to write into and infer from: the quickest way to infer from Python."""
        return _core.SignalBuffer(self.core)

    def replay(
        self, columns: EventColumns, *, keep_from_ns: int | None = None
    ) -> _core.ReplaySession:
        """Features and model of one instrument whose events are known beforehand.

        Signals are kept as in :meth:`session`.

        Raises
        ------
        DataError
            If the columns do not fit together.
        """
        try:
            return _core.ReplaySession(self.core, columns, keep_from_ns)
        except _core.CoreInputError as error:
            raise DataError(f"{columns.instrument}: {error}") from None

    def session(
        self, *, price_increment: float, size_increment: float, keep_from_ns: int | None = None
    ) -> _core.SignalSession:
        """Features and model of one instrument, event by event (see the stub of ``qbtc._core``).

        With ``keep_from_ns`` every signal from that time on is kept until it is drained.

        Raises
        ------
        DataError
            If an increment is not finite and positive.
        """
        try:
            return _core.SignalSession(self.core, price_increment, size_increment, keep_from_ns)
        except _core.CoreInputError as error:
            raise DataError(f"instrument: {error}") from None

    def ood(self, x: Floats) -> float:
        """Share of training rows nearer to the centre: 0.5 ordinary, above 0.999 unlike them."""
        return self.core.ood(x)


@dataclass(frozen=True, kw_only=True, eq=False)
class BulkSignals:
    """One row per quote.

    Attributes
    ----------
    P
        (n_quotes, 3) float32 probabilities of down, flat, up; NaN while not warm.
    ts
        (n_quotes,) int64, UNIX ns.
    mid
        (n_quotes,) float64, quote currency.
    """

    P: Floats
    ts: npt.NDArray[np.int64]
    mid: Doubles


def bulk_signals(columns: EventColumns, model: SignalModel) -> BulkSignals:
    """Compute the signal at every quote, on two cores, without the GIL.

    The same bits as feeding the events to :meth:`SignalModel.session` one by one.

    Raises
    ------
    DataError
        An event is refused (not finite, off the grid, crossed, ...): names field and row.
    """
    try:
        p, ts, mid = _core.bulk_signals(columns, model.core)
    except _core.CoreInputError as error:
        raise DataError(f"{columns.instrument}: {error}") from None
    return BulkSignals(P=p, ts=ts, mid=mid)


def load_model(path: str | os.PathLike[str], *, isa: str | None = None) -> SignalModel:
    """Read and check a model file.

    Parameters
    ----------
    path
        A safetensors file written by :func:`save_model`.
    isa
        Force ``scalar``, ``avx2`` or ``avx512`` (default: the best, or ``QBTC_ISA``).

    Raises
    ------
    ModelError
        Naming the file and the tensor or metadata key at fault.
    """
    path = Path(path)
    try:
        core = _core.SignalModel(path, isa=isa)
    except (_core.CoreModelError, _core.CoreInputError, OSError) as error:
        # A schema error already says what to do.
        remedy = "" if "train the model again" in str(error) else "; train the model again"
        raise ModelError(f"{path}: {error}{remedy}") from error
    return SignalModel(path, core.kind, ModelMetadata.from_strings(core.metadata), core)


def save_model(
    path: str | os.PathLike[str],
    *,
    kind: Kind,
    tensors: Mapping[str, npt.NDArray[Any]],
    metadata: ModelMetadata,
) -> None:
    """Write a model file atomically, and read it back to check it.

    Parameters
    ----------
    path
        Target; replaced only when the new file is complete and loads.
    kind
        ``mps``, ``logistic`` or ``mlp``.
    tensors
        Those of the kind, of :func:`fit_preprocess` and :func:`fit_guard`, and ``temperature``.
        All float32 but ``perm``, which is int32.

    Raises
    ------
    ModelError
        If the file would not load: names the tensor or key.
    """
    path = Path(path)
    arrays = {
        name: np.ascontiguousarray(value, np.int32 if name == "perm" else np.float32)
        for name, value in tensors.items()
    }
    data = save(arrays, metadata=metadata.to_strings(kind))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        load_model(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def fit_preprocess(x_train: npt.NDArray[np.floating[Any]]) -> dict[str, Floats]:
    """Centre, scale and mean of each feature from training rows.

    Parameters
    ----------
    x_train
        Shape (n, 26); NaN = missing. A feature that is always missing gets centre 0, scale 1.

    Returns
    -------
    dict
        ``mu`` (26) medians, ``inv_scale`` (26) = 1.6 / (q95 - q05), ``u_mean`` (26) mean of
        ``u`` over observed rows.
    """
    x = _training_rows(x_train)
    seen = ~np.isnan(x).all(axis=0)
    mu, deviation = np.zeros(N_FEATURES), np.ones(N_FEATURES)
    span = np.ones(N_FEATURES)
    q05, mu[seen], q95 = np.nanquantile(x[:, seen], [0.05, 0.5, 0.95], axis=0)
    span[seen] = q95 - q05
    deviation[seen] = 3.29 * np.nanstd(x[:, seen], axis=0)
    # A feature that sits on one value nearly always has no 5-95 span: use its deviation instead.
    usual = np.where(span > 1e-3 * deviation, span, deviation)
    floored = np.where(usual > 1e-9 * np.maximum(1.0, np.abs(mu)), usual, 1.0)
    fit: dict[str, Floats] = {
        "mu": mu.astype(np.float32),
        "inv_scale": (SCALE_SPAN / floored).astype(np.float32),
    }
    u = squash(np, x, mu=fit["mu"], inv_scale=fit["inv_scale"])
    u_mean = np.zeros(N_FEATURES)
    u_mean[seen] = np.nanmean(u[:, seen], axis=0)
    return {**fit, "u_mean": u_mean.astype(np.float32)}


def init_mps_from_logistic(
    weight: npt.NDArray[np.floating[Any]],
    bias: npt.NDArray[np.floating[Any]],
    bond: int,
    perm: npt.NDArray[np.integer[Any]],
    noise: float,
    seed: int,
) -> dict[str, npt.NDArray[Any]]:
    """Build a matrix product state whose logits equal those of a logistic regression exactly.

    Channel 0 carries 1, channels 1..3 the running sum of each class; the label core adds the left
    and the right sum. The other channels carry noise but cannot reach the output: on the left they
    never flow back into the first four, on the right they are never entered. Every parameter that
    training may need still has a gradient after one step.

    Parameters
    ----------
    weight, bias
        Logistic regression on ``u``: (26, 3) and (3,).
    bond
        At least 4.
    perm
        (26,) feature read by each site.
    noise
        Standard deviation of the entries on the extra channels.

    Returns
    -------
    dict
        ``A (26,2,X,X)``, ``W (3,X,X)``, ``l (X)``, ``r (X)``, ``b (3)`` in float64 and ``perm``.
    """
    block = 1 + N_CLASSES
    if bond < block:
        raise ModelError(f"bond {bond} is too small for a warm start; use at least {block}")
    rng = np.random.default_rng(seed)
    left_sites = 14
    a = rng.normal(0.0, noise, (N_FEATURES, 2, bond, bond))
    a[:, :, :block, :block] = 0.0
    a[:left_sites, :, block:, :block] = 0.0
    a[left_sites:, :, :block, block:] = 0.0
    w = rng.normal(0.0, noise, (N_CLASSES, bond, bond))
    w[:, :, :block] = 0.0
    for c in range(N_CLASSES):
        a[:, 1, 0, 1 + c] = np.asarray(weight, np.float64)[perm, c]
        w[c, 1 + c, 0] = w[c, 0, 1 + c] = 1.0
    left = np.zeros(bond)
    left[0] = 1.0
    right = left.copy()
    left[block:] = 0.3
    return {"A": a, "W": w, "l": left, "r": right, "b": np.asarray(bias, np.float64), "perm": perm}


def fit_guard(x_train: npt.NDArray[np.floating[Any]]) -> dict[str, Floats]:
    """Fit the out-of-distribution guard (``core-rs/core/src/signal/guard.rs``) to training rows.

    Parameters
    ----------
    x_train
        Shape (n, 26), NaN = missing; at least 100 rows.

    Returns
    -------
    dict
        ``guard_knots (26, K)``, ``guard_levels (K)``, ``guard_precision (26, 26)``,
        ``guard_tail (Q)``, ``guard_tail_level (Q)``.
    """
    x = _training_rows(x_train)
    x = x[:: max(1, -(-len(x) // GUARD_ROWS_MAX))]
    probability = (np.arange(KNOTS) + 0.5) / KNOTS
    levels = _normal_quantile(probability)
    seen = ~np.isnan(x).all(axis=0)
    knots = np.zeros((N_FEATURES, KNOTS), np.float32)
    knots[seen] = np.nanquantile(x[:, seen], probability, axis=0).T
    inv_scale = fit_preprocess(x)["inv_scale"]
    guard: dict[str, Floats] = {
        "guard_knots": knots,
        "guard_levels": levels.astype(np.float32),
    }
    z = normal_scores(np, x, inv_scale=inv_scale, **guard)
    guard["guard_precision"] = np.linalg.inv(_score_covariance(z)).astype(np.float32)
    w = standardised_distance(z, guard["guard_precision"])
    level = np.linspace(0.0, 1.0, TAIL_LEVELS) ** 0.25
    guard["guard_tail"] = np.quantile(w, level).astype(np.float32)
    guard["guard_tail_level"] = level.astype(np.float32)
    return guard


def _training_rows(x_train: npt.NDArray[np.floating[Any]]) -> Floats:
    """Check shape and finiteness (NaN allowed) of training rows, and take them as float32."""
    x = np.asarray(x_train, np.float32)
    if x.ndim != 2 or x.shape[1] != N_FEATURES or len(x) < TRAINING_ROWS_MIN:
        raise ModelError(
            f"training rows have shape {x.shape}; give at least {TRAINING_ROWS_MIN} rows of 26"
        )
    if np.isinf(x).any():
        column = int(np.isinf(x).any(axis=0).argmax())
        raise ModelError(f"training rows: feature {column} is infinite; mark missing values as NaN")
    return x


def _normal_quantile(probability: Doubles) -> Doubles:
    normal = statistics.NormalDist()
    return np.array([normal.inv_cdf(p) for p in probability])


def _score_covariance(z: Doubles) -> Doubles:
    """Covariance (26, 26) over pairwise observed scores, shrunk and floored to be invertible."""
    seen = (~np.isnan(z)).astype(np.float64)
    filled = np.nan_to_num(z)
    covariance = filled.T @ filled / np.maximum(seen.T @ seen, 1.0)
    # A feature that never moves says nothing: give it unit variance and no correlation.
    variance = np.diag(covariance).copy()
    variance[variance < 1e-6] = 1.0
    covariance *= 1.0 - CORRELATION_SHRINK
    np.fill_diagonal(covariance, variance)
    values, vectors = np.linalg.eigh(covariance)
    floored: Doubles = (vectors * np.maximum(values, EIGENVALUE_MIN)) @ vectors.T
    return floored
