"""APISIX's files, made from the gateway's own settings and routes, and checked.

APISIX may stand before the gateway: it turns away wrong keys and floods before they reach Python.
It runs standalone, from two files and no database. ``config.yaml`` says how the server runs,
``apisix.yaml`` what it carries: one route for every path of the application that clients may reach.
Both follow from one policy, a ``[serve]`` file, so the limits of the two doors cannot drift apart.

Whatever APISIX lets through, the gateway checks again: scopes, tokens a minute and what all clients
together may have open are known only there.
"""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from qbtc.errors import InputError
from qbtc_gateway.security.scopes import scope_of
from qbtc_gateway.settings import Limits, Settings

__all__ = ["CONFIG", "RESOURCES", "SCHEMA", "check", "public_routes", "write"]

CONFIG: Final = "config.yaml"
RESOURCES: Final = "apisix.yaml"
SCHEMA: Final = "plugins.schema.json"
END: Final = "#END"
"""APISIX takes a file without this last line for one that is still being written."""
PORT: Final = 9080
KEY_VARIABLE: Final = "QBTC_API_KEY"
ANSWER_S_MAX: Final = 600
"""Longest silence of the gateway: an answer that is not streamed comes all at once."""
CONNECT_S_MAX: Final = 2

type _Tree = dict[str, Any]

_HEADER: Final = (
    "# Made by `qbtc apisix write` from deploy/policy.toml and the gateway's routes; do not edit.\n"
)
_PLUGINS: Final = (
    "file-logger",
    "key-auth",
    "limit-conn",
    "limit-count",
    "proxy-buffering",
    "request-id",
)
"""All others stay unloaded."""
_LOG_FORMAT: Final = {
    "time": "$time_iso8601",
    "request_id": "$http_x_request_id",
    "consumer": "$consumer_name",
    "client": "$remote_addr",
    "method": "$request_method",
    # Without the query, which nothing here needs and where people put secrets.
    "path": "$uri",
    "status": "$status",
    "request_s": "$request_time",
    "upstream_s": "$upstream_response_time",
    "bytes_in": "$request_length",
    "bytes_out": "$bytes_sent",
}
"""Named one by one: the plugin's own format would log every header, Authorization too."""


