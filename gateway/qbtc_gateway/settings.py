"""What one server is: a model, an address, keys and limits.

Defaults, then the ``[serve]`` table of a TOML file, then the variables that all of QBTC shares,
then ``QBTC_SERVE_*`` variables, then flags of ``qbtc serve``: the later wins. An unknown key is an
error everywhere. Limits carry their unit last; 0 turns a limit off only where it says so.
"""

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from qbtc.config.load import convert, load_config
from qbtc.config.urls import redacted
from qbtc.errors import ConfigError, InputError

__all__ = ["Limits", "Settings", "check_bind", "default_keys_file", "is_loopback", "load_settings"]

ENVIRONMENT_PREFIX = "QBTC_SERVE_"
SHARED_VARIABLES: Final = {
    "QBTC_AMQP_URL": "amqp_url",
    "QBTC_BUS_PREFIX": "bus_prefix",
    "QBTC_DATABASE_URL": "database_url",
    "QBTC_REDIS_URL": "redis_url",
}
"""What other commands read as well."""
_TEXTS: Final = frozenset({"model", "embedding_model", "host", "keys_file", "redis_prefix"}) | {
    *SHARED_VARIABLES.values()
}
"""Settings that are text as it stands."""

type Count = Annotated[int, Meta(ge=1, le=2**31)]
type CountOrOff = Annotated[int, Meta(ge=0, le=2**31)]
type Bytes = Annotated[int, Meta(ge=1, le=2**40)]
type Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Limits(_Section, frozen=True, kw_only=True):
    """How much one client, and all of them, may ask for: ``[serve.limits]``."""

    requests_per_minute_max: CountOrOff = 6_000
    """Of one key, or of one address where there are no keys; 0: no limit."""
    tokens_per_minute_max: CountOrOff = 0
    """Prompt and answer tokens of one key or address; 0: no limit."""
    requests_open_per_key_max: Count = 256
    """Requests of one key or address at the same time."""
    requests_open_max: Count = 512
    """Requests of all clients at the same time; more are told to come back."""
    connections_max: Count = 2_048
    """Open connections, idle ones too."""
    body_bytes_max: Bytes = 8 * 1024 * 1024
    """One request body."""
    bodies_bytes_max: Bytes = 64 * 1024 * 1024
    """Bodies of all requests that are open."""
    headers_bytes_max: Bytes = 32 * 1024
    """All headers of one request, with its URL."""
    header_read_s_max: Seconds = 10.0
    """From a connection's first moment, or a request's first byte, to the end of its headers."""
    body_read_s_max: Seconds = 60.0
    """From the end of the headers to the end of the body."""
    idle_s_max: Seconds = 75.0
    """A kept connection without a request."""
    write_s_max: Seconds = 30.0
    """A client that reads nothing for this long is cut off and its work cancelled."""
    drain_s_max: Seconds = 15.0
    """At the end: how long open requests may go on."""


