"""The questions: TOML files of tasks, each with a check that a program can do.

A task may draw numbers (``[low, high]``, both included) and words (a list) from the seed, compute
whole numbers from them, and be asked several times; ``$name`` stands for a drawn value in every
text of the task, and a text ``#name`` in a check for the number itself.
"""

import ast
import operator
import random
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Annotated, Any

import msgspec

from qbtc.config.load import load_config
from qbtc.errors import ConfigError

__all__ = [
    "TASK_FOLDER",
    "Check",
    "Question",
    "json_check",
    "load_questions",
]

TASK_FOLDER = Path(__file__).resolve().parents[1] / "tasks"
TASK_FILES_MAX = 100
ANSWER_TOKENS_DEFAULT = 64

type Positive = Annotated[int, msgspec.Meta(ge=1, le=1_000)]


class _Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all checks; the tag is the key ``type``."""


class TextCheck(_Check, frozen=True, kw_only=True, tag="text"):
    """Equal to, with, or without texts; case, outer quotes and a final full stop do not matter."""

    equals: str | None = None
    contains: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    strict_case: bool = False


class NumberCheck(_Check, frozen=True, kw_only=True, tag="number"):
    """The last number of the answer is this one."""

    value: str


class WordsCheck(_Check, frozen=True, kw_only=True, tag="words"):
    """So many words."""

    count_min: int = 1
    count_max: int
    equal: str | None = None


class LinesCheck(_Check, frozen=True, kw_only=True, tag="lines"):
    """So many lines that are not empty."""

    count: int


class MatchesCheck(_Check, frozen=True, kw_only=True, tag="matches"):
    """A regular expression is found in the answer."""

    pattern: str


class JsonCheck(_Check, frozen=True, kw_only=True, tag="json"):
    """The answer is JSON with these values; a code fence around it does not matter."""

    equals: dict[str, Any]


class PythonCheck(_Check, frozen=True, kw_only=True, tag="python"):
    """The answer, or prompt and answer together, define a function that gives these results."""

    call: str
    cases: tuple[tuple[list[Any], Any], ...]


type Check = (
    TextCheck | NumberCheck | WordsCheck | LinesCheck | MatchesCheck | JsonCheck | PythonCheck
)


class _Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: str
    prompt: str
    check: Check
    system: str = ""
    continues: bool = False
    """The prompt is a text to continue, not a message."""
    max_tokens: Positive = ANSWER_TOKENS_DEFAULT
    repeat: Positive = 1
    draw: dict[str, list[int | str]] = {}
    compute: dict[str, str] = {}
    compute_upper: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None


class _TaskFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    about: str
    task: tuple[_Task, ...]


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to ask, with everything needed to judge the answer."""

    id: str
    kind: str
    """Name of its file: ``arithmetic``, ``code``, ..."""
    prompt: str
    check: Check
    system: str = ""
    continues: bool = False
    max_tokens: int = ANSWER_TOKENS_DEFAULT
    schema: dict[str, Any] | None = None


def json_check(check: Check) -> Any:
    """Plain values of a check, for JSON."""
    return msgspec.to_builtins(check)


def load_questions(folder: Path = TASK_FOLDER, *, seed: int) -> list[Question]:
    """Read a folder's task files and draw their questions; the same seed gives the same ones.

    Raises
    ------
    ConfigError
        No task files, or one that does not fit; names the file and the task.
    """
    files = sorted(folder.glob("*.toml"))[:TASK_FILES_MAX]
    if not files:
        raise ConfigError(f"{folder}: no task files (*.toml) there")
    questions = [each for file in files for each in _questions_of(file, seed)]
    ids = [question.id for question in questions]
    if twice := {name for name in ids if ids.count(name) > 1}:
        raise ConfigError(f"{folder}: two tasks are called {min(twice)}; rename one")
    return questions


def _questions_of(file: Path, seed: int) -> list[Question]:
    kind = file.stem
    questions = []
    for task in load_config(file, _TaskFile).task:
        rng = random.Random(f"{seed}/{kind}/{task.id}")
        for number in range(1, task.repeat + 1):
            name = f"{kind}/{task.id}" + (f"/{number}" if task.repeat > 1 else "")
            try:
                questions.append(_question(task, kind, name, rng))
            except (KeyError, ValueError, msgspec.ValidationError) as error:
                raise ConfigError(f"{file}: task {task.id}: {error}") from None
    return questions


def _question(task: _Task, kind: str, name: str, rng: random.Random) -> Question:
    values: dict[str, Any] = {key: _draw(choices, rng) for key, choices in task.draw.items()}
    for key, formula in task.compute.items():
        values[key] = compute(formula, values)
    for key in task.compute_upper:
        values[f"{key}_upper"] = str(values[key]).upper()

    def fill(node: Any) -> Any:
        match node:
            case str() if node.startswith("#") and node[1:] in values:
                return values[node[1:]]
            case str() if values:
                return Template(node).substitute(values)
            case dict():
                return {key: fill(value) for key, value in node.items()}
            case list() | tuple():
                return [fill(value) for value in node]
        return node

    return Question(
        id=name,
        kind=kind,
        prompt=fill(task.prompt),
        check=msgspec.convert(fill(json_check(task.check)), Check),
        system=fill(task.system),
        continues=task.continues,
        max_tokens=task.max_tokens,
        schema=task.schema,
    )


def _draw(choices: list[int | str], rng: random.Random) -> int | str:
    match choices:
        case [int() as low, int() as high]:
            return rng.randint(low, high)
        case [_, *_] if all(isinstance(choice, str) for choice in choices):
            return rng.choice(choices)
    raise ValueError(f"draw from two numbers or from words, not from {choices}")


_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def compute(formula: str, values: dict[str, Any]) -> int:
    """Value of a formula of whole numbers, names, + - * // % and parentheses."""

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int() as number):
                return number
            case ast.Name(id=name) if isinstance(values.get(name), int):
                return int(values[name])
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
        raise ValueError(f"formula {formula!r}: cannot compute {ast.unparse(node)!r}")

    return value(ast.parse(formula, mode="eval").body)
