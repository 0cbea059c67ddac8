"""Count what was right, from the stored answers alone, and say how sure the shares are."""

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from qbtc.core.fidelity import WindowFidelity
from qbtc.errors import DataError
from qbtc.llm.evaluate.judge import judge
from qbtc.llm.evaluate.run import ANSWERS, FIDELITY, RUN, Answer, EvalRun

__all__ = ["Fidelity", "Score", "Share", "Wrong", "score_run", "wilson"]

Z_95 = 1.959963984540054
"""The normal distribution's 97.5 % point."""
FILE_BYTES_MAX = 100_000_000


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """How many of how many, with a 95 % interval."""

    right: int
    asked: int
    low: float
    high: float


class Wrong(msgspec.Struct, frozen=True, kw_only=True):
    """A wrong answer."""

    id: str
    why: str
    answer: str


class Fidelity(msgspec.Struct, frozen=True, kw_only=True):
    """The engine beside the f32 reference on the same weights and text."""

    tokens: int
    perplexity: float
    reference_perplexity: float
    kl_mean: float
    """Divergence of the engine's next-token distributions from the reference's, nats."""
    kl_max: float
    agreement: float
    """Share of positions where both find the same token most likely."""


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to."""

    run: EvalRun
    total: Share
    kinds: dict[str, Share]
    wrong: tuple[Wrong, ...]
    fidelity: Fidelity | None
    completion_tokens: int


def score_run(folder: Path) -> Score:
    """Judge the stored answers of a run.

    Raises
    ------
    DataError
        A file of the run is missing or damaged; names it.
    """
    run = _read(folder / RUN, EvalRun)
    answers = _read_lines(folder / ANSWERS, Answer)
    if len(answers) != run.questions:
        raise DataError(
            f"{folder}: {len(answers)} answers to {run.questions} questions; the run broke off"
        )
    verdicts = [
        (each, judge(each.question.check, each.question.prompt, each.text)) for each in answers
    ]
    kinds: dict[str, list[bool]] = {}
    for answer, why in verdicts:
        kinds.setdefault(answer.question.kind, []).append(not why)
    windows = _read_lines(folder / FIDELITY, WindowFidelity) if (folder / FIDELITY).exists() else []
    return Score(
        run=run,
        total=_share([not why for _, why in verdicts]),
        kinds={kind: _share(found) for kind, found in sorted(kinds.items())},
        wrong=tuple(
            Wrong(id=answer.question.id, why=why, answer=answer.text)
            for answer, why in verdicts
            if why
        ),
        fidelity=_fidelity(windows) if windows else None,
        completion_tokens=sum(answer.usage.completion_tokens for answer in answers),
    )


def wilson(right: int, asked: int) -> tuple[float, float]:
    """95 % interval of a share: Wilson 1927, equation 4 of Brown, Cai, DasGupta 2001."""
    if asked == 0:
        return 0.0, 1.0
    share, weight = right / asked, Z_95**2 / asked
    centre = (share + weight / 2) / (1 + weight)
    half = Z_95 * math.sqrt(share * (1 - share) / asked + weight / (4 * asked)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def _share(verdicts: Sequence[bool]) -> Share:
    right, asked = sum(verdicts), len(verdicts)
    low, high = wilson(right, asked)
    return Share(right=right, asked=asked, low=low, high=high)


def _fidelity(windows: Sequence[WindowFidelity]) -> Fidelity:
    """Weigh windows by the tokens foreseen in each."""
    tokens = sum(window.tokens for window in windows)

    def mean(values: Sequence[float]) -> float:
        weighted = zip(windows, values, strict=True)
        return sum(window.tokens * value for window, value in weighted) / tokens

    return Fidelity(
        tokens=tokens,
        perplexity=math.exp(mean([window.loss for window in windows])),
        reference_perplexity=math.exp(mean([window.reference_loss for window in windows])),
        kl_mean=mean([window.kl_mean for window in windows]),
        kl_max=max(window.kl_max for window in windows),
        agreement=mean([window.agreement for window in windows]),
    )


def _bytes_of(path: Path) -> bytes:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise DataError(f"{path}: larger than {FILE_BYTES_MAX} bytes; is it of a run?")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; is it an evaluation's folder?") from None


def _read[T](path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(_bytes_of(path), type=kind)
    except msgspec.MsgspecError as error:
        raise DataError(f"{path}: {error}; run the evaluation again") from None


def _read_lines[T](path: Path, kind: type[T]) -> list[T]:
    try:
        return msgspec.json.Decoder(kind).decode_lines(_bytes_of(path))
    except msgspec.MsgspecError as error:
        raise DataError(f"{path}: {error}; run the evaluation again") from None
