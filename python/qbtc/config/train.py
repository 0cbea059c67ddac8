"""What one training is made of: data, label, time split, models and their budgets."""

from typing import Literal

import msgspec

from qbtc.config.data import DataSource


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class LabelConfig(_Section, frozen=True, kw_only=True):
    """Class of the mid return over a horizon: 0 down, 1 flat, 2 up."""

    horizon_ms: float = 1000.0
    threshold_bp: float = 0.25


class SplitConfig(_Section, frozen=True, kw_only=True):
    """Fractions of the time span, in order; rows within ``purge_ms`` of a border are dropped."""

    train: float = 0.55
    validation: float = 0.15
    calibration: float = 0.10
    test: float = 0.20
    purge_ms: float = 2000.0


class LogisticConfig(_Section, frozen=True, kw_only=True):
    """Multinomial logistic regression on the squashed features."""

    l2: tuple[float, ...] = (
        0.001,
        0.01,
        0.1,
        1.0,
    )


class MlpConfig(_Section, frozen=True, kw_only=True):
    """Two hidden layers, ReLU."""

    hidden: int = 32
    epochs: int = 24
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    seeds: int = 3


class MpsConfig(_Section, frozen=True, kw_only=True):
    """Matrix product state, warm-started exactly from the logistic model."""

    bond: Literal[8, 16] = 8
    epochs: int = 12
    learning_rate: float = 1e-3
    decay: float = 0.1
    """Decay towards the warm start (L2-SP)."""
    noise: float = 0.05
    ema: float = 0.995
    patience: int = 3
    seeds: int = 3


class TrainConfig(_Section, frozen=True, kw_only=True):
    """A training: one data set, one split, several models."""

    name: str
    data: tuple[DataSource, ...]
    """The first source is the instrument to predict; a second may be its lead."""
    seed: int = 1
    output_dir: str = "models"
    sample_every: int = 1
    """Use every n-th quote as a row."""
    batch_size: int = 256
    label: LabelConfig = LabelConfig()
    split: SplitConfig = SplitConfig()
    logistic: LogisticConfig = LogisticConfig()
    mlp: MlpConfig = MlpConfig()
    mps: tuple[MpsConfig, ...] = (MpsConfig(),)
    lightgbm: bool = True
    """Train LightGBM beside the models where the package is installed."""
