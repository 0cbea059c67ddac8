"""What in a changed schema breaks those who wrote or read by the released one.

Within a major version everything that was valid stays valid and keeps its meaning. What may come:
optional fields, values of an enum, wider ranges. Anything else is a new type with a new major.
"""

from typing import Any

type Schema = dict[str, Any]

_NEVER_LOWER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_NEVER_HIGHER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_NEVER_DIFFERENT = ("pattern", "format", "const", "default", "allOf", "if", "then", "else", "not")


def breaking(old: Schema, new: Schema) -> list[str]:
    """Each change that breaks somebody, with its place; nothing: the change is additive."""
    found: list[str] = []
    if old.get("$id") != new.get("$id"):
        found.append("$id: changed")
    _compare(old, new, (old.get("$defs", {}), new.get("$defs", {})), "", found)
    return found


def _compare(
    old: Schema, new: Schema, defs: tuple[Schema, Schema], at: str, found: list[str]
) -> None:
    old, new = _resolved(old, defs[0]), _resolved(new, defs[1])
    found += [
        f"{at}: {word} changed" for word in _NEVER_DIFFERENT if old.get(word) != new.get(word)
    ]
    found += [
        f"{at}: {word} lowered"
        for word in _NEVER_LOWER
        if word in new and new[word] < old.get(word, float("inf"))
    ]
    found += [
        f"{at}: {word} raised"
        for word in _NEVER_HIGHER
        if word in new and new[word] > old.get(word, float("-inf"))
    ]
    if gone := _kinds(old) - _kinds(new):
        found.append(f"{at}: type narrowed, no {', '.join(sorted(gone))}")
    if "enum" in new and (gone := set(old.get("enum", ["anything"])) - set(new["enum"])):
        found.append(f"{at}: enum without {', '.join(sorted(map(str, gone)))}")
    _compare_fields(old, new, defs, at, found)
    if "items" in old or "items" in new:
        _compare(old.get("items", {}), new.get("items", {}), defs, f"{at}[]", found)
    for word in ("anyOf", "oneOf"):
        # Branches keep their order; new ones come after them.
        branches, now = old.get(word, []), new.get(word, [])
        if len(now) < len(branches) or (now and not branches):
            found.append(f"{at}: {word} narrowed")
        for number, (one, other) in enumerate(zip(branches, now, strict=False)):
            _compare(one, other, defs, f"{at}|{number}", found)


def _compare_fields(
    old: Schema, new: Schema, defs: tuple[Schema, Schema], at: str, found: list[str]
) -> None:
    fields, now = old.get("properties", {}), new.get("properties", {})
    found += [f"{at}.{name}: removed" for name in fields if name not in now]
    needed, needs = set(old.get("required", [])), set(new.get("required", []))
    found += [f"{at}.{name}: newly required" for name in sorted(needs - needed)]
    found += [f"{at}.{name}: not required any more" for name in sorted(needed - needs)]
    for name in fields.keys() & now.keys():
        _compare(fields[name], now[name], defs, f"{at}.{name}", found)
    rest, rest_now = old.get("additionalProperties", True), new.get("additionalProperties", True)
    if isinstance(rest, dict) and isinstance(rest_now, dict):
        _compare(rest, rest_now, defs, f"{at}.*", found)
    elif rest is not False and rest_now != rest:
        found.append(f"{at}: closed to other fields")
    if "propertyNames" in new:
        _compare(old.get("propertyNames", {}), new["propertyNames"], defs, f"{at}.name", found)


def _resolved(schema: Schema, defs: Schema) -> Schema:
    if "$ref" not in schema:
        return schema
    # What stands beside a reference is its own description and default.
    return {**defs[schema["$ref"].rpartition("/")[2]], **schema}


def _kinds(schema: Schema) -> set[str]:
    kinds = schema.get("type", [])
    return {kinds} if isinstance(kinds, str) else set(kinds)
