"""What goes wrong on the wire, in OpenAI's shape: ``{"error": {message, type, param, code}}``.

::

    ApiError                      any refusal with an HTTP status
    └── BadRequest                400, names the parameter

:func:`api_error` turns every exception into one of these. What an engine refuses keeps its words;
anything unforeseen becomes a 500 that says nothing of the inside.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from qbtc.errors import BusError, RequestTimeout
from qbtc.llm.errors import ContextLengthExceeded, EngineBusy, ModelNotFound, RequestError

__all__ = [
    "RETRY_OPEN_S",
    "ApiError",
    "BadRequest",
    "ErrorBody",
    "ErrorDetail",
    "api_error",
    "busy",
    "named",
    "overloaded",
]


RETRY_OPEN_S = 1.0
"""What a client is told to wait when the server is at a limit, or a part of it away."""


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong; ``param`` names the field of the request, ``code`` is for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of every response that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """A refusal with an HTTP status."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail = ErrorDetail(message=message, type=type, param=param, code=code)
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """JSON of the error."""
        return msgspec.json.encode(ErrorBody(error=self.detail))

    def fields(self) -> dict[str, Any]:
        """Return the detail as a dict, for bodies that embed it."""
        return msgspec.structs.asdict(self.detail)


class BadRequest(ApiError):
    """The request itself is wrong."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, status=400, type="invalid_request_error", param=param, code=code)


def busy(message: str, *, retry_after_s: float) -> ApiError:
    """429 with both headers that clients read."""
    seconds = max(retry_after_s, 0.001)
    return ApiError(
        message,
        status=429,
        type="requests",
        code="rate_limit_exceeded",
        headers={
            "retry-after": str(max(1, round(seconds + 0.499))),
            "retry-after-ms": str(max(1, round(seconds * 1000))),
        },
    )


def overloaded(message: str) -> ApiError:
    """503 that says when to come back."""
    return ApiError(
        message,
        status=503,
        type="server_error",
        code="overloaded",
        headers={
            "retry-after": str(math.ceil(RETRY_OPEN_S)),
            "retry-after-ms": str(round(RETRY_OPEN_S * 1000)),
        },
    )


@contextmanager
def named(field: Callable[[str], str]) -> Iterator[None]:
    """Name what an engine refuses as the client wrote it; ``field`` turns our names into those."""
    try:
        yield
    except RequestError as error:
        if error.param is not None:
            param = field(error.param)
            error.args = (str(error).replace(f"'{error.param}'", f"'{param}'"),)
            error.param = param
        raise


def api_error(error: BaseException) -> ApiError:
    """Return the error to send for an exception."""
    match error:
        case ApiError():
            return error
        case ModelNotFound():
            return ApiError(
                str(error),
                status=404,
                type="invalid_request_error",
                param=error.param,
                code=error.code,
            )
        case ContextLengthExceeded() | RequestError():
            return BadRequest(str(error), param=error.param, code=error.code)
        case EngineBusy():
            return busy(str(error), retry_after_s=error.retry_after_s)
        case RequestTimeout():
            return ApiError(
                "No answer came in time. Please try again later.",
                status=504,
                type="server_error",
                code="timeout",
            )
        case BusError():
            return overloaded("The message bus is away. Please try again later.")
        case _:
            return ApiError(
                "The server had an error while processing your request. Sorry about that!",
                status=500,
                type="server_error",
            )
