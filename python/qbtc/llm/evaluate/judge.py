"""Is one answer right? Pure functions of the stored text: the same text, the same verdict."""

import re
from typing import Any

import msgspec

from qbtc.llm.evaluate.code import CodeRefused, function_of, run_function
from qbtc.llm.evaluate.tasks import (
    Check,
    JsonCheck,
    LinesCheck,
    MatchesCheck,
    NumberCheck,
    PythonCheck,
    TextCheck,
    WordsCheck,
)

__all__ = ["judge"]

ANSWER_CHARACTERS_MAX = 100_000

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
_FENCE = re.compile(r"```\w*\n(.*?)(?:\n?```|\Z)", re.DOTALL)


def judge(check: Check, prompt: str, answer: str) -> str:
    """Why an answer is wrong; empty if it is right."""
    answer = answer[:ANSWER_CHARACTERS_MAX]
    match check:
        case TextCheck():
            return _text(check, answer)
        case NumberCheck():
            return _number(check, answer)
        case WordsCheck():
            return _words(check, answer)
        case LinesCheck():
            lines = sum(1 for line in answer.splitlines() if line.strip())
            return "" if lines == check.count else f"{lines} lines, not {check.count}"
        case MatchesCheck():
            found = re.search(check.pattern, answer.strip())
            return "" if found else f"does not match {check.pattern}"
        case JsonCheck():
            return _json(check, answer)
        case PythonCheck():
            return _python(check, prompt, answer)


def _plain(text: str) -> str:
    return text.strip().strip("\"'`").strip().removesuffix(".")


def _text(check: TextCheck, answer: str) -> str:
    fold = str if check.strict_case else str.casefold
    said = fold(answer)
    if check.equals is not None and _plain(said) != _plain(fold(check.equals)):
        return f"is not {check.equals!r}"
    for part in check.contains:
        if fold(part) not in said:
            return f"lacks {part!r}"
    for part in check.excludes:
        if fold(part) in said:
            return f"has {part!r}"
    return ""


def _number(check: NumberCheck, answer: str) -> str:
    numbers = _NUMBER.findall(answer)
    if not numbers:
        return f"no number; {check.value} is right"
    last = float(numbers[-1].replace(",", ""))
    return "" if last == float(check.value) else f"{numbers[-1]}, not {check.value}"


def _words(check: WordsCheck, answer: str) -> str:
    words = answer.split()
    if not check.count_min <= len(words) <= check.count_max:
        return f"{len(words)} words, not {check.count_min} to {check.count_max}"
    if check.equal is not None and _plain(answer).casefold() != check.equal.casefold():
        return f"is not {check.equal!r}"
    return ""


def _json(check: JsonCheck, answer: str) -> str:
    fenced = _FENCE.search(answer)
    try:
        found: Any = msgspec.json.decode(fenced[1] if fenced else answer.strip())
    except (msgspec.MsgspecError, RecursionError) as error:
        return f"is not JSON: {error}"
    if not isinstance(found, dict):
        return "is not a JSON object"
    for key, value in check.equals.items():
        if found.get(key) != value:
            return f"{key} is {found.get(key)!r}, not {value!r}"
    return ""


def _python(check: PythonCheck, prompt: str, answer: str) -> str:
    fenced = _FENCE.search(answer)
    # A function in the answer stands for itself; what is left continues the prompt.
    text = fenced[1] if fenced else answer if f"def {check.call}" in answer else prompt + answer
    try:
        source = function_of(text, check.call)
        results = run_function(source, check.call, [arguments for arguments, _ in check.cases])
    except CodeRefused as error:
        return str(error)
    for (arguments, wanted), (how, result) in zip(check.cases, results, strict=True):
        if how == "raised":
            return f"{check.call}{tuple(arguments)} raised {result}"
        # JSON has one kind of number; yes and no are not 1 and 0.
        if result != wanted or isinstance(result, bool) != isinstance(wanted, bool):
            return f"{check.call}{tuple(arguments)} is {result!r}, not {wanted!r}"
    return ""
