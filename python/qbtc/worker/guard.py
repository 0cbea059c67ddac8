"""What becomes of a request whose answer goes wrong; the same for every kind of request."""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable

from qbtc.bus import Delivery
from qbtc.errors import BusError, MessageError
from qbtc.llm.failures import failure_of
from qbtc.messages.events import Failure

__all__ = ["ATTEMPTS_MAX", "guarded"]

_LOGGER = logging.getLogger(__name__)

ATTEMPTS_MAX = 3
"""Who breaks over a request is asked this often."""


async def guarded(
    delivery: Delivery,
    answer: Callable[[Delivery], Awaitable[None]],
    refuse: Callable[[Delivery, Failure], Awaitable[None]],
) -> None:
    """Answer a request, or say why not.

    What is the request's fault is said at once, and the message is done. Where we broke, it goes
    back to the queue; after ``ATTEMPTS_MAX`` whoever asked hears of it and it is a dead letter. A
    message that is no request for us is a dead letter at once. A bus that fails brings it again.
    """
    try:
        await answer(delivery)
    except (BusError, asyncio.CancelledError):
        raise
    except Exception as error:
        failure = failure_of(error)
        if failure is not None:
            await refuse(delivery, failure)
            return
        if not isinstance(error, MessageError) and delivery.returns < ATTEMPTS_MAX - 1:
            raise
        # Where, not with what words: an error may quote the request.
        where = "".join(traceback.format_tb(error.__traceback__))
        name = type(error).__name__
        _LOGGER.error("request %s ended in %s\n%s", delivery.message.id, name, where)
        await refuse(delivery, _broken(error))
        raise MessageError(f"could not be answered: {type(error).__name__}") from error


def _broken(error: Exception) -> Failure:
    """Say that it is our fault, and nothing of the inside."""
    if isinstance(error, MessageError):
        return Failure(kind="invalid_request", message=str(error))
    return Failure(kind="internal", message=f"The worker failed: {type(error).__name__}.")
