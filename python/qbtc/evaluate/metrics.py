"""Scores of class probabilities, temperature, and intervals that respect time.

Shapes: probabilities ``p`` (n, 3), classes ``y`` (n,) in 0..2. Losses are in nats.
"""

from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

__all__ = [
    "Interval",
    "Reliability",
    "Scores",
    "apply_temperature",
    "block_bootstrap",
    "fit_temperature",
    "log_losses",
    "reliability",
    "score",
]

type Doubles = npt.NDArray[np.float64]
type Probabilities = npt.NDArray[np.floating]
type Classes = npt.NDArray[np.uint8]

P_MIN = 1e-9
ECE_BINS = 15
TEMPERATURE_RANGE = (0.1, 20.0)
RESAMPLES = 2000


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """How well probabilities fit classes."""

    log_loss: float
    accuracy: float
    auc: float
    """Area under the curve, one class against the rest, mean over classes that occur."""
    ece: float
    """Expected calibration error of the most likely class, 15 bins of equal width."""
    brier: float
    """Sum over classes of squared errors; 0 best, 2 worst."""


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """Mean and 95 % block-bootstrap interval."""

    mean: float
    low: float
    high: float
    blocks: int


@dataclass(frozen=True, eq=False)
class Reliability:
    """One point per bin that holds rows: mean confidence, share that was right, rows."""

    confidence: Doubles
    accuracy: Doubles
    rows: npt.NDArray[np.int64]


def log_losses(p: Probabilities, y: Classes) -> Doubles:
    """Negative log probability of each row's class, (n,)."""
    picked = np.asarray(p, np.float64)[np.arange(len(y)), y]
    return np.asarray(-np.log(np.clip(picked, P_MIN, 1.0)), np.float64)


def score(p: Probabilities, y: Classes) -> Scores:
    """Compute every score."""
    wide: Doubles = np.asarray(p, np.float64)
    bins = reliability(wide, y)
    gap = np.abs(bins.confidence - bins.accuracy) @ bins.rows / len(y)
    truth = np.eye(wide.shape[1])[y]
    return Scores(
        log_loss=float(log_losses(wide, y).mean()),
        accuracy=float((wide.argmax(axis=1) == y).mean()),
        auc=_auc(wide, y),
        ece=float(gap),
        brier=float(((wide - truth) ** 2).sum(axis=1).mean()),
    )


def reliability(p: Probabilities, y: Classes, bins: int = ECE_BINS) -> Reliability:
    """Compare the confidence of the most likely class with how often it was right."""
    confidence = np.asarray(p, np.float64).max(axis=1)
    right = p.argmax(axis=1) == y
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    rows = np.bincount(index, minlength=bins)
    used = rows > 0
    return Reliability(
        np.bincount(index, confidence, bins)[used] / rows[used],
        np.bincount(index, right, bins)[used] / rows[used],
        rows[used],
    )


def _auc(p: Doubles, y: Classes) -> float:
    """Mean one-against-rest area by the rank-sum formula; ties count half."""
    areas = []
    for c in range(p.shape[1]):
        positive = y == c
        n_positive = int(positive.sum())
        n_negative = len(y) - n_positive
        if n_positive and n_negative:
            _, group, size = np.unique(p[:, c], return_inverse=True, return_counts=True)
            rank = (np.cumsum(size) - (size - 1) / 2)[group]
            rank_sum = rank[positive].sum() - n_positive * (n_positive + 1) / 2
            areas.append(rank_sum / (n_positive * n_negative))
    return float(np.mean(areas)) if areas else float("nan")


def apply_temperature(p: Probabilities, temperature: float) -> Doubles:
    """Soften (above 1) or sharpen (below 1) probabilities: ``softmax(log p / temperature)``."""
    z = np.log(np.clip(np.asarray(p, np.float64), P_MIN, 1.0)) / temperature
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True), np.float64)


def fit_temperature(p: Probabilities, y: Classes) -> float:
    """Temperature within [0.1, 20] of the least log-loss, by golden section on its logarithm.

    The loss is convex in the inverse temperature (Guo et al. 2017, arXiv 1706.04599), so there is
    one minimum to find.
    """
    low, high = np.log(TEMPERATURE_RANGE)
    golden = (np.sqrt(5.0) - 1.0) / 2.0

    def loss(log_t: float) -> float:
        return float(log_losses(apply_temperature(p, float(np.exp(log_t))), y).mean())

    a, b = high - golden * (high - low), low + golden * (high - low)
    loss_a, loss_b = loss(a), loss(b)
    while high - low > 1e-4:
        if loss_a < loss_b:
            high, b, loss_b = b, a, loss_a
            a = high - golden * (high - low)
            loss_a = loss(a)
        else:
            low, a, loss_a = a, b, loss_b
            b = low + golden * (high - low)
            loss_b = loss(b)
    return float(np.exp((low + high) / 2.0))


def block_bootstrap(
    values: Doubles,
    ts: npt.NDArray[np.int64],
    block_ns: int,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean of ``values`` (n,) and its 95 % interval over blocks of time.

    Rows of one block depend on one another (their horizons overlap), so whole blocks of
    ``block_ns`` are drawn with replacement and their rows pooled.
    """
    block = (ts - ts[0]) // block_ns
    _, index = np.unique(block, return_inverse=True)
    sums, rows = np.bincount(index, values), np.bincount(index)
    draw = rng.integers(0, len(rows), (resamples, len(rows)))
    means = sums[draw].sum(axis=1) / rows[draw].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean=float(values.mean()), low=float(low), high=float(high), blocks=len(rows))
