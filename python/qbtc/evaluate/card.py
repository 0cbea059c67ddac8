"""Model cards: what a model file was made of and how it did beside its rivals.

``<model>.json`` is :class:`Card` as JSON, ``<model>.html`` the same as a self-contained page.
"""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from qbtc.config import DataSource, TrainConfig
from qbtc.evaluate.metrics import Interval, Scores

__all__ = [
    "Card",
    "Outcome",
    "SliceFacts",
    "SourceFacts",
    "judge",
    "revision",
    "write_card",
]


class SliceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Rows, span (UNIX ns of the first and last quote) and classes of a slice."""

    rows: int
    start_ns: int
    end_ns: int
    classes: dict[str, int]


class SourceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A data source and the manifest of its import (files, SHA-256, counts, gaps)."""

    config: DataSource
    manifest: dict[str, Any]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One model: its budget, what validation chose, and its one look at test."""

    name: str
    kind: str
    fits: int
    settings: dict[str, Any]
    """Of the fit that validation chose."""
    n_params: int
    seconds: float
    """For all fits."""
    temperature: float
    """Fitted on the calibration slice; everything below but ``validation_raw`` uses it."""
    validation_raw: float
    """The loss that chose (no temperature)."""
    validation: Scores
    test: Scores
    test_losses: list[float]
    """Of every fit, each with its own temperature, in the order of seeds or settings."""
    curves: list[list[tuple[float, float]]]
    """Train and validation loss by epoch of each seed; train is NaN (null) at the start."""
    reliability: list[tuple[float, float, int]]
    """Confidence, share right, rows; on test."""
    against: dict[str, Interval] = {}
    """Test log-loss minus that of a rival, with its interval; below 0 is better."""


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one model file."""

    model: str
    file: str
    weights_sha256: str
    """Of the file's tensors alone: equal for equal config, data and machine."""
    created: str
    revision: str
    core: str
    instrument: str
    lead: str | None
    synthetic: bool
    sources: list[SourceFacts]
    label_horizon_ns: int
    label_threshold_bp: float
    purge_ns: int
    seen_until_ns: int
    """Last instant that fitting or choosing could see; later data is out of sample."""
    slices: dict[str, SliceFacts]
    missing: dict[str, float]
    """Share of training rows in which a feature is missing, where it is not 0."""
    outcomes: dict[str, Outcome]
    verdict: str
    config: TrainConfig
    lightgbm: bool
    """LightGBM ran beside the models."""


def judge(outcomes: dict[str, Outcome], *, synthetic: bool) -> str:
    """Say who won on test and whether the interval carries it."""
    ranking = sorted(outcomes.values(), key=lambda outcome: outcome.test.log_loss)
    first, second = ranking[0], ranking[1]
    gap = first.against[second.name]
    words = [f"{first.name} has the lowest test loss ({first.test.log_loss:.4f})."]
    span = f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}] over {gap.blocks} blocks"
    if gap.high < 0:
        words.append(f"Its lead over {second.name} is {span}: clear on this test.")
    else:
        words.append(
            f"Its lead over {second.name} is {span}: the interval contains 0, so this test "
            "does not rank them."
        )
    above = [
        name
        for name, outcome in outcomes.items()
        if name != "prior" and outcome.test.log_loss >= outcomes["prior"].test.log_loss
    ]
    words.append(f"No better than the prior: {', '.join(above)}." if above else "")
    below = [name for name in outcomes if name not in (*above, "prior")]
    clear = [name for name in below if outcomes[name].against["prior"].high < 0]
    if below:
        words.append(
            f"Below the prior: {', '.join(below)}; the interval excludes 0 for "
            f"{', '.join(clear) or 'none of them'}."
        )
    if synthetic:
        words.append("The data is synthetic: nothing here says anything about a real market.")
    return " ".join(filter(None, words))


def revision() -> str:
    """Return the git commit this package lies in, with ``+`` for edits; ``unknown`` outside git."""
    here = Path(__file__).parent
    try:
        commit = _git(here, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(here, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return done.stdout.strip()


def write_card(common: Card, *, model: str, path: Path) -> Card:
    """Write ``<model>.json`` and ``<model>.html`` beside a model file and return the card."""
    from qbtc.evaluate.card_page import card_page

    card = msgspec.structs.replace(
        common, model=model, file=path.name, weights_sha256=_weights_sha256(path)
    )
    text = msgspec.json.format(msgspec.json.encode(card), indent=2)
    _write_whole(path.with_suffix(".json"), text + b"\n")
    _write_whole(path.with_suffix(".html"), card_page(card).encode())
    return card


def _weights_sha256(path: Path) -> str:
    """Hash the tensors' bytes: what follows the 8-byte length and the header of safetensors."""
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    return hashlib.sha256(content[8 + header :]).hexdigest()


def _write_whole(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
