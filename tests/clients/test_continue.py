"""Continue's adapters list models, chat, complete and embed."""

import json
from pathlib import Path

from tests.clients.scripts import Talk
from tests.clients.served import serving
from tests.clients.tools import run_node
from tests.support.scripted_engine import EMBEDDING_MODEL, MODEL, ScriptedEngine, end, text


def test_continue_talks_to_a_script(tmp_path: Path) -> None:
    talk = Talk()
    completion = [*text(" three"), end()]
    engine = ScriptedEngine(talk, talk, completion)
    with serving(engine, tmp_path) as url:
        done = run_node("continue.mjs", tmp_path, f"{url}/v1/", MODEL, EMBEDDING_MODEL)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"] == "Hello there"
