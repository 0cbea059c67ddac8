"""What every route needs: the engine, a cache, and settings of the wire."""

from typing import cast

import msgspec
from starlette.requests import Request

from qbtc.cache import Cache
from qbtc.llm.engine import Engine

__all__ = ["Gateway", "gateway_of"]


class Gateway(msgspec.Struct, frozen=True, kw_only=True):
    """Shared by all requests."""

    engine: Engine
    keep_alive_s: float
    cache: Cache
    """Where the answers to requests with a key of their own are kept."""
    answer_s_max: float
    idempotency_s_max: float


def gateway_of(request: Request) -> Gateway:
    """Return the gateway that a request came to."""
    return cast(Gateway, request.app.state.gateway)
