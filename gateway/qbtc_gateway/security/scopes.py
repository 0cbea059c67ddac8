"""Which scope a path asks for, and which keys have it."""

from collections.abc import Container
from typing import Final, Literal

__all__ = ["SCOPES", "SCOPES_DEFAULT", "Scope", "has_scope", "scope_of"]

type Scope = Literal["chat", "embeddings", "models", "metrics"]

SCOPES: Final[tuple[Scope, ...]] = ("chat", "embeddings", "models", "metrics")
SCOPES_DEFAULT: Final[tuple[Scope, ...]] = ("chat", "embeddings", "models")

OPEN: Final = frozenset(
    {"/", "/favicon.ico", "/health", "/health/live", "/health/ready", "/openapi.json"}
)
"""Paths that need no key: the page itself, health, and the description of the interface."""


def has_scope(scopes: Container[str], needed: str) -> bool:
    """Whether a key of these scopes may go where one is needed.

    Who may chat may also see with which models: a client, and the page at ``/``, asks that first.
    """
    return needed in scopes or (needed == "models" and "chat" in scopes)


def scope_of(path: str) -> Scope | None:
    """Scope that a path needs; None: it is open to all."""
    if path in OPEN:
        return None
    if path == "/metrics":
        return "metrics"
    if path == "/v1/models" or path.startswith("/v1/models/"):
        return "models"
    if path == "/v1/embeddings":
        return "embeddings"
    return "chat"
