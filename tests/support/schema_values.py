"""Random values: those that a JSON Schema of ours accepts, and structs by their types alone.

``hypothesis-jsonschema`` does not run with the Hypothesis of the lock; our keywords are few.
"""

from datetime import UTC, datetime
from typing import Any

import jsonschema_rs
import msgspec
from hypothesis import strategies as st
from msgspec import inspect

type Json = Any

ITEMS_MAX = 3
_FIRST = datetime(1000, 1, 1)  # noqa: DTZ001 - Hypothesis wants it so
EXACT_MAX = 2**53
"""Up to this every integer is a float too."""

_ANY: st.SearchStrategy[Json] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)


def values(schema: dict[str, Any]) -> st.SearchStrategy[Json]:
    """Values that a schema accepts."""
    return _values(schema, schema.get("$defs", {}))


def _values(schema: dict[str, Any], defs: dict[str, Any]) -> st.SearchStrategy[Json]:
    match schema:
        case {"$ref": str(name)}:
            key = (id(defs), name)
            if key not in _PARTS:
                _PARTS[key] = _values(_resolved(schema, defs), defs)
            return _PARTS[key]
        case {"anyOf": branches} | {"oneOf": branches}:
            return st.one_of(*(_values(branch, defs) for branch in branches))
        case {"const": value}:
            return st.just(value)
        case {"enum": options}:
            return st.sampled_from(options)
        case {"type": [*types]}:
            return st.one_of(*(_values({**schema, "type": each}, defs) for each in types))
    return _OF_TYPE[schema["type"]](schema, defs)


_PARTS: dict[tuple[int, str], st.SearchStrategy[Json]] = {}
"""Strategies by schema and name; schemas are loaded once, so their ids stay theirs."""


def _resolved(schema: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    return defs[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _object(schema: dict[str, Any], defs: dict[str, Any]) -> st.SearchStrategy[Json]:
    if "properties" in schema:
        return _fields(schema, defs)
    if "additionalProperties" not in schema:
        return st.dictionaries(st.text(max_size=5), _ANY, max_size=ITEMS_MAX)
    keys = st.from_regex(schema["propertyNames"]["pattern"], fullmatch=True)
    inner = _values(schema["additionalProperties"], defs)
    return st.dictionaries(keys, inner, max_size=ITEMS_MAX)


@st.composite
def _fields(draw: st.DrawFn, schema: dict[str, Any], defs: dict[str, Any]) -> Json:
    required = set(schema.get("required", []))
    rules: dict[str, dict[str, Any]] = {}
    out: dict[str, Json] = {}
    for condition in [*schema.get("allOf", []), *([schema] if "if" in schema else [])]:
        # Our conditions ask about one field, which is drawn before the others.
        (asked,) = condition["if"]["properties"]
        if asked not in out:
            out[asked] = draw(_values(schema["properties"][asked], defs))
        holds = jsonschema_rs.is_valid(condition["if"], {asked: out[asked]})
        added = condition.get("then" if holds else "else", {})
        required |= set(added.get("required", []))
        rules |= added.get("properties", {})
    for name, inner in schema["properties"].items():
        if name not in out and (name in required or draw(st.booleans())):
            out[name] = draw(_values(_narrowed(inner, rules.get(name), defs), defs))
    return out


def _narrowed(
    schema: dict[str, Any], rule: dict[str, Any] | None, defs: dict[str, Any]
) -> dict[str, Any]:
    match rule:
        case None:
            return schema
        case {"type": kind}:
            branches = schema["anyOf"]
            return {"anyOf": [each for each in branches if _resolved(each, defs)["type"] == kind]}
    return rule


def _array(schema: dict[str, Any], defs: dict[str, Any]) -> st.SearchStrategy[Json]:
    least = schema.get("minItems", 0)
    return st.lists(_values(schema["items"], defs), min_size=least, max_size=max(least, ITEMS_MAX))


def _string(schema: dict[str, Any], _: dict[str, Any]) -> st.SearchStrategy[Json]:
    least, most = schema.get("minLength", 0), schema["maxLength"]
    if schema.get("format") == "date-time":
        ends = st.sampled_from(["Z", ".5Z", ".123456Z", ".123456789Z"])
        times = st.datetimes(min_value=_FIRST, timezones=st.just(UTC))
        return st.builds(lambda time, end: time.strftime("%Y-%m-%dT%H:%M:%S") + end, times, ends)
    if "pattern" in schema:
        texts = st.from_regex(schema["pattern"], fullmatch=True)
        return texts.filter(lambda text: least <= len(text) <= most)
    return st.text(min_size=least, max_size=min(most, least + 20))


def _integer(schema: dict[str, Any], _: dict[str, Any]) -> st.SearchStrategy[Json]:
    whole = st.integers(schema["minimum"], schema["maximum"])
    return whole | whole.filter(lambda value: abs(value) < EXACT_MAX).map(float)


def _number(schema: dict[str, Any], _: dict[str, Any]) -> st.SearchStrategy[Json]:
    least = schema.get("minimum", schema.get("exclusiveMinimum"))
    exclusive = "exclusiveMinimum" in schema
    return st.floats(
        least, schema.get("maximum"), exclude_min=exclusive, allow_nan=False, allow_infinity=False
    ) | st.integers(0 if least is None else int(least) + exclusive, int(schema.get("maximum", 9)))


_OF_TYPE = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": lambda schema, defs: st.booleans(),
    "null": lambda schema, defs: st.none(),
}


def structs(type: Any) -> st.SearchStrategy[Any]:
    """Values of a msgspec type; no schema is asked, so many are not what one says."""
    return _of(inspect.type_info(type))


_TEXTS = st.sampled_from(["a", "", "1.5", "-1", "BTCUSDT.BINANCE", "LIMIT", "x" * 200, "é", " "])
_TIMES = st.sampled_from(["2026-11-22T10:15:30.123456Z", "2026-11-22", "2026-11-22T10:15:30+01:00"])


def _of(type: inspect.Type) -> st.SearchStrategy[Any]:
    match type:
        case inspect.StructType(cls=cls, fields=fields):
            given = {field.name: _of(field.type) for field in fields if field.required}
            maybe = {field.name: _of(field.type) for field in fields if not field.required}
            return st.fixed_dictionaries(given, optional=maybe).map(lambda kwargs: cls(**kwargs))
        case inspect.UnionType(types=types):
            return st.one_of(*map(_of, types))
        case inspect.LiteralType(values=options):
            return st.sampled_from(options)
        case inspect.VarTupleType(item_type=item):
            return st.lists(_of(item), max_size=ITEMS_MAX).map(tuple)
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(_of(key), _of(value), max_size=ITEMS_MAX)
        case inspect.StrType():
            return _TEXTS | _TIMES | st.text(max_size=5)
        case inspect.IntType():
            return st.integers(0, 9) | st.integers(-(2**70), 2**70)
        case inspect.FloatType():
            return st.floats(0, 1) | st.floats()
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.BytesType():
            return st.binary(max_size=8)
        case inspect.AnyType():
            return _ANY
    raise AssertionError(type)


def fields_of(cls: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    """The fields of a struct."""
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    return info.fields
