"""HTTP on a connection, with bounds where the server's own protocol has none.

Uvicorn parses and writes; this adds what a client can otherwise hold forever or grow without end:
the time and bytes until a request's headers are complete, the bytes of one message whatever its
framing, a connection whose reader has stopped, and the number of connections.
"""

import asyncio
from typing import Any, Final, override

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from qbtc_gateway.errors import ApiError, overloaded
from qbtc_gateway.settings import Limits

__all__ = ["protocol_class"]

TRAILERS_MAX: Final = 64
FRAMING_FACTOR: Final = 8
"""A body in chunks of one byte is six times its size on the wire."""
DISCARD_BYTES_MIN: Final = 32 * 1024 * 1024
"""So much of a body that was refused is read and thrown away, so that its sender hears why."""


def protocol_class(limits: Limits) -> type[HttpToolsProtocol]:
    """Return the protocol for :class:`uvicorn.Config`, with these limits."""
    return type("Protocol", (_Protocol,), {"limits": limits})


class _Protocol(HttpToolsProtocol):
    limits: Limits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._message_bytes = 0
        self._trailers = 0
        self._closed_to_data = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._message_bytes_max = self.limits.headers_bytes_max + max(
            FRAMING_FACTOR * self.limits.body_bytes_max, DISCARD_BYTES_MIN
        )

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections_max:
            self._refuse(overloaded("The server is at its limit of connections."))
            return
        self._arm_head_timer()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm(self._head_timer)
        self._disarm(self._write_timer)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        if self._closed_to_data:
            return
        self._message_bytes += len(data)
        if self._message_bytes > self._message_bytes_max:
            self.transport.abort()
            return
        super().data_received(data)
        if self._in_head and self._message_bytes > self.limits.headers_bytes_max:
            self._refuse(
                ApiError(
                    f"URL and headers are larger than {self.limits.headers_bytes_max} bytes.",
                    status=431,
                    type="invalid_request_error",
                    code="headers_too_large",
                )
            )

    @override
    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(msg, status=400, type="invalid_request_error", code="invalid_http"))

    @override
    def on_message_begin(self) -> None:
        self._in_head = True
        self._trailers = 0
        if self._head_timer is None:
            self._arm_head_timer()
        super().on_message_begin()

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            # A trailer: nobody reads it, and it must not grow the headers of a running request.
            self._trailers += 1
            if self._trailers > TRAILERS_MAX:
                raise httptools.HttpParserError("too many trailers")
            return
        super().on_header(name, value)

    @override
    def on_headers_complete(self) -> None:
        self._in_head = False
        self._disarm(self._head_timer)
        self._head_timer = None
        super().on_headers_complete()

    @override
    def on_message_complete(self) -> None:
        self._message_bytes = 0
        self._in_head = True
        super().on_message_complete()

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.write_s_max, self.transport.abort)

    @override
    def resume_writing(self) -> None:
        self._disarm(self._write_timer)
        self._write_timer = None
        super().resume_writing()

    def _arm_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.header_read_s_max, self._head_is_late)

    def _head_is_late(self) -> None:
        """Close, unless an earlier request of this connection is still being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._arm_head_timer()
            return
        self._head_timer = None
        self._refuse(
            ApiError(
                f"No complete request within {self.limits.header_read_s_max:g} seconds.",
                status=408,
                type="invalid_request_error",
                code="request_timeout",
            )
        )

    def _refuse(self, error: ApiError) -> None:
        """Write an error as it is, unless a response is under way, and close."""
        self._closed_to_data = True
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            body = error.body()
            head = [
                f"HTTP/1.1 {error.status} Refused",
                "content-type: application/json",
                f"content-length: {len(body)}",
                "connection: close",
                *(f"{name}: {value}" for name, value in error.headers.items()),
            ]
            self.transport.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        self.transport.close()

    @staticmethod
    def _disarm(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
