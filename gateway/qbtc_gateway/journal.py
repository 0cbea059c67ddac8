"""What the database keeps of a request: one row, and one for each tool call in its answer.

Kept are requests to the endpoints that make language, from the moment their client is known: those
that fail, are refused or left early too. Prompts, answers and arguments of calls are kept only
where the operator asked for contents, and cut at ``CONTENT_BYTES_MAX``.
"""

import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from qbtc.messages.language import Event, Finished, TextDelta, ToolCallDelta
from qbtc.store.records import Interaction, ToolCallRecord

if TYPE_CHECKING:
    from qbtc_gateway.record import Record

__all__ = ["Journal", "Notes", "Sink"]

CONTENT_BYTES_MAX: Final = 256 * 1024
"""A request, and an answer; of longer ones the beginning is kept, and that it is one."""
CALLS_MAX: Final = 256
"""Tool calls of one request."""
MODEL_CHARS_MAX: Final = 200
PATHS: Final = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"}
)


class Sink(Protocol):
    """Where rows go: a :class:`~qbtc.store.recorder.Recorder`."""

    def put(self, record: Interaction | ToolCallRecord) -> None:
        """Take a row; never waits, never raises."""
        ...


class _Call:
    def __init__(self, id: str, name: str) -> None:
        self.id = id
        self.name = name
        self.arguments: list[str] = []


class Notes:
    """What is gathered of one request while it runs."""

    def __init__(self, *, contents: bool) -> None:
        self.contents = contents
        self.ts = time.time_ns()
        self.request: dict[str, Any] | None = None
        self._left = CONTENT_BYTES_MAX
        self._length = 0
        self._calls: dict[tuple[int, int], _Call] = {}
        self._texts: dict[int, list[str]] = {}
        self._reasons: dict[int, str] = {}
        self._answer = bytearray()

    def asked(self, body: bytes) -> None:
        """Keep a request's body."""
        if self.contents:
            self.request = _content(body[:CONTENT_BYTES_MAX], length=len(body))

    def event(self, event: Event, *, stream: bool) -> None:
        """Keep a piece of an answer: of calls their names, and of contents what there is room for.

        Only texts of streams are gathered from events; other answers are kept as they were sent.
        """
        match event:
            case ToolCallDelta():
                call = self._calls.get((event.choice, event.call))
                if call is None and len(self._calls) < CALLS_MAX:
                    call = _Call(event.id or "", event.name or "")
                    self._calls[event.choice, event.call] = call
                if call is not None and self.contents:
                    call.arguments.append(self._room(event.arguments))
            case TextDelta() if self.contents and stream:
                self._texts.setdefault(event.choice, []).append(self._room(event.text))
            case Finished() if self.contents and stream:
                self._reasons[event.choice] = event.reason

    def answered(self, data: bytes) -> None:
        """Keep a piece of an answer that is not a stream."""
        self._length += len(data)
        self._answer += data[: CONTENT_BYTES_MAX - len(self._answer)]

    def response(self) -> dict[str, Any] | None:
        """Return what was kept of the answer."""
        if not self.contents:
            return None
        if self._length:
            return _content(bytes(self._answer), length=self._length)
        choices = sorted({*self._texts, *self._reasons, *(choice for choice, _ in self._calls)})
        kept: dict[str, Any] = {"choices": [self._choice(number) for number in choices]}
        return kept | ({"truncated": True} if self._left <= 0 else {})

    def calls(self, request_id: str) -> list[ToolCallRecord]:
        """Return a row for each tool call."""
        return [
            ToolCallRecord(
                call_id=call.id,
                request_id=request_id,
                ts=self.ts,
                name=call.name,
                arguments="".join(call.arguments) if self.contents else None,
            )
            for call in self._calls.values()
        ]

    def _choice(self, number: int) -> dict[str, Any]:
        calls = [
            {"id": call.id, "name": call.name, "arguments": "".join(call.arguments)}
            for (choice, _), call in self._calls.items()
            if choice == number
        ]
        return {
            "index": number,
            "content": "".join(self._texts.get(number, ())),
            "tool_calls": calls,
            "finish_reason": self._reasons.get(number),
        }

    def _room(self, text: str) -> str:
        """Cut a text to what may still be kept."""
        kept = text[: max(0, self._left)]
        self._left -= len(text.encode())
        return kept


class Journal:
    """Writes a row for each request.

    Parameters
    ----------
    sink
        Where rows go.
    engine
        Who answers: ``local`` or ``amqp``.
    contents
        Whether prompts and answers are kept.
    """

    def __init__(self, sink: Sink, *, engine: str, contents: bool) -> None:
        self._sink = sink
        self._engine = engine
        self._contents = contents

    def begin(self, method: str, path: str) -> Notes | None:
        """Return the notes of a new request; None: nothing is kept of it."""
        return Notes(contents=self._contents) if method == "POST" and path in PATHS else None

    def write(self, record: "Record") -> None:
        """Put the rows of a request that is over."""
        notes = record.notes
        if notes is None or not record.known:
            return
        code = record.code or ("disconnected" if record.disconnected_early else None)
        self._sink.put(
            Interaction(
                request_id=record.request_id,
                ts=notes.ts,
                session=record.session,
                key_id=record.key_id,
                endpoint=record.path,
                model=None if record.model is None else record.model[:MODEL_CHARS_MAX],
                engine=self._engine,
                stream=record.stream,
                status=record.status or 499,
                error_code=code,
                prompt_tokens=record.prompt_tokens,
                cached_tokens=record.cached_tokens,
                completion_tokens=record.completion_tokens,
                queued_ms=_ms(record.queued_s),
                first_token_ms=_ms(record.first_token_s),
                total_ms=round(record.total_s * 1e3, 3),
                cache_hit=record.cache == "hit",
                request=notes.request,
                response=notes.response(),
            )
        )
        for call in notes.calls(record.request_id):
            self._sink.put(call)


def _content(data: bytes, *, length: int) -> dict[str, Any]:
    """Return JSON as it is, and of anything else its text."""
    if length <= CONTENT_BYTES_MAX:
        try:
            return msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return {"text": data.decode(errors="replace")}
    return {"text": data.decode(errors="replace"), "truncated": True, "bytes": length}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
