"""What an answer must look like: JSON, tool calls, or text that may turn into tool calls.

Grammars are llguidance's dialect of Lark; ``core-rs/core/src/llm/constraint`` has the recipes, and
narrows schemas to what a model can keep. Keywords that it cannot keep make it refuse a schema; the
``loose`` constraint leaves them out, for those who did not ask for strictness.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from qbtc.llm.chat.parser import CLOSE_TAG, OPEN_TAG
from qbtc.llm.errors import RequestError
from qbtc.messages.language import ResponseFormat, Tool, ToolChoice

__all__ = ["CALLS_MAX", "Constraint", "constraint_of", "schema_of"]

CALLS_MAX = 16
"""Parallel calls of one answer."""
SCHEMA_NESTING_MAX = 64

type Constraint = tuple[Literal["json_object", "json_schema", "lark"], str]
"""Kind and text, as the core takes them."""

_TEXT = f"/(.|\\n)*/ & ~/(.|\\n)*{OPEN_TAG}(.|\\n)*/"


def constraint_of(
    tools: Sequence[Tool],
    choice: ToolChoice,
    *,
    parallel: bool = True,
    response_format: ResponseFormat | None = None,
    loose: bool = False,
) -> Constraint | None:
    """Return the constraint of an answer; None where any text will do.

    ``loose`` leaves out what cannot be kept of schemas that are not strict.

    Raises
    ------
    RequestError
        A schema is not one for an object, or is nested too deeply.
    """
    response_format = response_format or ResponseFormat()
    schema = _format_schema(response_format, loose=loose)
    if not tools or choice.mode == "none":
        return None if schema is None else ("json_schema", schema)
    chosen = [
        (index, tool)
        for index, tool in enumerate(tools)
        if choice.mode != "named" or tool.name == choice.name
    ]
    bodies = "\n    | ".join(
        f"%json {_call_schema(tool, index, loose=loose)}" for index, tool in chosen
    )
    rules = [f'call: "{OPEN_TAG}\\n" body "\\n{CLOSE_TAG}"', f"body: {bodies}"]
    more = f' ("\\n" call){{0,{CALLS_MAX - 1}}}' if parallel and choice.mode != "named" else ""
    if choice.mode != "auto":
        rules.insert(0, f"start: call{more}")
    elif schema is not None:
        rules[:0] = [f"start: answer | call{more}", f"answer: %json {schema}"]
    else:
        rules[:0] = [
            f'start: text | before_call body "\\n{CLOSE_TAG}"{more}',
            f"before_call[lazy]: /(.|\\n)*{OPEN_TAG}\\n/",
            "text: TEXT",
            f"TEXT: {_TEXT}",
        ]
        if not more:
            del rules[4]
    return "lark", "\n".join(rules) + "\n"


def _format_schema(response_format: ResponseFormat, *, loose: bool) -> str | None:
    match response_format.type:
        case "text":
            return None
        case "json_object":
            return _text({"type": "object"})
        case "json_schema":
            schema = response_format.schema
            if not isinstance(schema, dict):
                return _text({} if schema else {"type": "object"})
            _check_depth(schema, "response_format.json_schema.schema")
            return _text(_loose(schema) if loose and not response_format.strict else schema)


def schema_of(tool: Tool, index: int) -> Constraint:
    """Return the constraint of one call of a tool, number ``index`` of its request."""
    return "json_schema", _call_schema(tool, index, loose=not tool.strict)


def _call_schema(tool: Tool, index: int, *, loose: bool) -> str:
    param = f"tools[{index}].function.parameters"
    parameters = {"properties": {}} if tool.parameters is None else tool.parameters
    kind = parameters.get("type", "object")
    if kind != "object" and kind != ["object"]:
        raise RequestError(
            f"Invalid schema for function '{tool.name}': schema must be a JSON Schema of "
            f"'type: \"object\"', got 'type: {msgspec.json.encode(kind).decode()}'.",
            param=param,
            code="invalid_function_parameters",
        )
    _check_depth(parameters, param)
    arguments = _moved(_loose(parameters) if loose and not tool.strict else parameters)
    if arguments.get("properties") == {}:
        arguments.setdefault("additionalProperties", False)
    schema = {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": {"type": "object"} | arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
    return _text(schema)


def _text(schema: dict[str, Any]) -> str:
    return msgspec.json.encode(schema).decode()


def _check_depth(schema: dict[str, Any], param: str) -> None:
    if _depth(schema, SCHEMA_NESTING_MAX) < 0:
        raise RequestError(
            f"Invalid schema for '{param}': nested deeper than {SCHEMA_NESTING_MAX}.",
            param=param,
            code="invalid_schema",
        )


def _depth(value: Any, left: int) -> int:
    """Return how many more levels may be nested; negative where there are too many."""
    if left < 0:
        return left
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return min((_depth(part, left - 1) for part in parts), default=left)


_ONE = ("additionalProperties", "items", "additionalItems")
_LISTS = ("anyOf", "allOf", "prefixItems", "items")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LEFT_OUT = frozenset(
    {
        "$anchor",
        "$dynamicAnchor",
        "$dynamicRef",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxContains",
        "maxProperties",
        "minContains",
        "minProperties",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    }
)
_FORMATS = frozenset(
    {
        "date",
        "date-time",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "time",
        "uri",
        "uuid",
    }
)
# Looking around and back is beyond automata.
_IRREGULAR = re.compile(r"\(\?[=!<]|\\[1-9]")


def _loose(schema: Any) -> Any:
    """Leave out what cannot be kept: an answer fits the rest."""
    if not isinstance(schema, dict):
        return schema
    out: dict[str, Any] = {}
    for name, part in schema.items():
        if name in _LEFT_OUT or (name == "oneOf" and "anyOf" in schema):
            continue
        if name == "format" and part not in _FORMATS:
            continue
        if name == "pattern" and isinstance(part, str) and _IRREGULAR.search(part):
            continue
        if (name in _LISTS or name == "oneOf") and isinstance(part, list):
            out["anyOf" if name == "oneOf" else name] = [_loose(each) for each in part]
        elif name in _ONE:
            out[name] = _loose(part)
        elif name in _MAPS and isinstance(part, dict):
            out[name] = {key: _loose(each) for key, each in part.items()}
        else:
            out[name] = part
    return out


def _moved(schema: dict[str, Any]) -> dict[str, Any]:
    """Let references from the root of a schema find it below ``arguments``."""
    own = {name: part for name, part in schema.items() if name not in ("$id", "$schema")}
    moved: dict[str, Any] = _referring(own)
    return moved


def _referring(value: Any) -> Any:
    if isinstance(value, list):
        return [_referring(each) for each in value]
    if not isinstance(value, dict):
        return value
    out = {name: _referring(part) for name, part in value.items()}
    reference = value.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        out["$ref"] = f"#/properties/arguments{reference[1:]}"
    return out
