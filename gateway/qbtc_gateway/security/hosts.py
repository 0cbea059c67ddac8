"""Keep web pages of others away from a server on this machine.

A page that the user visits may send requests to localhost: across origins it may send, though not
read, and by rebinding its own name to 127.0.0.1 it could read too. The first carries an ``Origin``
of another host, the second a ``Host`` that is not ours; both are refused. Answers never carry CORS
headers.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

from qbtc_gateway.errors import ApiError
from qbtc_gateway.settings import is_loopback

__all__ = ["HostRule"]


class HostRule:
    """Which ``Host`` and ``Origin`` may ask."""

    def __init__(self, bind: str, allowed_hosts: Iterable[str]) -> None:
        self._allowed = frozenset(_name(host) for host in allowed_hosts)
        # A name that any page could point here proves nothing where keys are required anyway.
        self._check_host = is_loopback(bind) or bool(self._allowed)

    def check(self, host: str, origin: str | None) -> None:
        """Raise 403 for a name or an origin that is not ours."""
        name = _name(host)
        if self._check_host and not (is_loopback(name) or name in self._allowed):
            raise _forbidden(
                f"This server is not known as {name[:100]!r}. If it should be, add the name to "
                "allowed_hosts in [serve].",
                "host_not_allowed",
            )
        if origin is not None and _origin_name(origin) != host.lower():
            raise _forbidden(
                "Requests from web pages of other origins are refused.", "origin_not_allowed"
            )


def _forbidden(message: str, code: str) -> ApiError:
    return ApiError(message, status=403, type="invalid_request_error", code=code)


def _name(host: str) -> str:
    """Host without its port, in lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        address, _, rest = host.partition("]")
        return f"{address}]" if not rest or rest.startswith(":") else host
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _origin_name(origin: str) -> str:
    """Host and port of an origin; empty for ``null`` and for what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
