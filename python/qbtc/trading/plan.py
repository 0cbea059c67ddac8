"""A config with everything loaded and checked that needs no market data."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from qbtc.config import DataSource, RunConfig, SignalConfig, resolve_path
from qbtc.core.signal_model import SignalModel, load_model
from qbtc.data.instruments import split_id
from qbtc.errors import ConfigError, DataError, ModelError
from qbtc.trading.loader import LoadedStrategy, load_strategy

__all__ = ["Plan", "baseline_names", "check_sources", "config_sha256", "make_plan"]


TIME_MIN = datetime(1970, 1, 1, tzinfo=UTC)
TIME_END = datetime(2200, 1, 1, tzinfo=UTC)
"""Nanoseconds since 1970 fit 64 bits until 2262."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A config with everything loaded that needs no market data."""

    config: RunConfig
    base: Path
    strategies: tuple[LoadedStrategy, ...]
    baselines: tuple[LoadedStrategy, ...]
    models: tuple[SignalModel, ...]
    """One per ``[[signals]]`` entry, in order."""
    span_ns: tuple[int | None, int | None]


def make_plan(config: RunConfig, base: Path) -> Plan:
    """Load and check everything that needs no market data.

    Raises
    ------
    InputError
        A strategy or model does not load, or the config contradicts itself.
    """
    if config.mode != "backtest":
        raise ConfigError(f'mode {config.mode!r}: not available yet; write mode = "backtest"')
    if not config.data:
        raise ConfigError("no data: add a [[data]] entry")
    if not config.strategies:
        raise ConfigError("no strategies: add a [[strategies]] entry")
    _check_instruments(config)
    start, end = _time(config.start, "start"), _time(config.end, "end")
    if start is not None and end is not None and start > end:
        raise ConfigError(f"start = {config.start!r} is after end = {config.end!r}; swap them")
    plan = Plan(
        config=config,
        base=base,
        strategies=tuple(load_strategy(item, base) for item in config.strategies),
        baselines=tuple(load_strategy(item, base) for item in config.baselines),
        models=tuple(_load_model(item, base) for item in config.signals),
        span_ns=(start, end),
    )
    names = [source.instrument for source in config.data]
    for loaded in (*plan.strategies, *plan.baselines):
        wanted = getattr(loaded.params, "instrument", None)
        if isinstance(wanted, str) and wanted not in names:
            raise ConfigError(
                f"params of {loaded.path}: instrument = {wanted!r} has no [[data]] entry; "
                f"the run has: {', '.join(names)}"
            )
    return plan


def check_sources(sources: Sequence[DataSource], base: Path) -> None:
    """Check that the files of the data sources exist.

    Raises
    ------
    DataError
        One does not.
    """
    for source in sources:
        paths = getattr(source, "paths", None) or filter(None, [getattr(source, "path", None)])
        for text in paths:
            path = resolve_path(text, base)
            if not path.exists():
                remedy = (
                    "set QBTC_REAL_DATA to the folder that has it"
                    if "${QBTC_REAL_DATA}" in text
                    else "check the path or fetch it first"
                )
                raise DataError(f"{path}: no such file (data of {source.instrument}); {remedy}")


_OUTSIDE = ("bus", "bus_signals", "records", "replay", "risk")
"""Sections that are left out of the hash where they are not written, as in older versions."""


def config_sha256(config: RunConfig) -> str:
    """SHA-256 over the config with its defaults filled in, keys sorted."""
    tree = msgspec.to_builtins(config)
    written = {name: value for name, value in tree.items() if value or name not in _OUTSIDE}
    return hashlib.sha256(msgspec.json.encode(written, order="sorted")).hexdigest()


def baseline_names(plan: Plan) -> list[str]:
    """Class names, numbered where two are alike."""
    names = [loaded.cls.__name__ for loaded in plan.baselines]
    return [
        name if names.count(name) == 1 else f"{name}-{names[: index + 1].count(name)}"
        for index, name in enumerate(names)
    ]


def _check_instruments(config: RunConfig) -> None:
    names = [source.instrument for source in config.data]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two [[data]] entries are of {name}; write one per instrument")
        if not name.endswith(f".{config.venue.name}"):
            raise ConfigError(
                f"instrument {name} is not of venue {config.venue.name}; "
                f"write SYMBOL.{config.venue.name}"
            )
        if config.venue.account == "cash" and split_id(name)[1]:
            raise ConfigError(
                f'a cash account cannot hold {name}; write account = "margin" in [venue]'
            )
    for entry in config.signals:
        for name in filter(None, (entry.instrument, entry.lead)):
            if name not in names:
                raise ConfigError(
                    f"[[signals]] wants {name}, but there is no [[data]] of it; "
                    f"the run has: {', '.join(names)}"
                )
        if entry.lead == entry.instrument:
            raise ConfigError(
                f"[[signals]] of {entry.instrument}: it cannot lead itself; "
                "leave lead out or name another instrument"
            )
    for section, entries in (("signals", config.signals), ("bus_signals", config.bus_signals)):
        named = [entry.instrument for entry in entries]
        for name in named:
            if named.count(name) > 1:
                raise ConfigError(
                    f"two [[{section}]] entries are of {name}; write one per instrument"
                )
    _check_outside(config, names)


def _check_outside(config: RunConfig, names: list[str]) -> None:
    if config.bus is not None and not all("!" <= letter <= "~" for letter in config.name):
        raise ConfigError(
            f"name = {config.name!r} goes into messages, since there is [bus]; "
            "write it in ASCII without spaces"
        )
    for entry in config.bus_signals:
        if entry.instrument not in names:
            raise ConfigError(
                f"[[bus_signals]] wants {entry.instrument}, but there is no [[data]] of it; "
                f"the run has: {', '.join(names)}"
            )
        if config.bus is None:
            raise ConfigError("[[bus_signals]] come from a bus: add [bus] with its url")
        if config.risk is None:
            raise ConfigError(
                "[[bus_signals]] are acted on only within limits: add [risk] with "
                "order_notional_max and position_notional_max"
            )


def _load_model(entry: SignalConfig, base: Path) -> SignalModel:
    path = resolve_path(entry.model, base)
    if not path.is_file():
        raise ModelError(
            f"{path}: no such model; make it with `qbtc train CONFIG` "
            "(configs/train-*.toml say which model they write)"
        )
    return load_model(path)


def _time(text: str | None, key: str) -> int | None:
    """ISO 8601 text to UNIX ns; without a zone it is UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{key} = {text!r} is not a time; write it like 2024-08-08T23:55:00Z"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    if not TIME_MIN <= moment < TIME_END:
        raise ConfigError(f"{key} = {text!r} is not between {TIME_MIN:%Y} and {TIME_END:%Y}")
    whole = int(moment.replace(microsecond=0).timestamp())
    return whole * 1_000_000_000 + moment.microsecond * 1_000
