"""Whether the server lives, whether it can answer, and its figures."""

from collections.abc import Callable, Collection
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from qbtc_gateway.metrics import CONTENT_TYPE, Metrics

__all__ = ["health_router"]

_STATUS: dict[str, Any] = {
    "type": "object",
    "required": ["status"],
    "properties": {
        "status": {"enum": ["ok", "degraded", "unavailable"]},
        "reason": {"type": "string", "description": "Why requests are not answered now."},
        "away": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Parts that requests are answered without, if there are any.",
        },
    },
}


def health_router(
    problem: Callable[[], str | None],
    metrics: Metrics,
    away: Callable[[], Collection[str]] = tuple,
) -> APIRouter:
    """Return the routes.

    ``problem`` says why the server cannot answer now, or None; ``away`` which parts it goes on
    without. Why a part is away is for the log: it may name machines, and these routes need no key.
    """
    router = APIRouter(tags=["health"])

    # Probes ask by HEAD, too: RFC 9110, 9.1. The description has no HEAD, for it would say nothing
    # that GET's does not.
    @router.head("/health/live", include_in_schema=False)
    @router.get("/health/live", summary="The process runs", responses={200: _described(_STATUS)})
    async def live() -> Response:
        return _json(200, {"status": "ok"})

    @router.head("/health/ready", include_in_schema=False)
    @router.get(
        "/health/ready",
        summary="Requests are answered now",
        responses={200: _described(_STATUS), 503: _described(_STATUS)},
    )
    async def ready() -> Response:
        reason = problem()
        parts = sorted(away())
        missing = {"away": parts} if parts else {}
        if reason is not None:
            return _json(503, {"status": "unavailable", "reason": reason, **missing})
        return _json(200, {"status": "degraded" if missing else "ok", **missing})

    @router.head("/health", include_in_schema=False)
    @router.get("/health", include_in_schema=False)
    async def health() -> Response:
        return await ready()

    @router.head("/metrics", include_in_schema=False)
    @router.get(
        "/metrics",
        summary="Figures in Prometheus' text format",
        response_class=PlainTextResponse,
    )
    async def figures() -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    return router


def _described(schema: dict[str, Any]) -> dict[str, Any]:
    """Return how an answer is described."""
    return {
        "description": "State of the server",
        "content": {"application/json": {"schema": schema}},
    }


def _json(status: int, body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
