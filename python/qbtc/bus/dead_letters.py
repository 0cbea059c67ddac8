"""Look at the dead letters of a broker, send them again, or drop them."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

import aio_pika
import msgspec
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity, DeliveryError, PublishError

from qbtc.bus.admin import link
from qbtc.bus.dead import DIED_AT, FROM_QUEUE, REASON, DeadLetter
from qbtc.bus.outbox import SENT
from qbtc.bus.topology import DEAD, check_prefix
from qbtc.errors import BusError, MessageError
from qbtc.messages.codec import decode
from qbtc.messages.envelope import rfc3339

__all__ = ["DEAD_READ_MAX", "Replayed", "drop_dead", "read_dead", "replay_dead"]

DEAD_READ_MAX: Final = 1000
"""Dead letters looked at in one go, the oldest first."""
DEAD_READ_BYTES_MAX: Final = 256 * 1024 * 1024
"""Bytes of bodies after which no more are looked at in one go."""


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a dead letter that was to be sent again."""

    letter: DeadLetter
    problem: str | None
    """Why it is still a dead letter; None: its queue has it."""


async def read_dead(
    url: str, *, prefix: str = "", limit: int = DEAD_READ_MAX
) -> Sequence[DeadLetter]:
    """Return the oldest dead letters by the time they died; they stay."""
    async with _taken(url, prefix, limit) as (_, taken):
        return sorted((_letter(each) for each in taken), key=lambda each: each.time)


async def drop_dead(
    url: str, *, prefix: str = "", ids: Collection[str] | None, limit: int = DEAD_READ_MAX
) -> Sequence[DeadLetter]:
    """Delete dead letters by id, or all; return them."""
    async with _taken(url, prefix, limit) as (_, taken):
        chosen = [each for each in taken if ids is None or each.message_id in ids]
        for each in chosen:
            await each.ack()
        return [_letter(each) for each in chosen]


async def replay_dead(
    url: str, *, prefix: str = "", ids: Collection[str] | None, limit: int = DEAD_READ_MAX
) -> Sequence[Replayed]:
    """Give dead letters back to the queues they died in, with their ids; by id, or all.

    One is a dead letter no more when its queue has confirmed it.
    """
    done: list[Replayed] = []
    async with _taken(url, prefix, limit) as (channel, taken):
        for each in taken:
            if ids is None or each.message_id in ids:
                problem = await _give_back(channel, each)
                if problem is None:
                    await each.ack()
                done.append(Replayed(letter=_letter(each), problem=problem))
    return done


@asynccontextmanager
async def _taken(
    url: str, prefix: str, limit: int
) -> AsyncIterator[tuple[AbstractChannel, list[AbstractIncomingMessage]]]:
    """Hold dead letters; those that are not settled go back when the channel closes."""
    check_prefix(prefix)
    async with link(url) as connection:
        channel = await connection.channel(on_return_raises=True)
        try:
            queue = await channel.declare_queue(prefix + DEAD, passive=True)
        except ChannelNotFoundEntity as error:
            raise BusError(f"there is no queue {prefix}{DEAD}; `qbtc bus init` makes it") from error
        taken: list[AbstractIncomingMessage] = []
        size = 0
        while len(taken) < limit and size < DEAD_READ_BYTES_MAX:
            incoming = await queue.get(fail=False)
            if incoming is None:
                break
            taken.append(incoming)
            size += len(incoming.body)
        yield channel, taken
        await channel.close()


async def _give_back(channel: AbstractChannel, dead: AbstractIncomingMessage) -> str | None:
    queue = _letter(dead).queue
    if not queue:
        return "it does not say which queue it died in"
    if _expired(dead.body):
        # Its consumer would drop it without a word.
        return "it has expired: nobody waits for it"
    copy = aio_pika.Message(
        dead.body,
        content_type=dead.content_type,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=dead.message_id,
        correlation_id=dead.correlation_id,
        type=dead.type,
        timestamp=datetime.now(UTC),
        headers={SENT: dead.headers.get(SENT, 0)},
    )
    try:
        # To the queue and not to the exchange: others that had a copy have dealt with theirs.
        await channel.default_exchange.publish(copy, queue, mandatory=True)
    except PublishError:
        return f"queue {queue} is gone"
    except DeliveryError:
        return f"queue {queue} is full"
    return None


def _expired(body: bytes) -> bool:
    try:
        return decode(body).expired()
    except MessageError:
        return False


def _letter(dead: AbstractIncomingMessage) -> DeadLetter:
    headers: dict[str, Any] = dict(dead.headers)
    deaths = headers.get("x-death")
    death: dict[str, Any] = deaths[-1] if isinstance(deaths, list) and deaths else {}
    when = death.get("time")
    return DeadLetter(
        id=dead.message_id or "",
        type=dead.type or "",
        queue=str(headers.get(FROM_QUEUE) or headers.get("x-first-death-queue") or ""),
        reason=str(headers.get(REASON) or headers.get("x-first-death-reason") or ""),
        time=str(headers.get(DIED_AT) or (rfc3339(when) if isinstance(when, datetime) else "")),
        size=len(dead.body),
        body=dead.body,
    )
