"""What an engine refuses, as a message and back: a client of a worker sees the same error."""

from typing import Literal

from qbtc.errors import QbtcError, RequestTimeout
from qbtc.llm.errors import (
    ContextLengthExceeded,
    EngineBusy,
    EngineFailed,
    ModelNotFound,
    RequestError,
)
from qbtc.messages.events import Failure

__all__ = ["error_of", "failure_of"]

RETRY_S = 1.0
"""When to come back if a busy worker does not say."""

type _Kind = Literal["invalid_request", "context_length", "model_not_found"]


def failure_of(error: BaseException) -> Failure | None:
    """Say why a request is refused; None for what is not the request's fault."""
    match error:
        case EngineBusy():
            return Failure(kind="busy", message=str(error), retry_after_s=error.retry_after_s)
        case RequestError():
            kind: _Kind = "invalid_request"
            if isinstance(error, ContextLengthExceeded):
                kind = "context_length"
            elif isinstance(error, ModelNotFound):
                kind = "model_not_found"
            return Failure(kind=kind, message=str(error), param=error.param, code=error.code)
        case _:
            return None


def error_of(failure: Failure) -> QbtcError:
    """Return the error that the engine raised where the request was answered."""
    text = failure.message
    match failure.kind:
        case "busy":
            return EngineBusy(text, retry_after_s=failure.retry_after_s or RETRY_S)
        case "context_length":
            return ContextLengthExceeded(text, param=failure.param or "messages")
        case "model_not_found":
            return ModelNotFound(text)
        case "invalid_request":
            return RequestError(text, param=failure.param, code=failure.code)
        case "expired":
            return RequestTimeout(text)
        case "internal":
            return EngineFailed(text)
