"""Who watches a request from outside the routes: metrics, logs, quotas.

A middleware puts its :class:`Observer` into ``scope["state"]["observer"]``; the routes tell it what
the body said and every event that the engine gave. Calls are synchronous and must be quick.
"""

from collections.abc import Sequence

from starlette.requests import Request

from qbtc.messages.language import Event

__all__ = ["Observer", "observer_of"]


class Observer:
    """Hears nothing; subclass what is of interest."""

    identity: str = ""
    """Who asks: a key or an address; empty where nobody looked."""

    def parsed(
        self, *, model: str, stream: bool, unknown_fields: Sequence[str], session: str = ""
    ) -> None:
        """Hear that a body was read.

        ``unknown_fields`` are its keys that nobody knows, ``session`` the client's own name for a
        conversation or user.
        """

    def asked(self, *, answers_per_prompt: int) -> None:
        """Hear that answer number ``i`` is one to prompt number ``i // answers_per_prompt``."""

    def event(self, event: Event) -> None:
        """Hear one event of the engine, before it is written to the client."""

    def embedded(self, *, prompt_tokens: int) -> None:
        """Hear how much was embedded."""

    def failed(self, error: BaseException) -> None:
        """Hear an error, before or after the first byte; also the ones with a 4xx answer."""

    def disconnected(self) -> None:
        """Hear that the client left before the end."""


_NOBODY = Observer()


def observer_of(request: Request) -> Observer:
    """Return the observer of a request."""
    found = request.scope.get("state", {}).get("observer")
    return found if isinstance(found, Observer) else _NOBODY
