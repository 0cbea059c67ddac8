"""Read a TOML file into a struct, with errors that say what to change."""

import difflib
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from qbtc.errors import ConfigError

CONFIG_BYTES_MAX = 1_000_000
REAL_DATA_DEFAULT = Path(__file__).resolve().parents[4] / "shared" / "data"

_UNKNOWN = re.compile(r"Object contains unknown field `([^`]+)`")
_MISSING = re.compile(r"Object missing required field `([^`]+)`")
_INVALID = re.compile(r"Invalid (?:enum )?value '?(.*?)'?")
_TYPE_WORDS = {
    "array": "an array [...]",
    "bool": "true or false",
    "datetime": "a bare date",
    "float": "a number",
    "int": "a whole number",
    "object": "a table",
    "str": "text in quotes",
}
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def load_config[T](path: str | Path, kind: type[T]) -> T:
    """Read and check a config file.

    Parameters
    ----------
    path
        A TOML file of at most ``CONFIG_BYTES_MAX`` bytes.
    kind
        The struct it must fit, e.g. ``RunConfig``.

    Raises
    ------
    ConfigError
        The file is missing, not TOML, or does not fit; the message names the key and, for an
        unknown key, the nearest valid one.
    """
    path = Path(path)
    try:
        if path.stat().st_size > CONFIG_BYTES_MAX:
            raise ConfigError(f"{path}: larger than {CONFIG_BYTES_MAX} bytes; is it a config?")
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = _nearest_file(path) or "; give the path of a TOML file"
        raise ConfigError(f"{path}: no such config file{hint}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the path of a TOML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file; give the path of a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}; mend that place") from None
    return convert(tree, kind, str(path))


def convert[T](tree: object, kind: type[T], where: str) -> T:
    """Fit plain values to a struct.

    Raises
    ------
    ConfigError
        They do not fit; the message begins with ``where`` and names the nearest valid key.
    """
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_explain(str(error), kind, tree)}") from None


def resolve_path(value: str, base: Path) -> Path:
    """Expand ``${NAME}`` and ``~``; make a path absolute against ``base`` (the config's folder).

    Raises
    ------
    ConfigError
        An environment variable is not set (``QBTC_REAL_DATA`` has a default).
    """

    def expand(match: re.Match[str]) -> str:
        name = match[1]
        if name == "QBTC_REAL_DATA":
            return os.environ.get(name, str(REAL_DATA_DEFAULT))
        try:
            return os.environ[name]
        except KeyError:
            raise ConfigError(
                f"path {value!r}: environment variable {name} is not set; export it"
            ) from None

    return (base / os.path.expanduser(_VARIABLE.sub(expand, value))).resolve()


def _explain(message: str, kind: type, tree: object) -> str:
    """Turn msgspec's message into one that names the place and what to write there."""
    what, _, place = message.partition(" - at `")
    place = place.rstrip("`").removeprefix("$").removeprefix(".")
    types = _types_at(kind, place, tree)
    if match := _UNKNOWN.fullmatch(what):
        where = f" in [{place}]" if place else ""
        return f"unknown key {match[1]!r}{where}; {_nearest(match[1], _keys(types))}"
    if match := _MISSING.fullmatch(what):
        where = f" in [{place}]" if place else ""
        return f"missing key {match[1]!r}{where}; add it"
    if match := _INVALID.fullmatch(what):
        return f"{place} = {match[1]!r} is not possible; {_nearest(match[1], _values(types))}"
    return f"{place}: {_plain_types(what)}" if place else _plain_types(what)


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(known)}"


def _plain_types(what: str) -> str:
    """Say "a number" for a float, and so on, for people who do not write Python."""
    if not what.startswith("Expected"):
        return what
    words = re.sub(
        r"`([^`]+)`",
        lambda match: " or ".join(_TYPE_WORDS.get(name, name) for name in _alternatives(match[1])),
        what,
    )
    return f"e{words[1:]}"


def _alternatives(names: str) -> list[str]:
    return [name for name in names.split(" | ") if name != "null"]


def _types_at(kind: type, place: str, tree: object) -> list[msgspec.inspect.Type]:
    """Types that fit at a place such as ``data[0].path``; of tagged structs the one meant."""
    types: list[msgspec.inspect.Type] = [msgspec.inspect.type_info(kind)]
    node: Any = tree
    for step in re.findall(r"\w+", place):
        found: list[msgspec.inspect.Type] = []
        tags: list[str] = []
        for info in _meant(types, node):
            if isinstance(info, msgspec.inspect.StructType):
                found += [field.type for field in info.fields if field.encode_name == step]
                if info.tag_field == step:
                    tags.append(str(info.tag))
            elif isinstance(info, msgspec.inspect.CollectionType):
                found.append(info.item_type)
        if tags:
            found.append(msgspec.inspect.LiteralType(tuple(tags)))
        try:
            node = node[int(step) if isinstance(node, Sequence) else step]
        except (LookupError, TypeError, ValueError):
            node = None
        types = found
    return _meant(types, node)


def _meant(types: list[msgspec.inspect.Type], node: object) -> list[msgspec.inspect.Type]:
    """Unions and metadata opened; where ``node`` has a struct's tag, only that struct."""
    flat: list[msgspec.inspect.Type] = []
    for info in types:
        if isinstance(info, msgspec.inspect.UnionType):
            flat += _meant(list(info.types), node)
        elif isinstance(info, msgspec.inspect.Metadata):
            flat += _meant([info.type], node)
        else:
            flat.append(info)
    tagged: list[msgspec.inspect.Type] = [
        info
        for info in flat
        if isinstance(info, msgspec.inspect.StructType)
        and isinstance(node, dict)
        and info.tag_field is not None
        and node.get(info.tag_field) == info.tag
    ]
    return tagged or flat


def _keys(types: list[msgspec.inspect.Type]) -> list[str]:
    keys: set[str] = set()
    for info in types:
        if isinstance(info, msgspec.inspect.StructType):
            keys.update(field.encode_name for field in info.fields)
            if info.tag_field is not None:
                keys.add(info.tag_field)
    return sorted(keys)


def _values(types: list[msgspec.inspect.Type]) -> list[str]:
    return [
        str(value)
        for info in types
        if isinstance(info, msgspec.inspect.LiteralType)
        for value in info.values
    ]


def _nearest_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return ""
    names = [entry.name for entry in folder.glob("*.toml")]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {folder / near[0]}?" if near else ""
