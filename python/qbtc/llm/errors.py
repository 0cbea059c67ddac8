"""What an engine refuses, in the terms its callers can act on."""

from qbtc.errors import EngineBusy, EngineFailed, InputError

__all__ = ["ContextLengthExceeded", "EngineBusy", "EngineFailed", "ModelNotFound", "RequestError"]


class RequestError(InputError):
    """A request cannot be answered; ``param`` names the field at fault, as a client wrote it."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthExceeded(RequestError):
    """Prompt and answer do not fit the model's context."""

    def __init__(self, message: str, *, param: str = "messages") -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class ModelNotFound(RequestError):
    """No model of that name is served."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="model", code="model_not_found")
