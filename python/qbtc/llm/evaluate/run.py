"""Ask every question and store every raw answer; nothing is judged here.

A run directory holds ``run.json`` (which model, which seed, when), ``answers.jsonl`` (question,
check and answer, one a line) and ``fidelity.jsonl`` (how near the engine's distributions are to
the f32 reference's, one window of text a line). :mod:`qbtc.llm.evaluate.score` reads only these.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from qbtc.core.build import BuildInfo, build_info
from qbtc.core.fidelity import WindowFidelity
from qbtc.errors import RunFailed
from qbtc.llm.engine import Engine
from qbtc.llm.evaluate.tasks import TASK_FOLDER, Question
from qbtc.llm.models import ModelFile
from qbtc.messages.language import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    Finished,
    ResponseFormat,
    Sampling,
    TextDelta,
    Usage,
)

__all__ = [
    "ANSWERS",
    "FIDELITY",
    "RUN",
    "Answer",
    "EvalRun",
    "answer_questions",
    "begin_run",
    "fidelity_texts",
    "write_lines",
]

RUN, ANSWERS, FIDELITY = "run.json", "answers.jsonl", "fidelity.jsonl"
CONCURRENT_MAX = 16
CONTINUATION_STOPS = ("\ndef ", "\nclass ", "\nprint", "\n#", "\nif __name__", "```")
"""A function ends where the next thing begins."""


class EvalRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was made with."""

    model: str
    sha256: str
    quantization: str
    parameters: int
    seed: int
    started: str
    """ISO 8601, UTC."""
    questions: int
    build: BuildInfo


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A question and what the model said, verbatim."""

    question: Question
    text: str
    finish: str
    usage: Usage


def begin_run(folder: Path, model: ModelFile, sha256: str, *, seed: int, questions: int) -> Path:
    """Make the run directory and say in it what is about to be run.

    Raises
    ------
    RunFailed
        It cannot be written.
    """
    now = datetime.now(UTC)
    path = folder / f"eval-{now:%Y%m%dT%H%M%S}-{model.id}"
    run = EvalRun(
        model=model.id,
        sha256=sha256,
        quantization=model.quantization,
        parameters=model.parameters,
        seed=seed,
        started=now.isoformat(timespec="seconds"),
        questions=questions,
        build=build_info(),
    )
    try:
        path.mkdir(parents=True)
        (path / RUN).write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=2))
    except OSError as error:
        raise RunFailed(f"{path}: cannot be written: {error.strerror}") from None
    return path


async def answer_questions(
    engine: Engine,
    model: str,
    questions: Sequence[Question],
    *,
    on_answer: Callable[[Answer], None] = lambda _: None,
) -> list[Answer]:
    """Ask them all, several at once, always the most likely token; answers in order.

    How many are asked at once does not change an answer.
    """
    gate = asyncio.Semaphore(CONCURRENT_MAX)

    async def ask(question: Question) -> Answer:
        async with gate:
            answer = await _ask(engine, model, question)
        on_answer(answer)
        return answer

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(question)) for question in questions]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _ask(engine: Engine, model: str, question: Question) -> Answer:
    sampling = Sampling(temperature=0.0, seed=0)
    limit = question.max_tokens
    if question.continues:
        events = engine.complete(
            CompletionRequest(
                model=model,
                prompt=question.prompt,
                sampling=sampling,
                max_tokens=limit,
                stop=CONTINUATION_STOPS,
            )
        )
    else:
        system = (ChatMessage(role="system", content=question.system),) if question.system else ()
        form = ResponseFormat()
        if question.schema is not None:
            form = ResponseFormat(type="json_schema", schema=question.schema)
        events = engine.chat(
            ChatRequest(
                model=model,
                messages=(*system, ChatMessage(role="user", content=question.prompt)),
                sampling=sampling,
                max_tokens=limit,
                response_format=form,
            )
        )
    parts: list[str] = []
    end: Finished | None = None
    async for event in events:
        if isinstance(event, TextDelta):
            parts.append(event.text)
        elif isinstance(event, Finished):
            end = event
    if end is None:
        raise RunFailed(f"{question.id}: the answer broke off")
    return Answer(question=question, text="".join(parts), finish=end.reason, usage=end.usage)


def fidelity_texts() -> list[str]:
    """Texts that both forward passes foresee: prose, code, a recipe, Spanish, JSON."""
    text = (TASK_FOLDER / "fidelity.txt").read_text(encoding="utf-8")
    return [part for part in text.strip().split("\n\n") if part]


def write_lines(path: Path, rows: Sequence[Answer] | Sequence[WindowFidelity]) -> None:
    """Write one JSON value a line.

    Raises
    ------
    RunFailed
        The file cannot be written.
    """
    try:
        path.write_bytes(msgspec.json.Encoder().encode_lines(rows))
    except OSError as error:
        raise RunFailed(f"{path}: cannot be written: {error.strerror}") from None
