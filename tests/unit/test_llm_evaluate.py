"""Questions, judges and scores of the language evaluation; no model needed."""

import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbtc.core.build import BuildInfo
from qbtc.core.fidelity import WindowFidelity
from qbtc.errors import ConfigError, DataError
from qbtc.llm.evaluate.code import CodeRefused, function_of
from qbtc.llm.evaluate.judge import judge
from qbtc.llm.evaluate.run import (
    ANSWERS,
    FIDELITY,
    RUN,
    Answer,
    EvalRun,
    fidelity_texts,
    write_lines,
)
from qbtc.llm.evaluate.score import score_run, wilson
from qbtc.llm.evaluate.tasks import Check, PythonCheck, Question, compute, load_questions
from qbtc.messages.language import Usage


def check_of(**fields: Any) -> Check:
    return msgspec.convert(fields, Check)


def test_the_same_seed_asks_the_same_questions() -> None:
    first, again, other = (load_questions(seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert {question.kind for question in first} == {
        *("arithmetic", "code", "editing", "extraction", "instructions")
    }
    assert len({question.id for question in first}) == len(first) >= 100
    assert not any("$" in question.prompt for question in first)


def test_every_question_can_be_answered_right() -> None:
    solutions = {
        "add": " a + b",
        "clamp": " max(low, min(x, high))\n\nand so on",
        "count_vowels": """Here it is:
```python
def count_vowels(text):
    return sum(c in 'aeiou' for c in text)
```""",
    }
    for question in load_questions(seed=3):
        match question.check:
            case PythonCheck(call=name) if name in solutions:
                assert judge(question.check, question.prompt, solutions[name]) == ""
            case PythonCheck():
                assert judge(question.check, question.prompt, "    return 'no'") != ""


@pytest.mark.parametrize(
    ("fields", "right", "wrong"),
    [
        ({"type": "text", "equals": "River"}, ' "river." ', "The river"),
        ({"type": "text", "equals": "RIVER", "strict_case": True}, "RIVER", "river"),
        ({"type": "text", "contains": ["a b"], "excludes": ["c"]}, "xA by", "a b c"),
        ({"type": "number", "value": "1200"}, "It is 3 x 400 = 1,200.", "1200 or 7"),
        ({"type": "number", "value": "-4"}, "-4", "none"),
        ({"type": "number", "value": "2"}, "1, 2, so it is 2, then", "1,200, 22"),
        ({"type": "words", "count_max": 3}, "one two three", "one two three four"),
        ({"type": "words", "count_max": 1, "equal": "yes"}, "Yes.", "no"),
        ({"type": "lines", "count": 2}, "a\n\nb\n", "a"),
        ({"type": "matches", "pattern": r"DONE\W*\Z"}, "Hi. DONE!", "DONE and more"),
        ({"type": "json", "equals": {"n": 1}}, '```json\n{"n": 1, "m": 2}\n```', '{"n": "1"}'),
        ({"type": "json", "equals": {"n": 1}}, ' {"n": 1} ', "[1]"),
        ({"type": "json", "equals": {"n": 1}}, '{"n":1.0}', "{" * 5000),
    ],
)
def test_a_judge_tells_right_from_wrong(fields: dict[str, Any], right: str, wrong: str) -> None:
    check = check_of(**fields)
    assert judge(check, "", right) == ""
    assert judge(check, "", wrong) != ""


F = check_of(type="python", call="f", cases=[[[1, 2], 3], [[2, 2], 4]])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("    return a + b\n\nf(1) is how you call it", ""),
        ("    return a", r"f\(1, 2\) is 1, not 3"),
        ("    return [a][b]", "raised IndexError"),
        ("    while True:\n        pass", "did not"),
        ("    return [0] * 10**11", "raised MemoryError"),
        ("    import os\n    return 3", "Import is not allowed"),
        ("    return a.__class__", "attribute __class__ is not allowed"),
        ("    return (x for x in [1]).gi_frame", "attribute gi_frame is not allowed"),
        ("    return __import__", "name __import__ is not allowed"),
        ("    return open('/etc/passwd')", "name 'open' is not defined"),
        ("    return '{0.x}'.format(a)", "attribute format is not allowed"),
        ("    return {1}", "did not run"),
        ("not python at all (", "no function f that parses"),
        ("    return True", "not 3"),
    ],
)
def test_code_is_run_behind_two_fences(body: str, says: str) -> None:
    why = judge(F, "def f(a, b):\n", body)
    assert re.search(says, why) if says else why == ""


