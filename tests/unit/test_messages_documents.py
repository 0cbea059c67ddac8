"""The documents of the bus say what the schemas and the topology say."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from qbtc.bus import topology
from qbtc.bus.asyncapi import asyncapi
from qbtc.bus.channels import channels, examples
from qbtc.bus.schema_commands import PAGES
from qbtc.messages import contracts
from qbtc.messages.codec import encode
from qbtc.messages.events import TYPES

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_would_be_written_now(name: str) -> None:
    assert (DOCS / name).read_text("utf-8") == PAGES[name](), "run: qbtc schemas write-docs"


def test_every_type_goes_somewhere() -> None:
    assert {type for channel in channels() for type in channel.types} == set(TYPES)
    assert {channel.queue for channel in channels()} - {""} == {
        topology.LLM_REQUESTS,
        topology.TRADING_REQUESTS,
    }
    assert {channel.exchange for channel in channels()} - {""} <= set(topology.EXCHANGES)


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    document = asyncapi()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                target: Any = document
                for part in node["$ref"].removeprefix("#/").split("/"):
                    target = target[part]
                assert len(node) == 1, "what stands beside a reference is not read"
            for inner in node.values():
                walk(inner)
        elif isinstance(node, list):
            for inner in node:
                walk(inner)

    walk(document)


@pytest.mark.parametrize("type", TYPES)
def test_the_asyncapi_document_accepts_the_same_messages(type: str) -> None:
    name = contracts.name_of(type)
    document = json.loads((DOCS / "asyncapi.json").read_text("utf-8"))
    message = document["components"]["messages"][name]
    check = jsonschema_rs.Draft7Validator(
        {**message["payload"], "components": document["components"]}, validate_formats=True
    )
    for example in [*message["examples"], *({"payload": _tree(each)} for each in examples(type))]:
        check.validate(example["payload"])
        assert not check.is_valid({**example["payload"], "data": {"unknown": 1}})
        assert not check.is_valid({**example["payload"], "type": "qbtc.other.v2"})


def _tree(message: Any) -> Any:
    return json.loads(encode(message))
