"""A change that breaks who speaks by the released schemas does not pass.

``message_files/released`` holds the schemas as they were released, with their examples; a release
copies them anew. Within a major version a schema only grows.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.compatibility import breaking

from qbtc.messages import contracts
from qbtc.messages.codec import decode
from qbtc.messages.events import TYPES

RELEASED = Path(__file__).parent / "message_files" / "released"
NAMES = [str(path.relative_to(RELEASED).with_suffix("")) for path in RELEASED.rglob("*.json")]

type Schema = dict[str, Any]


def released(name: str) -> Schema:
    schema: Schema = json.loads((RELEASED / f"{name}.json").read_text("utf-8"))
    return schema


def test_every_released_message_is_still_known() -> None:
    names = {*map(contracts.name_of, TYPES), "envelope"}
    assert {name for name in NAMES if "/" not in name} <= names


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_only_grew_since_it_was_released(name: str) -> None:
    assert breaking(released(name), contracts.load(name)) == [], (
        "this breaks who speaks by the released schema: give it a new type with the next major"
        " version (docs/events.md, Changing a message)"
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_was_valid_when_released_is_valid_now(name: str) -> None:
    for example in released(name)["examples"]:
        contracts.check(name, example, type=name)
    for type in TYPES:
        if contracts.name_of(type) == name:
            envelope = {**released("envelope")["examples"][0], "type": type}
            for example in released(name)["examples"]:
                assert decode(json.dumps({**envelope, "data": example}).encode()).type == type


BREAKS: dict[str, Callable[[Schema], object]] = {
    ".price: removed": lambda s: s["properties"].pop("price"),
    ".model: newly required": lambda s: s["required"].append("model"),
    ".confidence: not required any more": lambda s: s["required"].remove("confidence"),
    ".action: enum without HOLD": lambda s: s["properties"]["action"]["enum"].remove("HOLD"),
    ".model: enum without anything": lambda s: s["properties"]["model"].update(enum=["mps"]),
    ".ts_event: type narrowed, no integer": lambda s: s["$defs"]["Nanoseconds"].update(
        type="string"
    ),
    ".price: anyOf narrowed": lambda s: s["properties"]["price"]["anyOf"].pop(),
    ".p_up|0: maximum lowered": lambda s: s["$defs"]["Probability"].update(maximum=0.5),
    ".horizon_ns|0: minimum raised": lambda s: s["properties"]["horizon_ns"]["anyOf"][0].update(
        minimum=1000
    ),
    ".signal_id: maxLength lowered": lambda s: s["$defs"]["Id"].update(maxLength=36),
    ".price|0: pattern changed": lambda s: s["$defs"]["Decimal"].update(pattern="^[0-9]+$"),
    ".instrument: format changed": lambda s: s["$defs"]["Instrument"].update(format="uri"),
    ".model: default changed": lambda s: s["properties"]["model"].update(default="mps"),
    ".metadata: closed to other fields": lambda s: s["$defs"]["Metadata"].update(
        additionalProperties=False
    ),
    ".metadata: maxProperties lowered": lambda s: s["$defs"]["Metadata"].update(maxProperties=4),
    "$id: changed": lambda s: s.update({"$id": "urn:qbtc:schema:trading_signal:3"}),
    ": if changed": lambda s: s.update({"if": {"properties": {"action": {"const": "BUY"}}}}),
}


@pytest.mark.parametrize("said", BREAKS)
def test_the_gate_sees_a_change_that_breaks(said: str) -> None:
    old = released("trading_signal")
    new = copy.deepcopy(old)
    BREAKS[said](new)
    assert said in breaking(old, new)


def test_the_gate_sees_a_change_inside_an_array_and_a_map() -> None:
    old = released("llm_request")
    new = copy.deepcopy(old)
    new["$defs"]["ChatMessage"]["properties"]["role"]["enum"].remove("tool")
    new["$defs"]["Sampling"]["properties"]["logit_bias"]["additionalProperties"]["maximum"] = 1
    new["$defs"]["Sampling"]["properties"]["logit_bias"]["propertyNames"]["pattern"] = "^1$"
    assert set(breaking(old, new)) >= {
        ".chat|0.messages[].role: enum without tool",
        ".chat|0.sampling.logit_bias.*: maximum lowered",
        ".chat|0.sampling.logit_bias.name: pattern changed",
    }


@pytest.mark.parametrize(
    "grow",
    [
        lambda s: s["properties"].update(venue={"type": "string", "default": ""}),
        lambda s: s["properties"]["action"]["enum"].append("CLOSE"),
        lambda s: s["$defs"]["Id"].update(maxLength=256),
        lambda s: s["$defs"]["Nanoseconds"].update(minimum=-1),
        lambda s: s["properties"]["price"]["anyOf"].append({"type": "integer"}),
        lambda s: s["properties"]["model"].update(description="Said better."),
        lambda s: s["examples"].pop(),
    ],
)
def test_the_gate_lets_a_schema_grow(grow: Callable[[Schema], object]) -> None:
    old = released("trading_signal")
    new = copy.deepcopy(old)
    grow(new)
    assert breaking(old, new) == []
