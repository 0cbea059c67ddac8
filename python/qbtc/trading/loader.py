"""Find a strategy by file path and class name, and fit its parameters.

``strategies/ema_cross.py:EmaCross`` is relative to the config file; ``package.module:Class`` is
imported. A file's module is named ``strategies.<stem>`` and stands in ``sys.modules`` before it
runs, so that msgspec and pickle find its names. Nothing is added to ``sys.path``.
"""

import difflib
import importlib
import importlib.util
import math
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, get_original_bases
from typing import Any, get_args

import msgspec

from qbtc.config import StrategyConfig, convert
from qbtc.errors import ConfigError
from qbtc.trading.strategy import QbtcStrategy, StrategyParams

__all__ = ["LoadedStrategy", "load_strategy"]


@dataclass(frozen=True, slots=True)
class LoadedStrategy:
    """A strategy class with its checked parameters, not yet made."""

    cls: type[QbtcStrategy[Any]]
    params: StrategyParams
    path: str
    """As written in the config."""
    file: Path | None
    """What was loaded; None for a module that has no file."""


def load_strategy(config: StrategyConfig, base: Path) -> LoadedStrategy:
    """Load one strategy.

    Parameters
    ----------
    config
        Path, class name and parameters.
    base
        Folder that a file path is relative to.

    Raises
    ------
    ConfigError
        No such file, class or parameter, a file that does not run, or a class that is no
        ``QbtcStrategy``. One line, with file and line number where there is one.
    """
    place, colon, name = config.path.rpartition(":")
    if not colon or not name.isidentifier():
        raise ConfigError(
            f"strategy path {config.path!r}: write it as file.py:Class or package.module:Class"
        )
    module = _load_file((base / place).resolve()) if place.endswith(".py") else _import(place)
    cls = _find_class(module, name)
    params = convert(config.params, _params_type(cls), f"params of {config.path}")
    for key, value in msgspec.structs.asdict(params).items():
        if isinstance(value, float) and math.isnan(value):
            raise ConfigError(f"params of {config.path}: {key} is not a number; give one")
    file = getattr(module, "__file__", None)
    return LoadedStrategy(cls, params, config.path, None if file is None else Path(file))


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        near = difflib.get_close_matches(
            path.name, [file.name for file in path.parent.glob("*.py") if file.is_file()]
        )
        hint = (
            f"; did you mean {path.parent / near[0]}?"
            if near
            else "; a path is relative to the config file"
        )
        raise ConfigError(f"{path}: no such strategy file{hint}")
    name = f"strategies.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise ConfigError(_where(error, path)) from error
    return module


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"strategy module {name!r}: {type(error).__name__}: {error}; "
            "a strategy in a file is written path/to/file.py:Class"
        ) from error


def _where(error: BaseException, path: Path) -> str:
    """Say in one line which line of the file failed and how."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno}: syntax error: {error.msg}; mend that line"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    at = f"{path}:{lines[-1]}" if lines else str(path)
    return f"{at}: {type(error).__name__}: {error}; the file must run before its strategy can"


def _find_class(module: ModuleType, name: str) -> type[QbtcStrategy[Any]]:
    file = getattr(module, "__file__", None) or module.__name__
    known = sorted(
        key
        for key, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, QbtcStrategy)
        and value.__module__ == module.__name__
    )
    found = getattr(module, name, None)
    if found is None:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(known) or 'none'}"
        raise ConfigError(f"{file}: no strategy class {name!r}; {hint}")
    if not (isinstance(found, type) and issubclass(found, QbtcStrategy)):
        raise ConfigError(
            f"{file}: {name!r} is not a strategy; "
            "write `class Name(QbtcStrategy[NameParams])` (qbtc.trading.strategy)"
        )
    return found


def _params_type(cls: type[QbtcStrategy[Any]]) -> type[StrategyParams]:
    """Find ``Params`` in ``class X(QbtcStrategy[Params])``, through inherited strategies too."""
    for owner in cls.__mro__:
        if not issubclass(owner, QbtcStrategy) or owner is QbtcStrategy:
            continue
        for base in get_original_bases(owner):
            for arg in get_args(base):
                if isinstance(arg, type) and issubclass(arg, StrategyParams):
                    return arg
    raise ConfigError(
        f"strategy {cls.__name__} does not name its parameters; "
        f"write `class {cls.__name__}(QbtcStrategy[{cls.__name__}Params])`"
    )
