"""Read a TOML file into a struct, with errors that say what to change."""

import difflib
import os
import re
import tomllib
from pathlib import Path

import msgspec

from qbtc.errors import ConfigError

CONFIG_BYTES_MAX = 1_000_000
REAL_DATA_DEFAULT = Path(__file__).resolve().parents[4] / "shared" / "data"

_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]+)`(?: - at `(?P<at>[^`]+)`)?")
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
        raise ConfigError(f"{path}: no such config file{_nearest_file(path)}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
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
        raise ConfigError(f"{where}: {_explain(str(error), kind)}") from None


def resolve_path(value: str, base: Path) -> Path:
    """Expand ``${NAME}`` and make a path absolute against ``base`` (the config file's folder).

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

    return (base / _VARIABLE.sub(expand, value)).resolve()


def _explain(message: str, kind: type) -> str:
    """Turn msgspec's message into one that names the nearest valid key."""
    match = _UNKNOWN.search(message)
    if match is None:
        return message
    where = f" in [{match['at'].removeprefix('$.')}]" if match["at"] else ""
    known = sorted(_field_names(kind))
    near = difflib.get_close_matches(match["key"], known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(known)}"
    return f"unknown key {match['key']!r}{where}; {hint}"


def _field_names(kind: type) -> set[str]:
    """Names of every field reachable from a struct."""
    names: set[str] = set()
    todo: list[msgspec.inspect.Type] = [msgspec.inspect.type_info(kind)]
    seen: set[type] = set()
    while todo:
        info = todo.pop()
        if isinstance(info, msgspec.inspect.StructType) and info.cls not in seen:
            seen.add(info.cls)
            names.update(field.encode_name for field in info.fields)
            todo.extend(field.type for field in info.fields)
        elif isinstance(info, msgspec.inspect.UnionType):
            todo.extend(info.types)
        elif isinstance(info, msgspec.inspect.CollectionType):
            todo.append(info.item_type)
    return names


def _nearest_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return ""
    names = [entry.name for entry in folder.glob("*.toml")]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {folder / near[0]}?" if near else ""