def public_routes(app: FastAPI) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each path of an application that clients may reach, with its methods.

    Figures are not among them: Prometheus asks the gateway itself, on the inner network.
    """
    for route in iter_route_contexts(app.routes):
        if route.path is not None and scope_of(route.path) != "metrics":
            yield route.path, tuple(sorted(route.methods or ()))


def write(folder: Path, settings: Settings, *, upstream: str) -> None:
    """Write both files.

    Parameters
    ----------
    folder
        Where to.
    settings
        The policy.
    upstream
        Host of the gateway as APISIX sees it; its port is the policy's.
    """
    for name, text in _files(settings, upstream).items():
        try:
            (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{folder / name}: {error.strerror}") from None


def check(folder: Path, settings: Settings, *, upstream: str) -> list[str]:
    """Say what is wrong with the files of a folder; an empty list if nothing is.

    Each must end as APISIX wants it, fit the schema of the plugins in use, and be what
    :func:`write` would write now.
    """
    wrong: list[str] = []
    schema = _read(folder / SCHEMA)
    for name, expected in _files(settings, upstream).items():
        text = _read(folder / name)
        found = [*_ending(name, text), *_against_schema(name, text, schema)]
        if not found and text != expected:
            found = ["differs from the policy and the routes; run `qbtc apisix write`"]
        wrong += [f"{name}: {line}" for line in found]
    return wrong


def _files(settings: Settings, upstream: str) -> dict[str, str]:
    limits = settings.limits
    resources = _resources(settings, upstream, public_routes(_application(settings)))
    return {
        CONFIG: _HEADER + _dump(_config(limits)),
        RESOURCES: f"{_HEADER}{_dump(resources)}{END}\n",
    }


def _application(settings: Settings) -> FastAPI:
    """Build the gateway as it is served, with an engine that is never loaded."""
    from qbtc_gateway.loading import LoadingEngine
    from qbtc_gateway.security.keys import KeyFile, KeyRing
    from qbtc_gateway.server import build_app

    engine = LoadingEngine(asyncio.Future, wait_s_max=settings.load_wait_s_max)
    return build_app(settings, engine, KeyRing(KeyFile(Path("/nonexistent/keys.json"))))


def _config(limits: Limits) -> _Tree:
    return {
        "deployment": {"role": "data_plane", "role_data_plane": {"config_provider": "yaml"}},
        "apisix": {
            "node_listen": [{"ip": "0.0.0.0", "port": PORT}],
            "enable_admin": False,
            "enable_control": False,
            "enable_server_tokens": False,
            "ssl": {"enable": False},
        },
        "plugins": list(_PLUGINS),
        "nginx_config": {
            # One worker: the counts of limit-conn and the connections below are whole.
            "worker_processes": 1,
            # A client's connection and the gateway's for it.
            "event": {"worker_connections": 2 * limits.connections_max},
            "http": {
                # The plugin file-logger writes them, without the query.
                "enable_access_log": False,
                "client_max_body_size": str(limits.body_bytes_max),
                "client_header_timeout": _seconds(limits.header_read_s_max),
                "client_body_timeout": _seconds(limits.body_read_s_max),
                "keepalive_timeout": _seconds(limits.idle_s_max),
                "send_timeout": _seconds(limits.write_s_max),
            },
        },
    }


def _resources(
    settings: Settings, upstream: str, routes: Iterator[tuple[str, tuple[str, ...]]]
) -> _Tree:
    limits = settings.limits
    return {
        "upstreams": [
            {
                "id": "gateway",
                "type": "roundrobin",
                "scheme": "http",
                "nodes": {f"{upstream}:{settings.port}": 1},
                # A POST that computes an answer must not be sent twice.
                "retries": 0,
                "timeout": {
                    "connect": CONNECT_S_MAX,
                    "send": limits.write_s_max,
                    "read": ANSWER_S_MAX,
                },
            }
        ],
        "plugin_configs": [
            {
                "id": "with-key",
                "plugins": {
                    "key-auth": {"header": "Authorization", "hide_credentials": False},
                    **_guards(limits, "consumer_name", "with_key"),
                },
            },
            {"id": "open", "plugins": _guards(limits, "remote_addr", "open")},
        ],
        "routes": [_route(path, methods) for path, methods in routes],
        "consumers": [
            {
                "username": "qbtc",
                "plugins": {"key-auth": {"key": f"Bearer ${{{{{KEY_VARIABLE}}}}}"}},
            }
        ],
    }


def _guards(limits: Limits, who: str, group: str) -> _Tree:
    """Plugins that every route has; counts are of one client, by key or by address."""
    plugins: _Tree = {
        "request-id": {"header_name": "X-Request-Id", "include_in_response": True},
        "proxy-buffering": {"disable_proxy_buffering": True},
        "limit-conn": {
            "conn": limits.requests_open_per_key_max,
            "burst": 0,
            # Must be given; without a burst nobody is delayed.
            "default_conn_delay": 0.1,
            "key": who,
            "key_type": "var",
            # Also the default, but schemas are checked before defaults are filled in.
            "policy": "local",
            "rejected_code": 429,
        },
        "file-logger": {"path": "/dev/stdout", "log_format": dict(_LOG_FORMAT)},
    }
    if limits.requests_per_minute_max:
        plugins["limit-count"] = {
            "count": limits.requests_per_minute_max,
            "time_window": 60,
            "key": who,
            "key_type": "var",
            "policy": "local",
            # One count for all routes together.
            "group": group,
            "rejected_code": 429,
        }
    return plugins


def _route(path: str, methods: tuple[str, ...]) -> _Tree:
    """Return the route of one path; a parameter takes all that follows."""
    fixed, brace, rest = path.partition("{")
    if brace and not rest.endswith(":path}"):
        raise InputError(f"{path}: only a last parameter of kind path can be a route of APISIX")
    return {
        "id": re.sub("[^a-z0-9]+", "-", f"{'-'.join(methods)}{path}".lower()).strip("-"),
        "uri": f"{fixed}*" if brace else path,
        "methods": list(methods),
        "plugin_config_id": "open" if scope_of(path) is None else "with-key",
        "upstream_id": "gateway",
    }


def _dump(tree: _Tree) -> str:
    text: str = yaml.safe_dump(tree, sort_keys=False, width=100)
    return text


def _seconds(value: float) -> str:
    """Write a time as nginx reads it."""
    return f"{round(value * 1000)}ms"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}; run `qbtc apisix write` in the repository") from None


def _ending(name: str, text: str) -> Iterator[str]:
    if name == RESOURCES and not text.endswith(f"\n{END}\n"):
        yield f"its last line is not {END}; APISIX would wait for the rest for ever"


def _against_schema(name: str, text: str, schema: str) -> Iterator[str]:
    from jsonschema_rs import Draft202012Validator

    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as problem:
        yield f"not YAML: {' '.join(str(problem).split())}"
        return
    whole = msgspec.json.decode(schema)
    part = {"$ref": f"#/$defs/{name.removesuffix('.yaml')}", "$defs": whole["$defs"]}
    for error in Draft202012Validator(part).iter_errors(tree):
        place = "/".join(str(step) for step in error.instance_path)
        yield f"{place or 'top'}: {error.message}"
