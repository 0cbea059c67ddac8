"""The one middleware: everything that stands before the routes, in one straight line.

Request id, names and sizes, key and scope, rates, what may be open at once, the body; then the
application; in the end the log line and the figures. Refusals are OpenAI's errors. Written against
ASGI itself: a stream's pieces pass through one small function.
"""

import asyncio
import re
import secrets
from typing import TYPE_CHECKING, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qbtc_gateway.body import session_name
from qbtc_gateway.errors import ApiError, api_error, overloaded
from qbtc_gateway.journal import Journal
from qbtc_gateway.metrics import Metrics
from qbtc_gateway.record import Record
from qbtc_gateway.security.bodies import Bodies, ClientGone
from qbtc_gateway.security.hosts import HostRule
from qbtc_gateway.security.keys import KeyRing
from qbtc_gateway.security.limits import Admission, address_identity
from qbtc_gateway.security.logs import write_line
from qbtc_gateway.security.scopes import has_scope, scope_of
from qbtc_gateway.settings import Settings

if TYPE_CHECKING:
    from qbtc.cache.link import RedisLink

__all__ = ["Gate"]

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_NO_KEY: Final = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header "
    "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
)
_SECURITY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Gate:
    """ASGI middleware, to be outermost."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        keys: KeyRing,
        metrics: Metrics,
        shared: "RedisLink | None" = None,
        journal: Journal | None = None,
    ) -> None:
        self._app = app
        self._settings = settings
        self._keys = keys
        self._metrics = metrics
        self._hosts = HostRule(settings.host, settings.allowed_hosts)
        self._admission = Admission(settings.limits, shared=shared, prefix=settings.redis_prefix)
        self._journal = journal
        self._bodies = Bodies(settings.limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = _headers(scope)
        given_id = headers.get("x-request-id", "")
        client = scope.get("client")
        record = Record(
            self._metrics,
            request_id=given_id
            if _REQUEST_ID.fullmatch(given_id)
            else f"req_{secrets.token_hex(16)}",
            method=scope["method"],
            path=scope["path"],
            client=client[0] if client else "",
        )
        record.session = session_name(headers.get("x-session-id", ""))
        if self._journal is not None:
            record.notes = self._journal.begin(record.method, record.path)
        await _Exchange(self, record, headers, send).run(scope, receive)


class _Exchange:
    """One request on its way through the gate."""

    def __init__(self, gate: Gate, record: Record, headers: dict[str, str], send: Send) -> None:
        self._gate = gate
        self._record = record
        self._headers = headers
        self._send = send
        self._told: dict[str, str] = {}
        self._complete = False

    async def run(self, scope: Scope, receive: Receive) -> None:
        gate, record = self._gate, self._record
        scope.setdefault("state", {})["observer"] = record
        try:
            await self._pass(scope, receive)
        except ClientGone:
            record.disconnected()
        except asyncio.CancelledError:
            # The server ends and did not wait for this answer.
            if not record.status:
                error = overloaded("The server is shutting down. Please try again later.")
                record.failed(error)
                await self._refuse(error)
            raise
        except Exception as error:
            record.failed(error)
            if record.status:
                raise
            await self._refuse(api_error(error))
        finally:
            if record.status and not self._complete:
                record.disconnected()
            line = record.finish()
            if gate._journal is not None:
                gate._journal.write(record)
            if gate._settings.access_log:
                write_line(line)

    async def _pass(self, scope: Scope, receive: Receive) -> None:
        gate, record, headers = self._gate, self._record, self._headers
        _check_head(scope, gate._settings.limits.headers_bytes_max)
        gate._hosts.check(headers.get("host", ""), headers.get("origin"))
        needed = scope_of(record.path)
        if needed is None:
            await gate._app(scope, receive, self._forward)
            return
        record.identity = address_identity(record.client)
        await self._identify(needed)
        self._told = await gate._admission.count(record.identity)
        gate._admission.enter(record.identity)
        try:
            if scope["method"] in _WITH_BODY:
                await self._with_body(scope, receive)
            else:
                await gate._app(scope, receive, self._forward)
        finally:
            gate._admission.leave(record.identity)
            await gate._admission.charge(record.identity, record.tokens())

    async def _identify(self, needed: str) -> None:
        """Find the key; a wrong one counts against its address."""
        gate, record = self._gate, self._record
        gate._keys.refresh()
        if not gate._keys.required:
            record.known = True
            return
        given = _presented(self._headers)
        key = gate._keys.find(given) if given else None
        if key is None:
            await gate._admission.count(record.identity)
            raise ApiError(
                "Incorrect API key provided." if given else _NO_KEY,
                status=401,
                type="invalid_request_error",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        record.known = True
        record.key_id = key.id
        record.identity = f"key:{key.id}"
        if not has_scope(key.scopes, needed):
            raise ApiError(
                f"This API key does not have the scope {needed!r}.",
                status=403,
                type="invalid_request_error",
                code="insufficient_permissions",
            )

    async def _with_body(self, scope: Scope, receive: Receive) -> None:
        """Read the body, then hand it to the application in one piece."""
        bodies = self._gate._bodies
        body = await bodies.read(receive, self._headers.get("content-length"))
        size = len(body)
        if self._record.notes is not None:
            self._record.notes.asked(body)
        pending: Message | None = {"type": "http.request", "body": body, "more_body": False}
        del body

        async def replay() -> Message:
            nonlocal pending
            if pending is None:
                return await receive()
            message, pending = pending, None
            return message

        try:
            await self._gate._app(scope, replay, self._forward)
        finally:
            bodies.release(size)

    async def _forward(self, message: Message) -> None:
        """Send, with our headers at the start."""
        if message["type"] == "http.response.start":
            self._record.status = message["status"]
            head = [
                (b"x-request-id", self._record.request_id.encode()),
                *_SECURITY_HEADERS,
                *((name.encode(), value.encode()) for name, value in self._told.items()),
            ]
            if self._record.cache is not None:
                head.append((b"x-qbtc-cache", self._record.cache.encode()))
            message = {**message, "headers": [*message.get("headers", ()), *head]}
        else:
            notes = self._record.notes
            if notes is not None and notes.contents and not self._streams():
                notes.answered(message.get("body", b""))
            self._complete = not message.get("more_body", False)
        await self._send(message)

    def _streams(self) -> bool:
        return bool(self._record.stream) and self._record.status == 200

    async def _refuse(self, error: ApiError) -> None:
        body = error.body()
        self._told = {k: v for k, v in self._told.items() if k not in error.headers}
        head = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((name.encode(), value.encode()) for name, value in error.headers.items()),
        ]
        await self._forward(
            {"type": "http.response.start", "status": error.status, "headers": head}
        )
        await self._forward({"type": "http.response.body", "body": body})


def _headers(scope: Scope) -> dict[str, str]:
    """Headers by lower-case name; of one that is repeated, the last."""
    return {
        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
    }


def _presented(headers: dict[str, str]) -> str:
    """Key as a client sends it: a bearer token, or ``x-api-key``."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key", "").strip()


def _check_head(scope: Scope, bytes_max: int) -> None:
    size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    size += sum(len(name) + len(value) for name, value in scope["headers"])
    if size > bytes_max:
        raise ApiError(
            f"URL and headers are larger than {bytes_max} bytes.",
            status=431,
            type="invalid_request_error",
            code="headers_too_large",
            headers={"connection": "close"},
        )
