"""What one training is made of: data, label, time split, models and their budgets."""

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from qbtc.config.data import DataSource

type Count = Annotated[int, Meta(ge=1)]
type Positive = Annotated[float, Meta(gt=0, le=1e9)]
type NotNegative = Annotated[float, Meta(ge=0, le=1e9)]
type Rate = Annotated[float, Meta(gt=0, lt=10)]
type Fraction = Annotated[float, Meta(gt=0, lt=1)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class LabelConfig(_Section, frozen=True, kw_only=True):
    """Class of the mid return over a horizon: 0 down, 1 flat, 2 up."""

    horizon_ms: Positive = 1000.0
    threshold_bp: NotNegative = 0.25
    """Returns up to this size, in basis points, are flat."""


class SplitConfig(_Section, frozen=True, kw_only=True):
    """Fractions of the time span, in order, together 1.

    Rows within ``purge_ms`` of a border are dropped on both sides: no label of one slice sees
    into the next, and the features of the next have forgotten the last.
    """

    train: Fraction = 0.55
    validation: Fraction = 0.15
    """Chooses models: penalty, epoch, seed."""
    calibration: Fraction = 0.10
    """Fits the temperature, later than early stopping looked."""
    test: Fraction = 0.20
    """Looked at once."""
    purge_ms: Positive = 2000.0

    def __post_init__(self) -> None:
        """Check that the fractions are a whole."""
        total = self.train + self.validation + self.calibration + self.test
        if abs(total - 1.0) > 1e-9:
            raise ValueError(f"train + validation + calibration + test = {total:g}; make it 1")


class LogisticConfig(_Section, frozen=True, kw_only=True):
    """Multinomial logistic regression on the squashed features."""

    l2: Annotated[tuple[Positive, ...], Meta(min_length=1)] = (
        0.0001,
        0.001,
        0.01,
        0.03,
        0.1,
        0.3,
    )
    """Candidates for the penalty ``l2/2 |weight|²`` on the mean loss; validation chooses."""


class MlpConfig(_Section, frozen=True, kw_only=True):
    """Two hidden layers, ReLU."""

    hidden: Annotated[int, Meta(ge=1, le=1024)] = 32
    epochs: Count = 24
    learning_rate: Rate = 2e-3
    weight_decay: NotNegative = 0.02
    ema: Annotated[float, Meta(ge=0, lt=1)] = 0.995
    patience: Count = 3
    seeds: Count = 5

    def __post_init__(self) -> None:
        """Check what no single key can."""
        _check_decay("weight_decay", self.weight_decay, self.learning_rate)


class MpsConfig(_Section, frozen=True, kw_only=True):
    """Matrix product state, warm-started exactly from the logistic model."""

    bond: Literal[8, 16] = 8
    epochs: Count = 12
    learning_rate: Rate = 1e-3
    decay: NotNegative = 0.1
    """Decay towards the warm start (L2-SP), per unit of rate: no entry moves much past 1/decay."""
    noise: NotNegative = 0.05
    """Standard deviation of the entries outside the logistic block; the start stays exact."""
    ema: Annotated[float, Meta(ge=0, lt=1)] = 0.995
    """Share of the past in the moving average of the weights; the average is kept."""
    patience: Count = 3
    seeds: Count = 5

    def __post_init__(self) -> None:
        """Check what no single key can."""
        _check_decay("decay", self.decay, self.learning_rate)


def _check_decay(key: str, decay: float, rate: float) -> None:
    if decay * rate >= 1:
        raise ValueError(
            f"{key} = {decay:g} times learning_rate = {rate:g} would undo each step; "
            "keep the product below 1"
        )


class TrainConfig(_Section, frozen=True, kw_only=True):
    """A training: one data set, one split, several models."""

    name: str
    """First part of the model files' names."""
    data: Annotated[tuple[DataSource, ...], Meta(min_length=1, max_length=2)]
    """The first source is the instrument to predict; a second may be its lead."""
    seed: Annotated[int, Meta(ge=0, le=2**53)] = 1
    output_dir: str = "models"
    """Folder of the model files, relative to the working directory."""
    sample_every: Count = 1
    """Use every n-th quote as a row."""
    batch_size: Count = 256
    label: LabelConfig = LabelConfig()
    split: SplitConfig = SplitConfig()
    logistic: LogisticConfig = LogisticConfig()
    mlp: MlpConfig = MlpConfig()
    mps: tuple[MpsConfig, ...] = (MpsConfig(),)
    lightgbm: bool = True
    """Train LightGBM beside the models where the package is installed."""

    def __post_init__(self) -> None:
        """Check what no single key can."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", self.name):
            raise ValueError(
                f"name = {self.name!r} cannot name the model files; write up to 80 letters, "
                "digits, dots, dashes and underscores"
            )
        if len({source.instrument for source in self.data}) < len(self.data):
            raise ValueError(
                f"both [[data]] entries are of {self.data[0].instrument}, which cannot lead "
                "itself; name another instrument or leave the second out"
            )
        if self.split.purge_ms < self.label.horizon_ms:
            raise ValueError(
                f"split.purge_ms = {self.split.purge_ms:g} is shorter than label.horizon_ms = "
                f"{self.label.horizon_ms:g}: labels would see into the next slice; "
                f"give at least {self.label.horizon_ms:g}"
            )
        bonds = [mps.bond for mps in self.mps]
        if len(set(bonds)) < len(bonds):
            raise ValueError("two [[mps]] of one bond would share a file name; give each its bond")
