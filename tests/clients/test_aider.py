"""Aider edits a file in a repository by an edit block that a script writes."""

import subprocess
from pathlib import Path

from tests.clients.served import serving
from tests.clients.test_cline import AFTER, repository
from tests.clients.tools import python_of, run
from tests.support.scripted_engine import MODEL, ScriptedEngine, end, text

from qbtc.messages.language import ChatRequest

REQUIREMENT = "aider-chat==0.86.2"
QUIET = (
    "--yes-always",
    "--no-check-update",
    "--no-show-model-warnings",
    "--no-show-release-notes",
    "--analytics-disable",
    "--no-gitignore",
    "--no-auto-commits",
    "--no-pretty",
    "--no-detect-urls",
    "--map-tokens",
    "0",
)
BLOCK = """Half the sum is the mid.

prices.py
```python
<<<<<<< SEARCH
    return bid + ask
=======
    return (bid + ask) / 2
>>>>>>> REPLACE
```
"""


def aider(folder: Path, url: str, model: str, words: str, *more: str) -> tuple[int, str]:
    """Let aider do one task; exit code and everything it wrote."""
    python = python_of(REQUIREMENT, older_than=(3, 13))
    home = folder / "home"
    home.mkdir()
    command = [python, "-m", "aider", "--model", f"openai/{model}", *QUIET, *more]
    done = run(
        [*command, "--message", words, "prices.py"],
        folder / "repo",
        home=home,
        env={"OPENAI_API_BASE": f"{url}/v1", "OPENAI_API_KEY": "unused"},
        within_s=480,
    )
    return done.returncode, done.stdout + done.stderr


def test_aider_applies_an_edit_block(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    engine = ScriptedEngine([*text(*BLOCK.splitlines(keepends=True)), end()])
    with serving(engine, tmp_path) as url:
        code, output = aider(tmp_path, url, MODEL, "Mend mid.", "--edit-format", "diff")
    assert code == 0, output
    assert (repo / "prices.py").read_text(encoding="utf-8") == AFTER, output
    changed = subprocess.run(
        ["git", "diff", "--stat"], cwd=repo, capture_output=True, text=True, check=True
    )
    assert "prices.py" in changed.stdout
    asked = engine.asked[0]
    assert isinstance(asked, ChatRequest)
    assert asked.sampling.temperature == 0
