"""What an answer must look like follows from tools, their choice and the format asked for."""

import json
from typing import Any

import pytest

from qbtc.llm.chat import constraint_of
from qbtc.llm.chat.grammar import SCHEMA_NESTING_MAX
from qbtc.llm.errors import RequestError
from qbtc.messages.language import ResponseFormat, Tool, ToolChoice

LOOK = Tool(name="look", parameters={"type": "object", "properties": {"at": {"type": "string"}}})
WAIT = Tool(name="wait")
AUTO = ToolChoice()


def grammar(*tools: Tool, choice: ToolChoice = AUTO, **options: Any) -> str:
    constraint = constraint_of(tools, choice, **options)
    assert constraint is not None
    assert constraint[0] == "lark"
    return constraint[1]


def bodies(text: str) -> list[Any]:
    return [json.loads(line.split("%json ", 1)[1]) for line in text.splitlines() if "%json" in line]


def test_text_is_free_without_tools_and_formats() -> None:
    assert constraint_of((), AUTO) is None
    assert constraint_of((LOOK,), ToolChoice(mode="none")) is None


def test_auto_is_text_that_may_turn_into_calls() -> None:
    text = grammar(LOOK, WAIT)
    assert text.startswith("start: text | before_call body")
    assert "{0,15}" in text
    assert [body["properties"]["name"]["const"] for body in bodies(text)] == ["look", "wait"]
    assert "{0,15}" not in grammar(LOOK, parallel=False)


def test_required_is_calls_and_nothing_else() -> None:
    required = ToolChoice(mode="required")
    assert grammar(LOOK, choice=required).startswith('start: call ("\\n" call){0,15}\n')
    assert grammar(LOOK, choice=required, parallel=False).startswith("start: call\n")


def test_a_named_tool_is_the_only_one_and_called_once() -> None:
    text = grammar(LOOK, WAIT, choice=ToolChoice(mode="named", name="wait"))
    assert text.startswith("start: call\n")
    assert [body["properties"]["name"]["const"] for body in bodies(text)] == ["wait"]


def test_a_format_is_json_of_its_schema() -> None:
    kind, schema = constraint_of(  # type: ignore[misc]
        (), AUTO, response_format=ResponseFormat(type="json_schema", schema={"type": "array"})
    )
    assert kind == "json_schema"
    assert json.loads(schema)["type"] == "array"
    both = grammar(LOOK, response_format=ResponseFormat(type="json_object"))
    assert both.startswith("start: answer | call")


def test_keywords_that_cannot_be_kept_are_left_out_unless_strict() -> None:
    schema: Any = {
        "type": "object",
        "minProperties": 1,
        "properties": {
            "not": {"type": "string", "not": {"const": "x"}, "format": "phone"},
            "list": {"type": "array", "uniqueItems": True, "items": {"pattern": "^(?!a)b$"}},
            "one": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
            "date": {"format": "date", "pattern": "^2"},
        },
    }
    kept = {
        "not": {"type": "string"},
        "list": {"type": "array", "items": {}},
        "one": {"anyOf": [{"type": "integer"}, {"type": "number"}]},
        "date": {"format": "date", "pattern": "^2"},
    }
    for loose, strict in ((True, False), (True, True), (False, False)):
        text = grammar(Tool(name="f", parameters=schema, strict=strict), loose=loose)
        found = bodies(text)[0]["properties"]["arguments"]["properties"]
        assert found == (kept if loose and not strict else schema["properties"])


def test_references_follow_their_schema() -> None:
    tree = {
        "type": "object",
        "properties": {"child": {"$ref": "#"}, "leaf": {"$ref": "#/$defs/leaf"}},
        "$defs": {"leaf": {"type": "string"}},
    }
    found = bodies(grammar(Tool(name="f", parameters=tree)))[0]["properties"]["arguments"]
    assert found["properties"]["child"] == {"$ref": "#/properties/arguments"}
    assert found["properties"]["leaf"] == {"$ref": "#/properties/arguments/$defs/leaf"}


@pytest.mark.parametrize("kind", ["string", ["object", "null"], 5, None])
def test_arguments_must_be_an_object(kind: Any) -> None:
    with pytest.raises(RequestError) as error:
        grammar(LOOK, Tool(name="f", parameters={"type": kind}))
    assert error.value.param == "tools[1].function.parameters"
    assert error.value.code == "invalid_function_parameters"


@pytest.mark.parametrize("keyword", ["items", "x-anything"])
def test_a_schema_without_end_is_refused(keyword: str) -> None:
    schema: Any = {}
    for _ in range(SCHEMA_NESTING_MAX + 1):
        schema = {keyword: schema}
    with pytest.raises(RequestError, match="nested deeper"):
        grammar(Tool(name="f", parameters=schema))
    with pytest.raises(RequestError, match="nested deeper"):
        constraint_of((), AUTO, response_format=ResponseFormat(type="json_schema", schema=schema))


def test_a_function_without_parameters_takes_no_arguments() -> None:
    arguments = bodies(grammar(WAIT))[0]["properties"]["arguments"]
    assert arguments == {"type": "object", "properties": {}, "additionalProperties": False}
