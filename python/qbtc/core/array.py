"""The models over an array namespace: NumPy or CuPy, single or double precision, many rows at once.

The plain twin of the Rust kernels: oracle in float64, check in float32, and the batch path on a
GPU. Every function takes the namespace ``xp`` first. Rows are batched: ``x`` (n, 26) in feature
units with NaN = missing, ``u`` (n, 26) in (-1, 1), logits and probabilities (n, 3).
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal

import numpy as np

__all__ = [
    "ArrayModel",
    "gpu_namespace",
    "normal_scores",
    "squash",
    "standardised_distance",
]

N_FEATURES = 26
LEFT_SITES = 14
SCORE_MAX = 8.0
"""Largest normal score of a single feature."""
DEVIATIONS_PER_T = 3.289707253902945 / 1.6
"""Standard deviations of a normal feature per unit of ``x * inv_scale``."""

# NumPy and CuPy arrays share their methods but no type.
type Array = Any


def gpu_namespace() -> ModuleType:
    """CuPy, if it is installed and sees a device.

    Raises
    ------
    RuntimeError
        Saying what is missing.
    """
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError("no cupy: pip install 'qbtc[gpu]'") from error
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(f"no CUDA device: {error}") from error
    namespace: ModuleType = cupy
    return namespace


def squash(
    xp: ModuleType, x: Array, *, mu: Array, inv_scale: Array, u_mean: Array | None = None
) -> Array:
    """``u = t / (1 + |t|)`` of ``t = (x - mu) * inv_scale``, shape (n, 26), dtype of ``x``.

    Missing values become ``u_mean``; without it they stay NaN.
    """
    t = xp.clip((x - mu) * inv_scale, -1e30, 1e30)
    u = t / (1 + xp.abs(t))
    return u if u_mean is None else xp.where(xp.isnan(u), u_mean, u)


def softmax(xp: ModuleType, z: Array, temperature: float) -> Array:
    """Probabilities (n, 3) of logits (n, 3)."""
    e = xp.exp((z - z.max(axis=1, keepdims=True)) / temperature)
    return e / e.sum(axis=1, keepdims=True)


class ArrayModel:
    """A model of any kind over ``xp``, from the tensors of its file.

    Parameters
    ----------
    kind
        ``mps`` (any bond), ``logistic`` or ``mlp``.
    tensors
        As in the file (see ``core-rs/core/src/signal/file.rs``).
    xp
        ``numpy`` or ``cupy``.
    dtype
        ``float32`` (twin of the kernels) or ``float64`` (reference).
    """

    def __init__(
        self,
        kind: Literal["mps", "logistic", "mlp"],
        tensors: Mapping[str, Array],
        *,
        xp: ModuleType = np,
        dtype: Literal["float32", "float64"] = "float64",
    ) -> None:
        self.kind = kind
        self.xp = xp
        self.dtype = dtype
        self.tensors = {k: xp.asarray(v, dtype) for k, v in tensors.items() if k != "perm"}
        self.perm = [int(i) for i in tensors["perm"]] if kind == "mps" else []
        self.temperature = float(tensors["temperature"][0])

    def squash(self, x: Array) -> Array:
        """``u`` (n, 26) with missing values at their mean."""
        names = ("mu", "inv_scale", "u_mean")
        preprocess = {name: self.tensors[name] for name in names}
        return squash(self.xp, self.xp.asarray(x, self.dtype), **preprocess)

    def logits(self, x: Array) -> Array:
        """Logits (n, 3) of rows (n, 26), before the temperature."""
        return self.logits_from_u(self.squash(x))

    def infer(self, x: Array) -> Array:
        """Probabilities (n, 3) of rows (n, 26)."""
        return softmax(self.xp, self.logits(x), self.temperature)

    def logits_from_u(self, u: Array) -> Array:
        """Logits (n, 3) of squashed rows (n, 26)."""
        t = self.tensors
        if self.kind == "logistic":
            return u @ t["weight"] + t["bias"]
        if self.kind == "mlp":
            relu = self.xp.maximum
            hidden = relu(u @ t["w1"] + t["b1"], 0)
            return relu(hidden @ t["w2"] + t["b2"], 0) @ t["w3"] + t["b3"]
        left = self._chain(t["l"], range(LEFT_SITES), u)
        right = self._chain(t["r"], range(N_FEATURES - 1, LEFT_SITES - 1, -1), u)
        return self.xp.einsum("na,cab,nb->nc", left, t["W"], right, optimize=True) + t["b"]

    def _chain(self, start: Array, sites: range, u: Array) -> Array:
        """Environment (n, X) after ``V <- V + V A[k,0] + u V A[k,1]`` over ``sites``."""
        a = self.tensors["A"]
        v = self.xp.repeat(start[None, :], len(u), axis=0)
        for k in sites:
            x = u[:, self.perm[k], None]
            v = v + v @ a[k, 0] + x * (v @ a[k, 1])
        return v

    def explain(self, x: Array) -> Array:
        """Logit changes (n, 26, 3) when one feature alone is set to its mean: 26 forwards."""
        u = self.squash(x)
        base = self.logits_from_u(u)
        changes = []
        for i in range(N_FEATURES):
            ablated = u.copy()
            ablated[:, i] = self.tensors["u_mean"][i]
            changes.append(self.logits_from_u(ablated) - base)
        return self.xp.stack(changes, axis=1)

    def ood(self, x: Array) -> Array:
        """Out-of-distribution score (n,): share of training rows nearer to the centre."""
        xp, t = self.xp, self.tensors
        z = normal_scores(
            xp,
            xp.asarray(x, "float64"),
            guard_knots=t["guard_knots"],
            guard_levels=t["guard_levels"],
            inv_scale=t["inv_scale"],
        )
        w = standardised_distance(z, t["guard_precision"], xp=xp)
        level = xp.interp(w, t["guard_tail"], t["guard_tail_level"])
        level = xp.where(w > t["guard_tail"][-1], 1.0, level)
        return xp.where(w <= t["guard_tail"][0], 0.0, level)


def normal_scores(
    xp: ModuleType, x: Array, *, guard_knots: Array, guard_levels: Array, inv_scale: Array
) -> Array:
    """Map rows (n, 26) to normal scores (n, 26), float64; NaN stays NaN.

    Linear between knots, the middle of the run on ties, linear in robust deviations beyond.
    """
    knots, levels = xp.asarray(guard_knots, "float64"), xp.asarray(guard_levels, "float64")
    x = xp.asarray(x, "float64")
    last = len(levels) - 1
    out = xp.empty_like(x)
    for i in range(N_FEATURES):
        v, q = x[:, i], knots[i]
        below = xp.searchsorted(q, v, side="left")
        upto = xp.searchsorted(q, v, side="right")
        low, high = xp.clip(below - 1, 0, last), xp.clip(below, 0, last)
        step = q[high] - q[low]
        share = (v - q[low]) / xp.where(step > 0, step, 1.0)
        score = levels[low] + (levels[high] - levels[low]) * share
        end = xp.where(below == 0, 0, last)
        beyond = levels[end] + (v - q[end]) * float(inv_scale[i]) * DEVIATIONS_PER_T
        score = xp.where((below == 0) | (below > last), beyond, score)
        tie = (levels[high] + levels[xp.clip(upto - 1, 0, last)]) / 2
        score = xp.where(upto > below, tie, score)
        out[:, i] = xp.where(xp.isnan(v), xp.nan, xp.clip(score, -SCORE_MAX, SCORE_MAX))
    return out


def standardised_distance(z: Array, precision: Array, *, xp: ModuleType = np) -> Array:
    """Wilson–Hilferty w (n,) of the Mahalanobis distance over each row's observed scores.

    Rows are grouped by their pattern of missing features; each group uses the inverse of its own
    covariance block. A row with nothing observed gets +inf.
    """
    precision = xp.asarray(precision, "float64")
    covariance = xp.linalg.inv((precision + precision.T) / 2)
    weights = xp.asarray(2.0 ** np.arange(N_FEATURES))
    code = (xp.isnan(z) * weights).sum(axis=1)
    w = xp.full(len(z), xp.inf)
    for pattern in xp.unique(code):
        rows = code == pattern
        observed = [i for i in range(N_FEATURES) if not int(pattern) >> i & 1]
        k = len(observed)
        if k == 0:
            continue
        scores = z[rows][:, observed]
        inverse = xp.linalg.inv(covariance[observed][:, observed])
        d2 = xp.maximum(((scores @ inverse) * scores).sum(axis=1), 0.0)
        v = 2.0 / (9.0 * k)
        w[rows] = (xp.cbrt(d2 / k) - (1.0 - v)) / v**0.5
    return w
