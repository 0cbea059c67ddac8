"""``docs/events.md``: every message for people, from the schemas and the topology."""

import json
from typing import Any

from qbtc.bus.channels import REPLIES, Channel, channels, replies_to
from qbtc.messages import contracts, v1
from qbtc.messages.events import TYPES

__all__ = ["write_events_page"]

type Tree = dict[str, Any]

_HEAD = """\
# Messages of the bus

Made by `qbtc schemas write-docs` from `schemas/*.json` and the topology; a test compares. The
schemas are the contract: JSON Schema 2020-12, checked on the way out and on the way in, whoever the
sender is. `docs/asyncapi.json` says the same as an AsyncAPI 3.0.0 document.

```
qbtc schemas list
qbtc schemas check message.json
```

`check` reads a message, or one of version 1, and says what is wrong and where; it ends with 2 if
something is.

Money, prices and quantities are decimal text, never floats. Times are UNIX nanoseconds (`ts_...`)
or RFC 3339 in UTC with `Z`. NaN, infinities, a key twice, broken UTF-8, more than 16 MiB and more
than 128 levels are refused. An error names the type, the place and the rule, never the value.

## Changing a message

Within a major version a schema only grows: optional fields, values of an enum, wider ranges.
Readers refuse fields they do not know, so readers are updated first. Anything else is a new type
with the next major version and a file of its own, and readers take both for a while.
`tests/unit/test_messages_compatibility.py` compares every schema with the released one in
`tests/unit/message_files/released` and fails on a change that breaks; a release copies the schemas
there.

## Version 1

Earlier systems sent four payloads without an envelope
({v1}). They are recognised by the missing
`specversion`, checked against `schemas/v1/*.json` and read as version 2: the id comes from
`request_id`, so a copy stays a copy; `BTC/USD` becomes `BTCUSD.V1`; a trading request has no
features and is answered with the model's prior; a signal has no time and is never acted on. Answers
go out in version 2, to a sender that asks by RabbitMQ's direct reply-to: no system that sent
version 1 had a reader for its answers.

## What was validated

Every schema against its metaschema; every example against its schema; structs and schemas against
each other with random values in both directions. `docs/asyncapi.json` against AsyncAPI's published
3.0.0 schema and with AsyncAPI's own parser (`@asyncapi/parser` of npm brings both; the test fetches
it where clients are required, and skips elsewhere). No code was generated from it.
"""


def write_events_page() -> str:
    """Return the page."""
    parts = [_HEAD.format(v1=", ".join(f"`{name}`" for name in v1.NAMES)), _overview()]
    parts.append(_section("envelope", ""))
    parts += [_section(contracts.name_of(type), _way(type), type=type) for type in TYPES]
    parts.append(_shared())
    return "\n".join(parts)


def _overview() -> str:
    lines = [
        "## Where they go",
        "",
        "| message | type | exchange | routing key | queue |",
        "|---|---|---|---|---|",
    ]
    for type in TYPES:
        name = contracts.name_of(type)
        for channel in _channels(type):
            exchange = f"`{channel.exchange}`" if channel.exchange else "the reply's own"
            key = (
                f"`{channel.key}`" if channel.key else "`reply_to`" if not channel.exchange else ""
            )
            queue = f"`{channel.queue}`" if channel.queue else ""
            anchor = contracts.load(name)["title"].lower().replace(" ", "-")
            lines.append(f"| [{name}](#{anchor}) | `{type}` | {exchange} | {key} | {queue} |")
    return "\n".join([*lines, ""])


def _channels(type: str) -> list[Channel]:
    return [channel for channel in channels() if type in channel.types]


def _way(type: str) -> str:
    ways = []
    for channel in _channels(type):
        if channel.name == REPLIES:
            asked = [other for other in TYPES if type in replies_to(other)]
            names = " and ".join(f"`{contracts.name_of(other)}`" for other in asked)
            ways.append(f"A reply to {names}, sent to the queue that `reply_to` names.")
        elif channel.queue:
            ways.append(
                f"To `{channel.exchange}` as `{channel.key}`, into `{channel.queue}`; one worker"
                " takes it."
            )
        elif channel.key:
            ways.append(f"To `{channel.exchange}` as `{channel.key}`, for whoever subscribes.")
        else:
            ways.append(f"To `{channel.exchange}`; every worker hears it.")
    return " ".join(ways)


