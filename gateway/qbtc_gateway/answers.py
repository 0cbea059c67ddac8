"""From an engine's events to one answer on the wire: what chat, completions and responses share.

:func:`serve` asks the engine, waits until it has taken the request (so that a refusal has its own
HTTP status), and then either collects the answer or streams it. A client that leaves at any stage
closes the engine's events, and with them the work.
"""

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from importlib.metadata import version

import anyio
import msgspec
from fastapi import Request
from starlette.responses import Response

from qbtc.messages.language import Event, Finished, Prefill, TextDelta, ToolCallDelta
from qbtc_gateway.errors import ApiError, api_error, named
from qbtc_gateway.idempotency import once
from qbtc_gateway.observe import Observer, observer_of
from qbtc_gateway.sse import EventStream, Progress, until_disconnect
from qbtc_gateway.state import gateway_of
from qbtc_gateway.usage import Totals

__all__ = [
    "FINGERPRINT",
    "Answer",
    "AnswerEvent",
    "json_response",
    "new_id",
    "now_s",
    "serve",
]

FINGERPRINT = f"qbtc_{version('qbtc').replace('.', '_')}"

type AnswerEvent = TextDelta | ToolCallDelta | Finished


def new_id(prefix: str) -> str:
    """Return an id that nobody guesses."""
    return f"{prefix}{secrets.token_hex(12)}"


def now_s() -> int:
    """UNIX seconds."""
    return int(time.time())


def json_response(content: object) -> Response:
    """Return a success in JSON."""
    return Response(msgspec.json.encode(content), media_type="application/json")


class Answer:
    """Events of one request, with the usage so far."""

    def __init__(
        self, events: AsyncIterator[Event], observer: Observer, progress: Progress
    ) -> None:
        self.totals = Totals()
        self._source = events
        self._observer = observer
        self._progress = progress
        self._first: Event | None = None

    async def begin(self) -> None:
        """Wait until the engine has taken the request, or raise what it refuses with."""
        self._first = await anext(self._source)
        # Before the headers are sent, which tell some of it.
        self._observer.event(self._first)

    async def events(self) -> AsyncGenerator[AnswerEvent]:
        """Yield what belongs to the answer."""
        event = self._first
        while event is not None:
            if event is not self._first:
                self._observer.event(event)
            if isinstance(event, Prefill):
                self._progress.done, self._progress.total = event.done, event.total
            else:
                self._progress.total = 0
                if isinstance(event, Finished):
                    self.totals.add(event.usage, event.choice)
                yield event
            event = await anext(self._source, None)

    async def close(self) -> None:
        """Cancel what is not finished."""
        close = getattr(self._source, "aclose", None)
        if close is not None:
            with anyio.CancelScope(shield=True):
                await close()


async def serve(
    request: Request,
    ask: Callable[[], AsyncIterator[Event]],
    *,
    answers: int,
    prompts: int = 1,
    whole: Callable[[Answer], Awaitable[object]],
    frames: Callable[[Answer], AsyncGenerator[bytes]] | None,
    error_frame: Callable[[ApiError], bytes],
    field: Callable[[str], str] = str,
) -> Response:
    """Answer a request: with ``frames`` as a stream, else with what ``whole`` collects.

    ``ask`` asks the engine for so many ``answers`` to so many ``prompts``, unless they are kept
    under the request's key.
    ``field`` turns the name of a field of the engine's request into the client's.
    """
    observer = observer_of(request)
    progress = Progress()
    answer = Answer(once(request, ask, answers=answers), observer, progress)
    answer.totals.per_prompt = answers // prompts
    observer.asked(answers_per_prompt=answers // prompts)

    async def collect() -> Response:
        with named(field):
            await answer.begin()
            return json_response(await whole(answer))

    async def begin() -> bool:
        with named(field):
            await answer.begin()
        return True

    async def guarded() -> AsyncGenerator[bytes]:
        assert frames is not None
        try:
            with named(field):
                async for data in frames(answer):
                    yield data
        except Exception as error:
            # The status is out already, so the error goes into the stream.
            observer.failed(error)
            yield error_frame(api_error(error))
        finally:
            await answer.close()

    if frames is None:
        try:
            response = await until_disconnect(request.receive, collect)
        finally:
            await answer.close()
    else:
        begun = False
        try:
            begun = bool(await until_disconnect(request.receive, begin))
        finally:
            if not begun:
                await answer.close()
        response = None
        if begun:
            response = EventStream(
                guarded(),
                progress=progress,
                keep_alive_s=gateway_of(request).keep_alive_s,
                on_disconnect=observer.disconnected,
                on_close=answer.close,
            )
    if response is None:
        observer.disconnected()
        # Nobody reads it; the log has the status that others use for a client that left.
        response = Response(status_code=499)
    return response
