"""From the bytes of a request to a typed body, or to a 400 in OpenAI's words.

``msgspec`` decodes and checks in one pass; this module turns its one-line complaints into messages
that name the parameter. NaN, Infinity, numbers out of range, broken UTF-8, lone surrogates and
nesting without end are refused here. Unknown fields are allowed and reported.
"""

import re
from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request

from qbtc_gateway.errors import BadRequest
from qbtc_gateway.observe import observer_of

__all__ = ["SESSION_CHARS_MAX", "UNKNOWN_FIELDS_MAX", "read_body", "session_name"]

UNKNOWN_FIELDS_MAX = 64
"""Names beyond this many are not reported."""
SESSION_CHARS_MAX = 128
"""Longer names of conversations are no names."""
SESSION_FIELDS = ("prompt_cache_key", "safety_identifier", "user")
"""Where clients name a conversation or user, the most particular first."""

_NOT_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using "
    "your HTTP library correctly. The API expects a JSON payload, but what was sent was not valid "
    "JSON: {})"
)
_NAMES = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
    "null": "null",
}
_TYPE = re.compile(r"Expected `([^`]+)`, got `(\w+)`$")
_BOUND = re.compile(r"Expected `(int|float)` (<=|>=|<|>) ([-+\d.e]+)$")
_LENGTH = re.compile(r"Expected `(array|str|object)` of length (<=|>=|<|>|==)? ?(\d+)$")
_MISSING = re.compile(r"Object missing required field `([^`]+)`$")
_CHOICE = re.compile(r"Invalid (?:enum )?value (.+)$", re.DOTALL)


@cache
def _decoder(kind: type[msgspec.Struct]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


@cache
def _known(kind: type[msgspec.Struct]) -> frozenset[str]:
    """Fields of a body, and those that OpenAI has and that change nothing here."""
    ignored: frozenset[str] = getattr(kind, "IGNORED", frozenset())
    return frozenset(kind.__struct_encode_fields__) | ignored


_KEYS = msgspec.json.Decoder(dict[str, msgspec.Raw])


async def read_body[T: msgspec.Struct](request: Request, kind: type[T]) -> T:
    """Read and check the body of a request."""
    raw = await request.body()
    try:
        raw.decode()
        body: T = _decoder(kind).decode(raw)
        keys = _KEYS.decode(raw)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    except UnicodeDecodeError:
        raise BadRequest(_NOT_JSON.format("it is not UTF-8")) from None
    except msgspec.DecodeError as error:
        raise BadRequest(_NOT_JSON.format(str(error))) from None
    except RecursionError:
        raise BadRequest(_NOT_JSON.format("it is nested too deeply")) from None
    known = _known(kind)
    unknown = [name for name in keys if name not in known][:UNKNOWN_FIELDS_MAX]
    observer_of(request).parsed(
        model=str(getattr(body, "model", "")),
        stream=bool(getattr(body, "stream", False)),
        unknown_fields=unknown,
        session=_session(keys),
    )
    return body


def _session(keys: dict[str, msgspec.Raw]) -> str:
    """Return the client's own name for a conversation or user, where it gave one."""
    for name in SESSION_FIELDS:
        try:
            given = session_name(msgspec.json.decode(keys.get(name, b"null"), type=str))
        except msgspec.MsgspecError:
            continue
        if given:
            return given
    return ""


def session_name(given: str) -> str:
    """Return a name that can be kept: printable and not long; else none."""
    return given if len(given) <= SESSION_CHARS_MAX and given.isprintable() else ""


def _explain(complaint: str) -> BadRequest:
    """Say what msgspec found in OpenAI's words, with the parameter named."""
    problem, _, where = complaint.partition(" - at `")
    path = where.rstrip("`").replace("key` in `", "").removeprefix("$").removeprefix(".")
    param = path or None
    name = f"'{path}'" if path else "the request body"
    if match := _MISSING.match(problem):
        missing = f"{path}.{match[1]}" if path else match[1]
        return BadRequest(
            f"Missing required parameter: '{missing}'.",
            param=missing,
            code="missing_required_parameter",
        )
    if match := _TYPE.match(problem):
        wanted = [_NAMES.get(kind, kind) for kind in match[1].split(" | ") if kind != "null"]
        got = _NAMES.get(match[2], match[2])
        return BadRequest(
            f"Invalid type for {name}: expected {_one_of(wanted)}, but got {got} instead.",
            param=param,
            code="invalid_type",
        )
    if match := _BOUND.match(problem):
        above = match[2].startswith("<")
        kind = "integer" if match[1] == "int" else "decimal"
        limit = match[3].removesuffix(".0")
        return BadRequest(
            f"Invalid {name}: {kind} {'above maximum' if above else 'below minimum'} value. "
            f"Expected a value {match[2]} {limit}.",
            param=param,
            code=f"{kind}_{'above_max' if above else 'below_min'}_value",
        )
    if match := _LENGTH.match(problem):
        thing = "string" if match[1] == "str" else match[1]
        short = match[2] == ">="
        if short and match[3] == "1":
            verdict, code = f"empty {thing}", f"empty_{thing}"
        elif short:
            verdict, code = f"{thing} too short", f"{thing}_below_min_length"
        else:
            verdict, code = f"{thing} too long", f"{thing}_above_max_length"
        return BadRequest(
            f"Invalid {name}: {verdict}. Expected {_NAMES[match[1]]} with "
            f"{'minimum' if short else 'maximum'} length {match[3]}.",
            param=param,
            code=code,
        )
    if match := _CHOICE.match(problem):
        return BadRequest(
            f"Invalid value for {name}: {match[1]}.", param=param, code="invalid_value"
        )
    return BadRequest(f"Invalid value for {name}: {problem}.", param=param, code="invalid_value")


def _one_of(kinds: list[str]) -> str:
    if len(kinds) <= 1:
        return "".join(kinds)
    return f"one of {', '.join(kinds[:-1])} or {kinds[-1]}"
