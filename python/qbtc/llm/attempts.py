"""One answer out of several attempts at it.

A request may be answered more than once: its worker dies and another takes over, or the bus
delivers a copy. Sampling is seeded, so every attempt gives the same answer, cut into other pieces.
:class:`Attempts` keeps what it has of every part of the answer (a text, the arguments of a call)
and takes from any attempt only what goes beyond that, so each character comes out once. Attempts
may come one after the other or mixed. One that differs from what is kept ends the answer: part of
it is already with the client and cannot be taken back.

Cost: O(length) memory of the answer; a piece that continues it is not copied.
"""

from collections import defaultdict

import msgspec

from qbtc.errors import EngineFailed
from qbtc.messages.events import LlmChunk
from qbtc.messages.language import (
    Event,
    Finished,
    Prefill,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)

__all__ = ["Attempts"]

_TEXT = -1
"""Where a call has its number."""

type _Part = tuple[int, int]
"""Choice, and number of the call or ``_TEXT``."""


class _Attempt:
    """How far one attempt was read."""

    def __init__(self) -> None:
        self.chunks = 0
        self.length: defaultdict[_Part, int] = defaultdict(int)
        self.tokens: defaultdict[int, int] = defaultdict(int)


class _Kept:
    """A text that only grows."""

    def __init__(self) -> None:
        self.length = 0
        self._pieces: list[str] = []

    def take(self, start: int, piece: str) -> str:
        """Return what of a piece goes beyond; where it does not, it must be the same."""
        known = min(self.length - start, len(piece))
        if known:
            whole = "".join(self._pieces)
            self._pieces = [whole]
            if whole[start : start + known] != piece[:known]:
                raise _differs()
        new = piece[known:]
        self._pieces.append(new)
        self.length += len(new)
        return new


class Attempts:
    """Puts an answer together; see the module."""

    def __init__(self) -> None:
        self._attempts: defaultdict[str, _Attempt] = defaultdict(_Attempt)
        self._kept: defaultdict[_Part, _Kept] = defaultdict(_Kept)
        self._tokens: defaultdict[int, list[tuple[int, ...]]] = defaultdict(list)
        self._names: dict[_Part, str] = {}
        self._finished: dict[int, Finished] = {}

    def take(self, chunk: LlmChunk) -> list[Event]:
        """Return what is new in a chunk; of a repeated one, nothing.

        Raises
        ------
        EngineFailed
            A chunk is missing before it, or the attempts differ.
        """
        attempt = self._attempts[chunk.attempt]
        if chunk.sequence < attempt.chunks:
            return []
        if chunk.sequence > attempt.chunks:
            raise _incomplete()
        attempt.chunks += 1
        found = (self._event(attempt, event) for event in chunk.events)
        return [event for event in found if event is not None]

    def end(self, attempt: str, *, chunks: int) -> None:
        """Check that the answer of an attempt that has ended is here as a whole.

        Raises
        ------
        EngineFailed
            Something is missing.
        """
        if self._attempts[attempt].chunks != chunks:
            raise _incomplete()

    def _event(self, attempt: _Attempt, event: Event) -> Event | None:
        match event:
            case TextDelta():
                return self._text(attempt, event)
            case ToolCallDelta():
                return self._call(attempt, event)
            case Finished():
                return self._finish(attempt, event)
            case Prefill():
                # Nobody wants to hear of a prompt that is read again.
                return None if self._kept or self._finished else event

    def _text(self, attempt: _Attempt, event: TextDelta) -> TextDelta | None:
        new = self._grow(attempt, (event.choice, _TEXT), event.text)
        logprobs = self._logprobs(attempt, event)
        if not new and not logprobs:
            return None
        return msgspec.structs.replace(event, text=new, logprobs=logprobs)

    def _logprobs(self, attempt: _Attempt, event: TextDelta) -> tuple[TokenLogprob, ...]:
        """Return the tokens nobody has seen; they are counted, as texts are cut anywhere."""
        start, kept = attempt.tokens[event.choice], self._tokens[event.choice]
        attempt.tokens[event.choice] += len(event.logprobs)
        known = min(len(kept) - start, len(event.logprobs))
        found = [token.bytes for token in event.logprobs]
        if kept[start : start + known] != found[:known]:
            raise _differs()
        kept.extend(found[known:])
        return event.logprobs[known:]

    def _call(self, attempt: _Attempt, event: ToolCallDelta) -> ToolCallDelta | None:
        part = (event.choice, event.call)
        new = self._grow(attempt, part, event.arguments)
        if event.name is not None:
            if part not in self._names:
                self._names[part] = event.name
                return msgspec.structs.replace(event, arguments=new)
            if self._names[part] != event.name:
                raise _differs()
        # Each attempt draws its own id for a call; the client has the first one.
        return ToolCallDelta(choice=event.choice, call=event.call, arguments=new) if new else None

    def _grow(self, attempt: _Attempt, part: _Part, piece: str) -> str:
        start = attempt.length[part]
        attempt.length[part] += len(piece)
        new = self._kept[part].take(start, piece)
        if new and part[0] in self._finished:
            raise _differs()
        return new

    def _finish(self, attempt: _Attempt, event: Finished) -> Finished | None:
        parts = (part for part in self._kept if part[0] == event.choice)
        if any(attempt.length[part] != self._kept[part].length for part in parts):
            raise _differs()
        first = self._finished.setdefault(event.choice, event)
        if (first.reason, first.stop) != (event.reason, event.stop):
            raise _differs()
        return event if first is event else None


def _differs() -> EngineFailed:
    return EngineFailed("two attempts at one answer differ; ask again")


def _incomplete() -> EngineFailed:
    return EngineFailed("a part of the answer is missing; ask again")
