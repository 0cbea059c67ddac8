"""``qbtc schemas`` as a person or a program calls it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qbtc.bus.channels import examples
from qbtc.messages import contracts
from qbtc.messages.codec import encode
from qbtc.messages.events import TYPES

type Here = Callable[..., tuple[int, str, str]]


def test_every_type_is_listed_with_where_it_goes(here: Here) -> None:
    code, out, err = here("schemas", "list")
    assert (code, out) == (0, "")
    assert all(type in err for type in TYPES)
    code, out, _ = here("schemas", "list", "--json")
    rows = {row["type"]: row for row in json.loads(out)}
    assert set(rows) == set(TYPES)
    assert rows["qbtc.llm.request.v2"]["goes"] == [
        {"exchange": "requests_exchange", "key": "llm.request", "queue": "q_llm_requests"}
    ]


def test_messages_of_both_versions_are_fine(here: Here, tmp_path: Path) -> None:
    (tmp_path / "message.json").write_bytes(encode(examples("qbtc.trading.signal.v2")[0]))
    old = contracts.load("v1/trading_request")["examples"][0]
    (tmp_path / "old.json").write_text(json.dumps(old, indent=2))
    code, out, err = here("schemas", "check", "message.json", "old.json", "--json")
    assert code == 0
    assert [(row["file"], row["type"]) for row in json.loads(out)] == [
        ("message.json", "qbtc.trading.signal.v2"),
        ("old.json", "qbtc.trading.request.v2"),
    ]
    assert "fine  message.json: qbtc.trading.signal.v2" in err


def test_what_is_wrong_and_where_is_said_of_every_file(here: Here, tmp_path: Path) -> None:
    good = json.loads(encode(examples("qbtc.trading.signal.v2")[0]))
    bad = {**good, "data": {**good["data"], "confidence": 58}}
    (tmp_path / "good.json").write_text(json.dumps(good))
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    (tmp_path / "torn.json").write_text('{"specversion": "1.0"')
    code, out, err = here("schemas", "check", "good.json", "bad.json", "torn.json", "--json")
    assert code == 2
    assert [row["ok"] for row in json.loads(out)] == [True, False, False]
    said = " ".join(err.split())
    assert "wrong bad.json: qbtc.trading.signal.v2: data.confidence: is greater than" in said
    assert "wrong torn.json: not JSON" in said
    assert "error: 2 of 3 are not what their schema says" in said


def test_a_file_that_is_not_there_is_an_error(here: Here) -> None:
    code, _, err = here("schemas", "check", "nothing.json")
    assert code == 2
    assert "nothing.json: cannot be read" in err


def test_the_pages_are_written_where_asked(here: Here, tmp_path: Path) -> None:
    code, _, err = here("schemas", "write-docs", "--folder", "pages")
    assert code == 0
    assert {path.name for path in (tmp_path / "pages").iterdir()} == {"events.md", "asyncapi.json"}
    assert "wrote pages/events.md" in err


def test_stdin_is_read_too(here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "in"
    file.write_bytes(encode(examples("qbtc.health.v2")[0]))
    with file.open() as opened:
        monkeypatch.setattr("sys.stdin", opened)
        code, _, err = here("schemas", "check", "-")
    assert code == 0
    assert "fine  -: qbtc.health.v2" in err
