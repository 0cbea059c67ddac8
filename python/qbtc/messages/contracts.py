"""The files of ``schemas/``: what a message of each type may be, checked where bytes come in or go.

A schema is the contract, also for who reads it without our code: it is as strict as can be written
down, and the structs of ``events`` are its shape in Python. Errors name the place and the rule, and
never the value: messages carry prompts and answers.
"""

import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from qbtc.errors import MessageError
from qbtc.messages.events import TYPES

if TYPE_CHECKING:
    import jsonschema_rs

__all__ = ["NAMES", "check", "load", "name_of"]

KEY_CHARS_SHOWN_MAX = 64
"""A field that should not be there may be named by anybody."""


def name_of(type: str) -> str:
    """Return the name of a type's schema: ``qbtc.llm.request.v2`` is in ``llm_request``."""
    return "_".join(type.split(".")[1:-1])


NAMES = ("envelope", *map(name_of, TYPES))


@cache
def load(name: str) -> dict[str, Any]:
    """Read a schema. It is shared: do not change it."""
    text = files("qbtc.messages").joinpath("schemas", f"{name}.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def check(name: str, instance: object, *, type: str, at: tuple[str, ...] = ()) -> None:
    """Check a JSON value against a schema.

    Parameters
    ----------
    name
        Of the schema.
    instance
        Dicts, lists or tuples, texts, numbers, booleans, None.
    type, at
        What the error says it is, and where the value is in it.

    Raises
    ------
    MessageError
        It is not what the schema says.
    """
    import jsonschema_rs

    try:
        _validator(name).validate(instance)
    except jsonschema_rs.ValidationError as error:
        path, problem = _explain(error)
        raise MessageError(f"{type}: {_path((*at, *path))}: {problem}") from None
    except ValueError:
        raise MessageError(f"{type}: holds text or a value that JSON cannot hold") from None


@cache
def _validator(name: str) -> "jsonschema_rs.Validator":
    # Imported where it is used: `import qbtc` stays light.
    import jsonschema_rs

    # The mask keeps values out of the messages of errors.
    return jsonschema_rs.validator_for(load(name), validate_formats=True, mask=_MASK, offline=True)


_MASK = "…"


def _explain(error: "jsonschema_rs.ValidationError") -> tuple[list[str | int], str]:
    """Say where the error is and what is wrong there."""
    kind: Any = error.kind
    if kind.name in ("anyOf", "oneOf") and hasattr(kind, "context"):
        # Of the branches, the one that fails furthest inside is the one that was meant.
        branches = [errors[0] for errors in kind.context if errors]
        if branches:
            return _explain(max(branches, key=_likely))
    if kind.name == "additionalProperties":
        names = ", ".join(_shown(name) for name in sorted(kind.unexpected)[:3])
        return list(error.instance_path), f"unknown field {names}"
    if kind.name == "propertyNames":
        return list(error.instance_path), "a key is not what its names may be"
    return list(error.instance_path), error.message.removeprefix(f"{_MASK} ")


def _likely(error: "jsonschema_rs.ValidationError") -> tuple[int, bool]:
    return len(list(error.instance_path)), error.kind.name not in ("type", "const")


def _path(parts: tuple[str | int, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{_shown(part)}" for part in parts)
    return path.removeprefix(".") or "the message"


def _shown(name: str) -> str:
    printable = "".join(char if char.isprintable() else "?" for char in name)
    short = len(printable) <= KEY_CHARS_SHOWN_MAX
    return printable if short else f"{printable[:KEY_CHARS_SHOWN_MAX]}…"