def _section(name: str, way: str, *, type: str = "") -> str:
    schema = contracts.load(name)
    told = f"`{type}`. " if type else ""
    lines = [f"## {schema['title']}", "", f"{told}{schema['description']} {way}".rstrip(), ""]
    lines += _table(schema, schema.get("$defs", {}))
    example = json.dumps(schema["examples"][0], indent=1, ensure_ascii=False)
    return "\n".join([*lines, "", "```json", example, "```", ""])


def _shared() -> str:
    parts: dict[str, tuple[Tree, Tree]] = {}
    for name in contracts.NAMES:
        defs = contracts.load(name).get("$defs", {})
        parts |= {part: (schema, defs) for part, schema in defs.items()}
    # What is a message too has its own section.
    parts = {part: found for part, found in parts.items() if part.lower() not in contracts.NAMES}
    lines = ["## Parts", "", "What several messages are made of.", ""]
    for part, (schema, defs) in sorted(parts.items()):
        lines += [f"### {part}", "", f"{schema['description']} {_plain(schema, defs)}".rstrip(), ""]
        if "properties" in schema:
            lines += [*_table(schema, defs), ""]
    return "\n".join(lines)


def _plain(schema: Tree, defs: Tree) -> str:
    """Say the type of a part that is not a table."""
    if "properties" in schema:
        return ""
    text = _type(schema, defs)
    return f"{text[:1].upper()}{text[1:]}."  # `capitalize` would change a pattern


def _table(schema: Tree, defs: Tree) -> list[str]:
    lines = ["| field | type | given | what it is |", "|---|---|---|---|"]
    for name, field in schema["properties"].items():
        if name in schema["required"]:
            given = "always"
        else:
            given = f"else `{json.dumps(field['default'], ensure_ascii=False)}`"
        cells = (f"`{name}`", _type(field, defs), given, field["description"])
        lines.append(
            "| "
            + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells)
            + " |"
        )
    return lines


def _type(schema: Tree, defs: Tree) -> str:
    match schema:
        case {"$ref": str(name)}:
            part = name.rpartition("/")[2]
            return f"[{part}](#{part.lower()})"
        case {"anyOf": branches} | {"oneOf": branches}:
            return " or ".join(_type(branch, defs) for branch in branches)
        case {"const": value}:
            return f"`{json.dumps(value)}`"
        case {"enum": options}:
            return ", ".join(f"`{option}`" for option in options)
        case {"type": [*types]}:
            return " or ".join(_type({**schema, "type": each}, defs) for each in types)
        case {"type": "array", "items": items}:
            return f"array of {_type(items, defs)}{_range(schema, 'minItems', 'maxItems')}"
        case {"type": "object", "additionalProperties": dict(inner)}:
            keys = schema["propertyNames"]["pattern"]
            return f"object of {_type(inner, defs)}, keys `{keys}`"
        case {"type": "object"}:
            return "any object"
        case {"type": "string"}:
            pattern = f" `{schema['pattern']}`" if "pattern" in schema else ""
            return f"text{_range(schema, 'minLength', 'maxLength')}{pattern}"
    above = f", above {schema['exclusiveMinimum']}" if "exclusiveMinimum" in schema else ""
    return f"{schema['type']}{_range(schema, 'minimum', 'maximum')}{above}"


def _range(schema: Tree, least: str, most: str) -> str:
    low, high = schema.get(least), schema.get(most)
    if low is None and high is None:
        return ""
    if low is None or high is None:
        return f" up to {_number(high)}" if low is None else f" from {_number(low)}"
    return f" {_number(low)} to {_number(high)}"


def _number(value: Any) -> str:
    for power in (31, 63, 64):
        if abs(value) in (2**power, 2**power - 1):
            return f"{'-' if value < 0 else ''}2^{power}{'' if abs(value) == 2**power else ' - 1'}"
    return f"{value:,}"