class Settings(_Section, frozen=True, kw_only=True):
    """One server: ``[serve]``."""

    model: str = "smollm2-135m-instruct"
    """An id of ``qbtc models list``, a GGUF file, or the address one was pulled from."""
    embedding_model: str = "all-minilm-l6-v2"
    """Empty: no embeddings."""
    engine: Literal["local", "amqp"] = "local"
    """Who answers: this process, or workers (`qbtc worker`) behind RabbitMQ."""
    amqp_url: str = ""
    """RabbitMQ, for `engine = "amqp"`; also `QBTC_AMQP_URL`."""
    bus_prefix: str = ""
    """What the names of its exchanges and queues begin with; also `QBTC_BUS_PREFIX`."""
    redis_url: str = ""
    """Redis, for rates and kept answers of all gateways together; also `QBTC_REDIS_URL`."""
    redis_prefix: str = "qbtc:"
    """What the keys there begin with."""
    cache: bool = True
    """Keep answers at temperature 0, in Redis if there is one, else in this process."""
    records: Literal["off", "metadata", "full"] = "metadata"
    """What the database keeps of requests; only `full` keeps prompts and answers."""
    database_url: str = ""
    """Where; also `QBTC_DATABASE_URL`. Empty: SQLite in the user's folder; `off`: nowhere."""
    answer_s_max: Seconds = 600.0
    """With `engine = "amqp"`: a whole answer, with its time in the queue. With either: how long
    a running request holds its `Idempotency-Key`."""
    idempotency_s_max: Seconds = 86_400.0
    """How long the answer to a request with an `Idempotency-Key` is kept."""
    host: str = "127.0.0.1"
    """Address to listen on; one that other machines reach needs keys."""
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000
    """0: any free port; the first lines say which."""
    threads: Annotated[int, Meta(ge=0, le=256)] = 0
    """Threads of the engine; 0: one a core."""
    kv_bytes_max: Annotated[int, Meta(ge=0, le=2**44)] = 0
    """Memory for keys and values; 0: the engine's own choice."""
    active_max: Count = 64
    """Answers that are computed at the same time."""
    queue_max: Count = 256
    """Requests that wait for the engine; more are told to come back."""
    speculation: bool = True
    """Guess tokens by looking them up in the prompt; never changes an answer."""
    snapshot: bool = True
    """Keep the prefix cache on disk across restarts."""
    keys_file: str = ""
    """Empty: ``QBTC_KEYS_FILE``, or ``keys.json`` in the user's folder for QBTC."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, besides localhost, by which a server on loopback may be addressed."""
    access_log: bool = True
    """One JSON line a request on stderr."""
    keep_alive_s: Seconds = 5.0
    """Longest silence of a stream; then a comment is sent."""
    load_wait_s_max: Seconds = 60.0
    """How long a request waits for the model to be loaded."""
    limits: Limits = Limits()

    @property
    def keys_path(self) -> Path:
        """File of the keys."""
        return Path(self.keys_file).expanduser() if self.keys_file else default_keys_file()


class _File(_Section, frozen=True, kw_only=True):
    serve: Settings = Settings()


def load_settings(
    path: str | Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """Put file, environment and flags together.

    Parameters
    ----------
    path
        A TOML file whose ``[serve]`` table is read.
    environment
        Variables; ``os.environ`` if not given.
    flags
        Keys of ``Settings`` that were given on the command line; None values are left out.

    Raises
    ------
    ConfigError
        A file, variable or flag does not fit; the message names it.
    """
    given = msgspec.to_builtins(load_config(path, _File).serve) if path is not None else {}
    variables = os.environ if environment is None else environment
    given |= {key: variables[name] for name, key in SHARED_VARIABLES.items() if name in variables}
    for name, text in sorted(variables.items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            given = _with_variable(given, name, text)
    given |= {key: value for key, value in (flags or {}).items() if value is not None}
    return _checked(convert(given, Settings, "qbtc serve"))


def default_keys_file() -> Path:
    """``QBTC_KEYS_FILE``, else ``keys.json`` in the user's configuration folder for QBTC."""
    if named := os.environ.get("QBTC_KEYS_FILE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "qbtc" / "keys.json"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address to listen on."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_bind(host: str, *, keys: int, keys_path: Path) -> None:
    """Refuse to be reachable by other machines without keys.

    Raises
    ------
    InputError
        The address is not loopback and there is no key.
    """
    if keys == 0 and not is_loopback(host):
        raise InputError(
            f"host {host} lets other machines in and {keys_path} holds no keys; make one with "
            "`qbtc keys new`, or listen on 127.0.0.1"
        )


def _checked(settings: Settings) -> Settings:
    """Refuse what does not fit together."""
    if settings.engine == "amqp" and not settings.amqp_url.startswith(("amqp://", "amqps://")):
        given = redacted(settings.amqp_url) if settings.amqp_url else "none"
        raise ConfigError(
            "engine amqp needs RabbitMQ's address, amqp://USER:PASSWORD@HOST:5672/, in --amqp-url "
            f"or QBTC_AMQP_URL; given was {given}"
        )
    return settings


def _with_variable(given: dict[str, Any], name: str, text: str) -> dict[str, Any]:
    """Add one variable; its text is a TOML value, and text may lack its quotes."""
    key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        value = text
    section, _, rest = key.partition("limits_")
    part: dict[str, Any] = {"limits": {rest: value}} if not section and rest else {key: value}
    if key in _TEXTS:
        part = {key: text}
    try:
        convert(part, Settings, name)
    except ConfigError as error:
        raise ConfigError(f"{error} (variable {name})") from None
    if "limits" in part:
        part = {"limits": given.get("limits", {}) | part["limits"]}
    return given | part
