"""What a bus does, whether it is in this process or RabbitMQ.

Promises: a message that ``publish`` returned for reaches every work queue and every durable topic
subscription it is for at least once, also when broker, sender or consumer die (in this process:
while the process lives). A copy has the ``id`` of the first, so that consumers can know it. Order
is kept from one sender to one consumer as long as nothing is sent again.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol

import msgspec

from qbtc.messages.envelope import Message

__all__ = ["Bus", "Delivery", "Handler", "Subscription", "Topic", "WorkQueue"]


class WorkQueue(msgspec.Struct, frozen=True):
    """A queue whose messages each go to one of its consumers: ``q_llm_requests``."""

    name: str


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """Copies of the messages of an exchange whose routing keys match a pattern.

    ``*`` stands for one word, ``#`` for any number: ``trading.signal.#``.
    """

    exchange: str
    pattern: str
    durable_name: str = ""
    """Queue that keeps what comes while nobody listens; empty: only what comes from now on."""


class Delivery(Protocol):
    """One message on its way through a handler."""

    @property
    def message(self) -> Message:
        """It was checked against the schema of its type and had not expired."""
        ...

    @property
    def attempt(self) -> str:
        """New for every delivery of the same message."""
        ...

    @property
    def redelivered(self) -> bool:
        """Whether it may have been delivered before; a hint, not a proof."""
        ...

    @property
    def returns(self) -> int:
        """How often it was given back: by a handler that raised, or a consumer that died."""
        ...

    async def reply(self, message: Message, *, last: bool = True) -> None:
        """Answer the sender; pieces of a stream first, with ``last=False``.

        Nothing happens if the sender asked for no answer or is gone. Waits while too much is on
        its way to the sender.
        """
        ...


type Handler = Callable[[Delivery], Awaitable[None]]
"""Does the work of one message.

It returned: the message is done. It raised :class:`~qbtc.errors.MessageError`: the message is bad
and goes to the dead letters at once. It raised anything else: the message is delivered again, to
whoever is free, up to the queue's delivery limit, then it is a dead letter. It is cancelled when
the sender does not wait any more or the message expires, and the message is then done; and when the
subscription is stopped and its time to finish is over, and the message then goes back to the queue.
"""


class Subscription(Protocol):
    """A handler at work."""

    @property
    def active(self) -> int:
        """Messages in the handler now."""
        ...

    async def stop(self, *, finish_s: float = 0.0) -> None:
        """Take no new messages; give the running ones time, then put them back."""
        ...


class Bus(Protocol):
    """Carries messages."""

    async def publish(self, message: Message, *, timeout_s: float = 30.0) -> None:
        """Hand a message over; on return the bus has it safe.

        Sent again with the same id until it is confirmed.

        Raises
        ------
        OutboxFull
            At once: too much waits already.
        BusUnavailable
            Not confirmed in time; it may or may not have arrived.
        Unroutable
            A request for which there is no queue.
        MessageError
            It is not what its schema says, or too large.
        """
        ...

    async def request(self, message: Message, *, timeout_s: float) -> Message:
        """Send a request and wait for its last reply; other replies are left out.

        The message expires with the timeout. Leaving early cancels the work.

        Raises
        ------
        RequestTimeout
            No answer in time.
        BusError
            As ``publish``.
        """
        ...

    def stream(self, message: Message, *, timeout_s: float) -> AsyncGenerator[Message]:
        """Send a request and yield its replies up to and with the last.

        ``timeout_s`` is for the whole. When the connection is lost the request is sent again, and
        replies of a new attempt follow; replies of one attempt are in order and none is missing.
        Closing the generator early cancels the work.

        Raises
        ------
        RequestTimeout
            The last reply did not come in time.
        BusError
            As ``publish``; also when replies come faster than they are taken for too long.
        """
        ...

    async def subscribe(
        self, source: WorkQueue | Topic, handler: Handler, *, prefetch: int = 16
    ) -> Subscription:
        """Give messages to a handler, up to ``prefetch`` at the same time.

        Messages that are not what their schema says are dead letters before they reach it; expired
        ones are dropped and counted.
        """
        ...

    def problem(self) -> str | None:
        """Why nothing can be carried now; None: all is well."""
        ...

    def counters(self) -> dict[str, int]:
        """Count since the start, and what waits now.

        Totals: published, confirmed, retried, returned, received, done, again, dead, expired,
        cancelled. Gauges: outbox, pending.
        """
        ...

    async def close(self) -> None:
        """Send what waits, for a bounded time; put back what is in handlers; let go."""
        ...
