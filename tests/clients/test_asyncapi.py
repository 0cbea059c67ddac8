"""The AsyncAPI document of the bus, read by AsyncAPI's own schema and AsyncAPI's own parser."""

import json
import shutil
from pathlib import Path

import jsonschema_rs
import pytest
from tests.clients.tools import HERE, ROOT, npm_package, run

from qbtc.bus.channels import channels

PARSER = "@asyncapi/parser@3.6.3"
"""Brings ``@asyncapi/specs``, which holds the schemas."""
DOCUMENT = ROOT / "docs" / "asyncapi.json"


@pytest.fixture(scope="module")
def modules() -> Path:
    return npm_package(PARSER).parents[1]


def test_the_document_is_what_asyncapi_3_says(modules: Path) -> None:
    file = modules / "@asyncapi" / "specs" / "schemas" / "3.0.0.json"
    check = jsonschema_rs.validator_for(json.loads(file.read_text("utf-8")), validate_formats=True)
    document = json.loads(DOCUMENT.read_text("utf-8"))
    check.validate(document)
    # It sees what is wrong: the schema was not read as one that allows anything.
    del document["info"]["title"]
    document["operations"]["beat"]["action"] = "shout"
    assert len(list(check.iter_errors(document))) >= 2


def test_asyncapis_parser_finds_nothing_wrong(modules: Path, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(modules)
    shutil.copy(HERE / "node" / "asyncapi.mjs", tmp_path)
    ran = run(["node", "asyncapi.mjs", DOCUMENT], tmp_path, home=tmp_path)
    assert ran.returncode == 0, ran.stderr
    read = json.loads(ran.stdout)
    assert read["version"] == "3.0.0"
    assert set(read["channels"]) == {channel.name for channel in channels()}
    assert "answerLanguageRequest" in read["operations"]
    # 3.1.0 is newer; what uses 3.0.0 reads this one.
    assert [each for each in read["said"] if each["code"] != "asyncapi-latest-version"] == []
