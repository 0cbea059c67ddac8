"""The application: routes on an engine.

``create_app(settings, engine)`` is all that this module offers. Whatever stands before the routes
(keys, limits, size caps, request ids, logs, metrics) comes in as ASGI ``middleware``, outermost
first, and further routes as ``routers``. The engine is closed when the server shuts down.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Protocol

from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qbtc.cache import Cache, open_cache
from qbtc.errors import QbtcError
from qbtc.llm.engine import Engine
from qbtc_gateway.errors import ApiError, api_error
from qbtc_gateway.observe import observer_of
from qbtc_gateway.openapi import describe
from qbtc_gateway.routes import ROUTERS
from qbtc_gateway.state import Gateway

__all__ = ["AppSettings", "create_app"]


class AppSettings(Protocol):
    """What the routes need to know."""

    @property
    def keep_alive_s(self) -> float:
        """Longest silence of a stream; then a comment is sent."""
        ...

    @property
    def answer_s_max(self) -> float:
        """How long a request holds its ``Idempotency-Key`` while it runs."""
        ...

    @property
    def idempotency_s_max(self) -> float:
        """How long the answer to a request with an ``Idempotency-Key`` is kept."""
        ...


def create_app(
    settings: AppSettings,
    engine: Engine,
    *,
    cache: Cache | None = None,
    middleware: Sequence[Middleware] = (),
    routers: Sequence[APIRouter] = (),
) -> FastAPI:
    """Build the application; without a cache it makes one in this process."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.close()

    app = FastAPI(
        title="QBTC gateway",
        summary="OpenAI-compatible server on the QBTC inference core.",
        version=version("qbtc"),
        lifespan=lifespan,
        middleware=[*middleware, Middleware(_LastResort)],
        redirect_slashes=False,
        # Their pages would run scripts of other hosts here.
        docs_url=None,
        redoc_url=None,
        exception_handlers={ApiError: _answer, QbtcError: _answer, HTTPException: _answer_http},
    )
    app.state.gateway = Gateway(
        engine=engine,
        keep_alive_s=settings.keep_alive_s,
        cache=open_cache(None) if cache is None else cache,
        answer_s_max=settings.answer_s_max,
        idempotency_s_max=settings.idempotency_s_max,
    )
    for router in (*ROUTERS, *routers):
        app.include_router(router)
    describe(app)
    return app


class _LastResort:
    """Answers 500 where something unforeseen is raised, inside the middleware that counts it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as error:
            observer_of(Request(scope)).failed(error)
            if started:
                raise
            await _respond(api_error(error))(scope, receive, send)


async def _answer(request: Request, error: Exception) -> Response:
    observer_of(request).failed(error)
    return _respond(api_error(error))


async def _answer_http(request: Request, error: Exception) -> Response:
    """Say in OpenAI's shape what the router says: no such path, or no such method on it."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    message = {
        404: f"Unknown request URL: {where}.",
        405: f"Not allowed to {request.method} on {request.url.path}.",
    }.get(error.status_code, str(error.detail))
    return _respond(
        ApiError(
            message,
            status=error.status_code,
            type="invalid_request_error",
            code={404: "unknown_url", 405: "method_not_supported"}.get(error.status_code),
            headers=error.headers,
        )
    )


def _respond(error: ApiError) -> Response:
    return Response(
        error.body(),
        status_code=error.status,
        headers=error.headers,
        media_type="application/json",
    )
