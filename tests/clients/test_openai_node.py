"""OpenAI's client for Node, whole: chats, streams, tools, JSON, embeddings, responses, errors."""

import time
from pathlib import Path

from tests.clients.scripts import Talk
from tests.clients.served import serving
from tests.clients.tools import run_node
from tests.support.scripted_engine import ScriptedEngine


def test_openai_for_node_gets_what_it_expects(tmp_path: Path) -> None:
    engine = ScriptedEngine(Talk())
    with serving(engine, tmp_path) as url:
        done = run_node("openai.mjs", tmp_path, f"{url}/v1")
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
        # While the server is up: its end would cancel what is left, too.
        until = time.monotonic() + 30
        while engine.cancelled == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert engine.cancelled == 1
