"""Cline's command line edits a file in a repository, told what to do by a script."""

import json
import platform
import subprocess
from pathlib import Path

from tests.clients.served import serving
from tests.clients.tools import missing, node_folder, run
from tests.support.scripted_engine import MODEL, Script, ScriptedEngine, call, end, text

from qbtc.messages.language import ChatRequest

BEFORE = "def mid(bid, ask):\n    return bid + ask\n"
AFTER = "def mid(bid, ask):\n    return (bid + ask) / 2\n"


def cline(
    folder: Path, url: str, model: str, words: str
) -> tuple[int, list[dict[str, object]], str]:
    """Let Cline do one task; exit code, its JSON events, and what it wrote besides."""
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    modules = node_folder() / "node_modules"
    if not (modules / "@cline" / f"cli-linux-{machine}").is_dir():
        missing(f"Cline has no program for {platform.system()} {machine}")
    program = modules / ".bin" / "cline"
    home = folder / "home"
    home.mkdir()
    setting = ("-p", "openai", "-k", "unused", "-m", model, "-b", f"{url}/v1")
    configured = run([program, "auth", *setting], folder / "repo", home=home)
    assert configured.returncode == 0, configured.stderr
    done = run(
        [program, "--json", "-t", "280", "-c", folder / "repo", words], folder / "repo", home=home
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return done.returncode, [json.loads(line) for line in lines], done.stdout + done.stderr


def repository(folder: Path) -> Path:
    """Make a git repository with one file, committed."""
    repo = folder / "repo"
    repo.mkdir()
    (repo / "prices.py").write_text(BEFORE, encoding="utf-8")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", "Start"],
    ):
        subprocess.run(["git", *command], cwd=repo, check=True)
    return repo


def test_cline_completes_one_real_edit(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    edit = {
        "path": str(repo / "prices.py"),
        "old_text": "return bid + ask",
        "new_text": "return (bid + ask) / 2",
    }
    arguments = json.dumps(edit)

    def script(request: ChatRequest) -> Script:
        if request.messages[-1].role == "tool":
            return [*text("The mid is now half the sum."), end()]
        assert "editor" in {tool.name for tool in request.tools}
        half = len(arguments) // 2
        return [*call("editor", arguments[:half], arguments[half:]), end("tool_calls")]

    engine = ScriptedEngine(script)
    with serving(engine, tmp_path) as url:
        code, events, output = cline(tmp_path, url, MODEL, "Mend mid in prices.py.")
    assert code == 0, output
    assert (repo / "prices.py").read_text(encoding="utf-8") == AFTER
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=repo, capture_output=True, text=True, check=True
    )
    assert status.stdout == " M prices.py\n"
    result = next(event for event in events if event.get("type") == "run_result")
    assert result["finishReason"] == "completed"
    assert result["text"] == "The mid is now half the sum."
    asked = engine.asked[-1]
    assert isinstance(asked, ChatRequest)
    assert [message.role for message in asked.messages][-2:] == ["assistant", "tool"]