@given(st.text(max_size=200))
def test_no_text_breaks_a_judge(text: str) -> None:
    for question in load_questions(seed=1)[::7]:
        if not isinstance(question.check, PythonCheck):
            judge(question.check, question.prompt, text)
    with suppress(CodeRefused):
        function_of("def f(a, b):\n" + text, "f")


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ('check = { type = "number", value = "$none" }\ndraw = { a = [1, 2] }', "none"),
        ('check = { type = "guess" }', "guess"),
        ('check = { type = "number", value = "1" }\ncompute = { a = "open(1)" }', "cannot compute"),
        ('check = { type = "number", value = "1" }\ndraw = { a = [1, "b"] }', "from words"),
        ('check = { type = "number", value = "1" }\nrepeat = 0', "repeat"),
        ("", "missing key 'check'"),
    ],
)
def test_a_task_that_does_not_fit_is_named(task: str, says: str, tmp_path: Path) -> None:
    text = f'about = "x"\n[[task]]\nid = "t"\nprompt = "p"\n{task}\n'
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_questions(tmp_path, seed=1)


def test_a_folder_without_tasks_and_a_name_used_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no task files"):
        load_questions(tmp_path, seed=1)
    task = '[[task]]\nid = "t"\nprompt = "p"\ncheck = { type = "number", value = "1" }\n'
    (tmp_path / "own.toml").write_text(f'about = "x"\n{task}{task}')
    with pytest.raises(ConfigError, match="two tasks are called own/t"):
        load_questions(tmp_path, seed=1)


def test_formulas_are_arithmetic_only() -> None:
    assert compute("(a + 3) * b // 2 - 1 % 5", {"a": 1, "b": 7}) == 13


def run_of(folder: Path, texts: list[str]) -> Path:
    """A stored run whose questions all want the number 1."""
    check = check_of(type="number", value="1")
    run = EvalRun(
        model="m",
        sha256="00",
        quantization="Q4_1",
        parameters=1,
        seed=1,
        started="2026-01-01T00:00:00+00:00",
        questions=len(texts),
        build=BuildInfo("0", "release", "0"),
    )
    (folder / RUN).write_bytes(msgspec.json.encode(run))
    usage = Usage(prompt_tokens=1, completion_tokens=2)
    write_lines(
        folder / ANSWERS,
        [
            Answer(
                question=Question(id=f"k/{n}", kind="k", prompt="p", check=check),
                text=text,
                finish="stop",
                usage=usage,
            )
            for n, text in enumerate(texts)
        ],
    )
    return folder


def test_a_score_is_counted_from_the_stored_answers_alone(tmp_path: Path) -> None:
    folder = run_of(tmp_path, ["1", "2", "is 1", ""])
    score = score_run(folder)
    assert (score.total.right, score.total.asked, score.completion_tokens) == (2, 4, 8)
    assert [wrong.id for wrong in score.wrong] == ["k/1", "k/3"]
    assert score.fidelity is None
    assert score.total.low < 0.5 < score.total.high
    # The same files, one answer changed by hand: the score follows.
    text = (folder / ANSWERS).read_text()
    (folder / ANSWERS).write_text(text.replace('"text":"2"', '"text":"1"'))
    assert score_run(folder).total.right == 3


def test_fidelity_weighs_windows_by_their_tokens(tmp_path: Path) -> None:
    folder = run_of(tmp_path, ["1"])
    windows = [
        WindowFidelity(
            tokens=tokens,
            loss=loss,
            reference_loss=1.0,
            kl_mean=kl,
            kl_p99=kl,
            kl_max=kl,
            agreement=1.0,
        )
        for tokens, loss, kl in ((10, 2.0, 0.1), (30, 1.0, 0.5))
    ]
    write_lines(folder / FIDELITY, windows)
    found = score_run(folder).fidelity
    assert found is not None
    assert found.perplexity == pytest.approx(math.exp(1.25))
    assert (found.tokens, found.kl_max, found.kl_mean) == (40, 0.5, pytest.approx(0.4))


def test_a_run_that_broke_off_or_is_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is it an evaluation's folder"):
        score_run(tmp_path)
    folder = run_of(tmp_path, ["1", "1"])
    lines = (folder / ANSWERS).read_text().splitlines()
    (folder / ANSWERS).write_text(lines[0] + "\n")
    with pytest.raises(DataError, match="1 answers to 2 questions"):
        score_run(folder)
    (folder / ANSWERS).write_text(lines[0][:50])
    with pytest.raises(DataError, match=ANSWERS):
        score_run(folder)


def test_wilson_intervals_are_the_textbooks() -> None:
    # Brown, Cai, DasGupta 2001: never empty, never outside [0, 1], symmetric.
    low, high = wilson(10, 20)
    assert (low + high, low) == (pytest.approx(1.0), pytest.approx(0.2993, abs=5e-5))
    assert wilson(0, 10)[0] == 0.0 < wilson(0, 10)[1] < 0.31
    assert wilson(10, 10)[1] == pytest.approx(1.0)
    assert wilson(0, 0) == (0.0, 1.0)


def test_fidelity_texts_are_there() -> None:
    assert len(fidelity_texts()) == 6
