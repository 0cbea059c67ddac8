"""Read request bodies whole, within a size, a time, and a sum over all that are open."""

import asyncio

from starlette.types import Message, Receive

from qbtc_gateway.errors import ApiError, overloaded
from qbtc_gateway.settings import Limits

__all__ = ["Bodies", "ClientGone"]


class ClientGone(Exception):
    """The client left before its body was complete."""


class Bodies:
    """The bodies in memory."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held_bytes = 0

    def release(self, size: int) -> None:
        """Forget a body of ``size`` bytes."""
        self.held_bytes -= size

    async def read(self, receive: Receive, declared: str | None) -> bytes:
        """Read a body; its size must be given to :meth:`release` in the end.

        Parameters
        ----------
        receive
            Of the request.
        declared
            ``Content-Length``; a body without one is counted as it comes.

        Raises
        ------
        ApiError
            413 too large, 408 too slow, 503 too many at once.
        ClientGone
            There is nobody to answer.
        """
        if declared is not None and declared.isdecimal():
            self._check(int(declared), int(declared))
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.body_read_s_max):
                more = True
                while more:
                    message: Message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    part: bytes = message.get("body", b"")
                    more = message.get("more_body", False)
                    self._check(size + len(part), len(part))
                    if part:
                        parts.append(part)
                        size += len(part)
                        self.held_bytes += len(part)
        except TimeoutError:
            self.release(size)
            raise ApiError(
                f"The request body did not arrive within {self._limits.body_read_s_max:g} seconds.",
                status=408,
                type="invalid_request_error",
                code="request_timeout",
                headers={"connection": "close"},
            ) from None
        except BaseException:
            self.release(size)
            raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _check(self, size: int, more: int) -> None:
        limits = self._limits
        if size > limits.body_bytes_max:
            raise ApiError(
                f"Request body too large: at most {limits.body_bytes_max} bytes are taken.",
                status=413,
                type="invalid_request_error",
                code="request_too_large",
            )
        if self.held_bytes + more > limits.bodies_bytes_max:
            raise overloaded("The server holds too many request bodies. Please try again later.")
