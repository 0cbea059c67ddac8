"""``qbtc chat`` and ``qbtc eval`` with the real default model, as a person and as a script."""

import io
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qbtc.errors import InputError
from qbtc.llm import terminal
from qbtc.llm.evaluate.commands import evaluate
from qbtc.llm.terminal import chat, printable

GREEDY = ("--temperature", "0", "--max-tokens", "12")
TASKS = """
about = "Two of our own."

[[task]]
id = "capital"
repeat = 2
continues = true
prompt = "The capital of $land is"
draw = { land = ["France"] }
max_tokens = 4
check = { type = "text", contains = ["Paris"] }

[[task]]
id = "never"
prompt = "Say hello."
max_tokens = 4
check = { type = "text", equals = "nobody says this" }
"""


def invoke(command: Any, *arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(command, list(arguments), input=given, catch_exceptions=False)


def test_one_answer_comes_as_json_and_the_same_seed_gives_it_again() -> None:
    answers = [
        invoke(chat, "Name a river.", "--seed", "5", "--max-tokens", "12", "--json").stdout
        for _ in range(2)
    ]
    first, again = (json.loads(answer) for answer in answers)
    assert first["answer"] == again["answer"] != ""
    assert (first["seed"], first["finish"]) == (5, again["finish"])
    assert first["model"] == "smollm2-135m-instruct"
    assert first["usage"]["completion_tokens"] <= 12


def test_a_pipe_gets_the_answer_alone() -> None:
    told = invoke(chat, "What is the capital of France?", *GREEDY, given="Answer shortly.\n")
    assert told.exit_code == 0
    assert told.stdout.strip()
    assert "tokens" not in told.stdout
    assert "tokens/s" in told.stderr


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_person_can_talk_forget_and_leave(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["What is the capital of France?", "/clear", "/help", "", "And of Italy?"])
    asked: list[int] = []
    turns = terminal._turn

    def turn(*arguments: Any) -> None:
        turns(*arguments)
        asked.append(len(arguments[2].turns))

    def read(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("sys.stdin", Keyboard())
    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(terminal, "_turn", turn)
    chat.main(list(GREEDY), standalone_mode=False)
    shown = capsys.readouterr()
    assert shown.out.strip()
    assert "Ctrl-C stops" in shown.err
    assert asked == [2, 2], "a question and an answer, then forgotten, then again"


def test_ctrl_c_stops_an_answer_and_not_the_talk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["Tell me a very long story.", "/exit"])
    monkeypatch.setattr("sys.stdin", Keyboard())
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    shown: list[str] = []

    def interrupt(text: str) -> str:
        shown.append(text)
        if len(shown) == 3:
            signal.raise_signal(signal.SIGINT)
        return text

    monkeypatch.setattr(terminal, "printable", interrupt)
    chat.main(["--temperature", "0"], standalone_mode=False)
    assert "stopped" in capsys.readouterr().err
    assert 3 <= len(shown) < 1000


def test_a_model_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\r\n\tc\x9b") == "a[2Jb\n\tc"


@pytest.mark.parametrize(
    ("arguments", "given", "says"),
    [
        (["--json"], None, "stdin is empty"),
        ([], " \n", "stdin is empty"),
        (["hi", "--model", "no-such-model"], None, "no model 'no-such-model'"),
        (["hi", "--model", "/none/x.gguf"], None, "no such model file"),
        (["x " * 20_000], None, "maximum context length is 8192"),
    ],
)
def test_what_cannot_be_answered_says_why(
    arguments: list[str], given: str | None, says: str
) -> None:
    done = CliRunner().invoke(chat, arguments, input=given)
    assert done.exception is not None
    assert says in str(done.exception)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_bytes_that_are_no_text_are_refused(monkeypatch: pytest.MonkeyPatch, errors: str) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"a\xff\xfe"), encoding="utf-8", errors=errors)
    monkeypatch.setattr("sys.stdin", stdin)
    assert chat.callback is not None
    with pytest.raises(InputError, match="UTF-8"):
        chat.callback(None, None, "", 0.0, 0.9, 4, None, None, False)


def test_an_evaluation_is_stored_and_counted_again(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "own.toml").write_text(TASKS)
    done = invoke(
        *(evaluate, "llm", "--tasks", str(tasks), "--out", str(tmp_path / "runs")),
        *("--no-reference", "--json"),
    )
    score = json.loads(done.stdout)
    assert (score["total"]["right"], score["total"]["asked"]) == (2, 3)
    assert [wrong["id"] for wrong in score["wrong"]] == ["own/never"]
    assert score["fidelity"] is None
    [folder] = (tmp_path / "runs").iterdir()
    again = invoke(evaluate, "score", str(folder), "--json")
    assert json.loads(again.stdout) == score
    table = invoke(evaluate, "score", str(folder), "--wrong")
    assert "own/never" in table.stderr
    assert "67%" in table.stderr
