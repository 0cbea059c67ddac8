"""The trainers through the binding: shapes, repeatability, refusal and interruption.

Gradients, the exact warm start and learning are tested in Rust (core-rs/core/tests/train.rs).
"""

import signal
import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from qbtc import _core

RECIPE: "_core.TrainRecipe" = {
    "epochs": 3,
    "batch_size": 128,
    "learning_rate": 2e-3,
    "decay": 0.1,
    "ema": 0.98,
    "patience": 3,
    "seeds": [1, 2],
    "threads": 2,
}
PERM = np.arange(26, dtype=np.int32)

type Rows = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]


def _rows(n: int = 400, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    u = rng.uniform(-0.9, 0.9, (n, 26)).astype(np.float32)
    score = u[:, 0] + 2 * u[:, 1] * u[:, 2] + 0.5 * rng.normal(size=n)
    return u, np.digitize(score, [-0.4, 0.4]).astype(np.uint8)


def _mps(
    rows: Rows,
    *,
    bond: int = 8,
    recipe: "_core.TrainRecipe" = RECIPE,
    progress: Callable[..., object] | None = None,
) -> "list[_core.NetworkFit]":
    logistic = _core.train_logistic(*rows, l2=1e-2)
    return _core.train_mps(
        *rows,
        *rows,
        weight=logistic["weight"],
        bias=logistic["bias"],
        perm=PERM,
        bond=bond,
        noise=0.05,
        recipe=recipe,
        progress=progress,
    )


def test_logistic_agrees_with_an_independent_optimiser() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    u, y = _rows()
    l2 = 1e-2

    def objective(flat: npt.NDArray[np.float64]) -> float:
        z = u.astype(np.float64) @ flat[:78].reshape(26, 3) + flat[78:]
        picked = z[np.arange(len(y)), y]
        return float(
            np.mean(np.logaddexp.reduce(z, axis=1) - picked) + l2 / 2 * flat[:78] @ flat[:78]
        )

    best = optimize.minimize(objective, np.zeros(81), method="L-BFGS-B", options={"maxfun": 10**6})
    fit = _core.train_logistic(u, y, l2=l2)
    ours = objective(np.concatenate([fit["weight"].ravel(), fit["bias"]]))
    assert ours <= best.fun + 1e-9
    np.testing.assert_allclose(fit["weight"].ravel(), best.x[:78], atol=2e-3)


@pytest.mark.parametrize("bond", [8, 16])
def test_an_mps_fit_has_the_shapes_of_the_file(bond: int) -> None:
    fits = _mps(_rows(), bond=bond)
    assert {name: tensor.shape for name, tensor in fits[0]["tensors"].items()} == {
        "A": (26, 2, bond, bond),
        "W": (3, bond, bond),
        "l": (bond,),
        "r": (bond,),
        "b": (3,),
    }
    assert len(fits) == 2
    assert len(fits[0]["curve"]) == 4


def test_a_seed_gives_the_same_bits_on_any_number_of_threads() -> None:
    one = _mps(_rows(), recipe={**RECIPE, "threads": 1})
    two = _mps(_rows())
    for a, b in zip(one, two, strict=True):
        for name, tensor in a["tensors"].items():
            assert tensor.tobytes() == b["tensors"][name].tobytes(), name
    assert one[0]["tensors"]["A"].tobytes() != one[1]["tensors"]["A"].tobytes()


def test_an_mlp_fit_has_the_shapes_of_the_file_and_reports_progress() -> None:
    heard: list[tuple[int, int]] = []
    rows = _rows()
    fits = _core.train_mlp(
        *rows, *rows, hidden=5, recipe=RECIPE, progress=lambda f, e, *_: heard.append((f, e))
    )
    shapes = [tensor.shape for tensor in fits[0]["tensors"].values()]
    assert shapes == [(26, 5), (5,), (5, 5), (5,), (5, 3), (3,)]
    assert sorted(heard) == [(fit, epoch) for fit in (0, 1) for epoch in (1, 2, 3)]


def test_what_progress_raises_stops_the_fits_and_comes_out() -> None:
    def progress(*_: object) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        _mps(_rows(), recipe={**RECIPE, "epochs": 10**6, "patience": 10**6}, progress=progress)


def test_ctrl_c_stops_a_long_fit() -> None:
    endless: _core.TrainRecipe = {**RECIPE, "epochs": 10**6, "patience": 10**6}
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        _mps(_rows(), recipe=endless)
    timer.join()


def test_rows_that_cannot_train_are_refused_by_name() -> None:
    u, y = _rows()
    with pytest.raises(_core.CoreInputError, match="columns"):
        _core.train_logistic(u[:, :25].copy(), y, l2=1.0)
    with pytest.raises(_core.CoreInputError, match="l2"):
        _core.train_logistic(u, y, l2=0.0)
    with pytest.raises(_core.CoreInputError, match="bond"):
        _mps((u, y), bond=7)
    u[3, 4] = np.nan
    with pytest.raises(_core.CoreInputError, match="row 3"):
        _core.train_logistic(u, y, l2=1.0)
