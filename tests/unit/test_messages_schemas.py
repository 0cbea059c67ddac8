"""The schemas and the structs say the same: in their shape, and for values of either side."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect
from tests.support.schema_values import structs, values

from qbtc.errors import MessageError
from qbtc.messages import contracts
from qbtc.messages.codec import decode, encode
from qbtc.messages.envelope import Message, message
from qbtc.messages.events import TYPES

PAYLOADS = {contracts.name_of(type): (type, cls) for type, cls in TYPES.items()}
by_payload = pytest.mark.parametrize("name", PAYLOADS)


def shape_of_type(info: inspect.Type) -> Any:
    """A type as nested tuples: kinds, names of fields, which are required, and enums."""
    match info:
        case inspect.StructType(fields=fields, tag_field=tag_field, tag=tag):
            shape: dict[str, Any] = {
                field.encode_name: (field.required, shape_of_type(field.type)) for field in fields
            }
            if tag_field is not None:
                shape[tag_field] = (True, ("enum", frozenset([tag])))
            return ("object", frozenset(shape.items()))
        case inspect.UnionType(types=types):
            return _union([shape_of_type(each) for each in types])
        case inspect.LiteralType(values=options):
            return ("enum", frozenset(options))
        case inspect.VarTupleType(item_type=item):
            return ("array", shape_of_type(item))
        case inspect.DictType(value_type=inspect.AnyType()):
            return ("open",)
        case inspect.DictType(value_type=value):
            return ("map", shape_of_type(value))
    return {
        inspect.StrType: "string",
        inspect.BytesType: "string",
        inspect.IntType: "integer",
        inspect.FloatType: "number",
        inspect.BoolType: "boolean",
        inspect.NoneType: "null",
    }[type(info)]


def shape_of_schema(schema: dict[str, Any], defs: dict[str, Any]) -> Any:
    """A schema in the same way; lengths, ranges, patterns and conditions are left out."""
    match schema:
        case {"$ref": str(name)}:
            return shape_of_schema(defs[name.rpartition("/")[2]], defs)
        case {"anyOf": branches} | {"oneOf": branches}:
            return _union([shape_of_schema(branch, defs) for branch in branches])
        case {"const": value}:
            return ("enum", frozenset([value]))
        case {"enum": options}:
            return ("enum", frozenset(options))
        case {"type": [*types]}:
            return _union([shape_of_schema({**schema, "type": each}, defs) for each in types])
        case {"type": "object", "properties": fields, "required": required}:
            assert schema["additionalProperties"] is False
            shape = {
                each: (each in required, shape_of_schema(fields[each], defs)) for each in fields
            }
            return ("object", frozenset(shape.items()))
        case {"type": "object", "additionalProperties": dict(inner)}:
            return ("map", shape_of_schema(inner, defs))
        case {"type": "object"}:
            return ("open",)
        case {"type": "array", "items": items}:
            return ("array", shape_of_schema(items, defs))
    return schema["type"]


def _union(shapes: list[Any]) -> Any:
    flat = [part for shape in shapes for part in (shape[1] if shape[0] == "union" else [shape])]
    return ("union", frozenset(flat))


@by_payload
def test_a_payload_has_the_fields_types_and_enums_of_its_schema(name: str) -> None:
    schema = contracts.load(name)
    info = inspect.type_info(PAYLOADS[name][1])
    assert shape_of_type(info) == shape_of_schema(schema, schema.get("$defs", {}))


def test_the_envelope_has_the_attributes_of_its_schema() -> None:
    struct = {
        field.name: (field.required, shape_of_type(inspect.type_info(field.type)))
        for field in msgspec.structs.fields(Message)
        if field.name != "data"
    }
    # The struct knows its only version by itself; a message must say it.
    struct["specversion"] = (True, struct["specversion"][1])
    struct["data"] = (True, ("open",))
    schema = contracts.load("envelope")
    assert shape_of_schema(schema, schema["$defs"]) == ("object", frozenset(struct.items()))


@by_payload
def test_what_a_field_is_when_it_is_absent_is_the_same_in_both(name: str) -> None:
    schema = contracts.load(name)
    defs = schema.get("$defs", {})
    seen: list[str] = []

    def compare(info: inspect.Type, part: dict[str, Any], at: str) -> None:
        while "$ref" in part:
            part = defs[part["$ref"].rpartition("/")[2]]
        match info:
            case inspect.StructType(fields=fields):
                for field in fields:
                    inner, place = part["properties"][field.encode_name], f"{at}.{field.name}"
                    if not field.required:
                        assert "default" in inner, place
                        given = msgspec.convert(
                            {**_required(info), field.encode_name: inner["default"]}, info.cls
                        )
                        default = field.default
                        if default is msgspec.NODEFAULT:
                            default = field.default_factory()
                        assert getattr(given, field.name) == default, place
                        seen.append(place)
                    compare(field.type, inner, place)
            case inspect.VarTupleType(item_type=item):
                compare(item, part["items"], at)
            case inspect.UnionType(types=types):
                found = [each for each in types if isinstance(each, inspect.StructType)]
                branches = part.get("oneOf") or part.get("anyOf") or [part]
                for each, branch in zip(found, branches, strict=False):
                    compare(each, branch, at)

    compare(inspect.type_info(PAYLOADS[name][1]), schema, name)
    assert seen or all(field.required for field in inspect.type_info(PAYLOADS[name][1]).fields)


def _required(info: inspect.StructType) -> dict[str, Any]:
    """The least that a struct is made from, so that one field more can be tried."""
    least = {
        inspect.StrType: "a",
        inspect.IntType: 1,
        inspect.FloatType: 1.0,
        inspect.DictType: {},
        inspect.VarTupleType: [],
        inspect.UnionType: "a",
        inspect.BytesType: "",
    }
    out: dict[str, Any] = {}
    for field in info.fields:
        if not field.required:
            continue
        if isinstance(field.type, inspect.LiteralType):
            out[field.encode_name] = field.type.values[0]
        elif isinstance(field.type, inspect.StructType):
            out[field.encode_name] = _required(field.type)
        else:
            out[field.encode_name] = least[type(field.type)]
    if info.tag_field is not None:
        out[info.tag_field] = info.tag
    return out


def test_parts_of_the_same_name_are_the_same_in_every_schema() -> None:
    seen: dict[str, Any] = {}
    for name in contracts.NAMES:
        for part, schema in contracts.load(name).get("$defs", {}).items():
            assert seen.setdefault(part, schema) == schema, f"{name}.{part}"


def test_every_field_is_described_and_bounded() -> None:
    unbounded: list[str] = []

    def walk(at: str, schema: dict[str, Any]) -> None:
        for branch in schema.get("anyOf", []):
            walk(at, branch)
        match schema.get("type"):
            case "string" if "enum" not in schema and "maxLength" not in schema:
                unbounded.append(at)
            case "integer" if not {"minimum", "maximum"} <= set(schema):
                unbounded.append(at)
            case "array":
                if "maxItems" not in schema:
                    unbounded.append(at)
                walk(f"{at}[]", schema["items"])
            case "object":
                for name, inner in schema.get("properties", {}).items():
                    assert len(inner.get("description", "")) > 3, f"{at}.{name}"
                    walk(f"{at}.{name}", inner)

    for name in contracts.NAMES:
        schema = contracts.load(name)
        assert schema["title"]
        for part, inner in [(name, schema), *schema.get("$defs", {}).items()]:
            assert inner["description"].endswith("."), part
            walk(f"{name}.{part}", inner)
    assert unbounded == []


@by_payload
@settings(deadline=None)
@given(data=st.data())
def test_what_the_schema_accepts_is_read_and_written_again_as_it_was(
    name: str, data: st.DataObject
) -> None:
    given = data.draw(values(contracts.load(name)))
    contracts.check(name, given, type=name)
    envelope = {**contracts.load("envelope")["examples"][0], "type": PAYLOADS[name][0]}
    read = decode(json.dumps({**envelope, "data": given}).encode())
    again = json.loads(encode(read))["data"]
    assert _within(given, again)
    contracts.check(name, again, type=name)


def _within(part: Any, whole: Any) -> bool:
    """Whether nothing of a value changed but that absent fields got their defaults."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            key in whole and _within(value, whole[key]) for key, value in part.items()
        )
    if isinstance(part, list):
        return len(part) == len(whole) and all(map(_within, part, whole))
    return bool(part == whole) and isinstance(part, bool) == isinstance(whole, bool)


@by_payload
@settings(deadline=None)
@given(data=st.data())
def test_a_struct_is_written_so_that_the_schema_accepts_it_and_comes_back_equal_or_is_refused(
    name: str, data: st.DataObject
) -> None:
    payload = data.draw(structs(PAYLOADS[name][1]))
    sent = message(payload, source="qbtc/test/1", subject="s")
    try:
        body = encode(sent)
    except MessageError:
        # It is refused because its schema says so, or because JSON cannot hold it.
        tree = json.loads(msgspec.json.encode(payload))
        assert not _accepts(name, tree) or not _json_holds(payload)
        return
    contracts.check(name, json.loads(body)["data"], type=name)
    assert decode(body) == sent


def _json_holds(payload: Any) -> bool:
    """Whether JSON can hold every value: msgspec writes NaN as null."""
    try:
        json.dumps(msgspec.to_builtins(payload, str_keys=True), allow_nan=False)
    except ValueError:
        return False
    return True


def _accepts(name: str, tree: Any) -> bool:
    try:
        contracts.check(name, tree, type=name)
    except MessageError:
        return False
    return True
