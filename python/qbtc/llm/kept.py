"""Answers kept as their events: how they are recorded, and how they are told again."""

import secrets
from typing import Final

import msgspec

from qbtc.messages.language import Event, Finished, Prefill, ToolCallDelta, Usage

__all__ = ["ANSWER_BYTES_MAX", "CacheHit", "CacheMiss", "Recording", "told_again"]

ANSWER_BYTES_MAX: Final = 512 * 1024
"""Events of one answer as JSON; longer answers are not kept."""

_encode = msgspec.json.Encoder().encode
_LINES: Final[msgspec.json.Decoder[Event]] = msgspec.json.Decoder(Event)


class CacheHit(Prefill, frozen=True, kw_only=True, tag="Prefill"):
    """The answer that follows was kept; nothing is computed."""


class CacheMiss(Prefill, frozen=True, kw_only=True, tag="Prefill"):
    """The answer that follows is computed, and will be kept."""


class Recording:
    """The events of a request while they come.

    Parameters
    ----------
    answers
        How many the request gets; only all together are worth keeping.
    """

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._lines: list[bytes] | None = []
        self._size = 0
        self._ended = 0
        self._first = True

    def take(self, event: Event) -> Event:
        """Record an event; return what to pass on, which says of the first that it is a miss."""
        if isinstance(event, Prefill):
            if self._first and type(event) is Prefill:
                event = CacheMiss(done=event.done, total=event.total, cached=event.cached)
            self._first = False
            return event
        if self._lines is not None:
            line = _encode(event)
            self._lines.append(line)
            self._size += len(line) + 1
            if self._size > ANSWER_BYTES_MAX:
                self._lines = None
            self._ended += isinstance(event, Finished)
        return event

    def value(self) -> bytes | None:
        """Bytes to keep; None: an end is missing, or it became too long."""
        if self._lines is None or self._ended != self._answers:
            return None
        return b"\n".join(self._lines)


def told_again(value: bytes, answers: int, *, new_ids: bool) -> list[Event] | None:
    """Return the events of a kept answer, after a :class:`CacheHit`; None: it is damaged.

    The whole prompt counts as cached. With ``new_ids`` its tool calls are calls of their own.
    """
    try:
        events = _LINES.decode_lines(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if sum(isinstance(event, Finished) for event in events) != answers:
        return None
    total = max(event.usage.prompt_tokens for event in events if isinstance(event, Finished))
    told: list[Event] = [CacheHit(done=total, total=total, cached=total)]
    for event in events:
        match event:
            case ToolCallDelta(id=str()) if new_ids:
                event = msgspec.structs.replace(event, id=f"call_{secrets.token_hex(12)}")
            case Finished(usage=usage):
                usage = Usage(
                    prompt_tokens=usage.prompt_tokens,
                    completion_tokens=usage.completion_tokens,
                    cached_tokens=usage.prompt_tokens,
                )
                event = msgspec.structs.replace(event, usage=usage)
        told.append(event)
    return told
