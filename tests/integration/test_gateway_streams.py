"""Streams stay alive while nothing comes, and their work ends when their client leaves."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tests.support.gateway_client import HELLO
from tests.support.scripted_engine import (
    EMBEDDING_MODEL,
    FOREVER,
    MODEL,
    ScriptedEngine,
    call,
    end,
    text,
)
from tests.support.ways import reached

from qbtc.messages.language import ChatRequest, Event, Finished, Prefill
from qbtc_gateway.app import create_app
from qbtc_gateway.observe import Observer
from qbtc_gateway.settings import Settings

pytestmark = pytest.mark.usefixtures("every_way")

WAIT_S = 60.0


class Watching(Observer):
    def __init__(self) -> None:
        self.facts: list[tuple[str, bool, list[str]]] = []
        self.events: list[Event] = []
        self.errors: list[BaseException] = []
        self.left = 0

    def parsed(self, *, model: str, stream: bool, unknown_fields: Any, session: str = "") -> None:
        self.facts.append((model, stream, list(unknown_fields)))

    def event(self, event: Event) -> None:
        self.events.append(event)

    def failed(self, error: BaseException) -> None:
        self.errors.append(error)

    def disconnected(self) -> None:
        self.left += 1


async def visit(
    engine: ScriptedEngine,
    body: Any,
    *,
    path: str = "/v1/chat/completions",
    leave: Callable[[bytes], bool] = lambda _: False,
    after_s: float | None = None,
    writes_fail: bool = False,
    observer: Observer | None = None,
    keep_alive_s: float = 0.02,
) -> bytes:
    """Send a request and leave when what came satisfies ``leave``, or after a time."""
    raw = json.dumps(body).encode()
    received = b""
    left = asyncio.Event()
    sent = iter([{"type": "http.request", "body": raw, "more_body": False}])

    async def receive() -> Any:
        if (message := next(sent, None)) is not None:
            return message
        if after_s is None:
            await left.wait()
        else:
            while not engine.asked:  # noqa: ASYNC110 - an engine has no event
                await asyncio.sleep(0.001)
            await asyncio.sleep(after_s)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal received
        received += message.get("body", b"")
        if leave(received):
            if writes_fail:
                raise OSError("the connection is gone")
            left.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "scheme": "http",
        "state": {} if observer is None else {"observer": observer},
    }
    async with asyncio.timeout(WAIT_S), reached(engine) as answering:
        await create_app(Settings(keep_alive_s=keep_alive_s), answering)(scope, receive, send)
    return received


def chat(**options: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": HELLO} | options


def test_while_the_prompt_is_read_comments_say_how_far() -> None:
    said = threading.Event(), threading.Event()
    engine = ScriptedEngine(
        [Prefill(done=42, total=100, cached=0), said[0], *text("a"), said[1], end()]
    )

    def hear(received: bytes) -> bool:
        if b": prefill 42%\n\n" in received:
            said[0].set()
        if b": keep-alive\n\n" in received.partition(b'"content":"a"')[2]:
            said[1].set()
        return False

    received = asyncio.run(visit(engine, chat(stream=True), leave=hear))
    assert said[1].is_set()
    assert received.index(b": prefill") < received.index(b'"content":"a"')
    assert received.endswith(b"data: [DONE]\n\n")


def test_comments_are_not_sent_while_text_comes() -> None:
    # In all longer than the time after which one is sent, each piece far sooner.
    pieces = [step for letter in "abcdefghijklmnopqrstuvwxyz" for step in (*text(letter), 0.1)]
    engine = ScriptedEngine([*pieces, end()])
    received = asyncio.run(visit(engine, chat(stream=True), keep_alive_s=2.0))
    assert b'"content":"z"' in received
    assert b"\n: " not in received


@pytest.mark.parametrize("writes_fail", [False, True])
@pytest.mark.parametrize(
    "seen", [b"assistant", b'"content":"a"', b'"name":"look"', b": keep-alive"]
)
def test_a_client_that_leaves_a_stream_cancels_its_work(seen: bytes, writes_fail: bool) -> None:
    engine = ScriptedEngine([*text("a"), *call("look", "{"), FOREVER, end()])
    watching = Watching()
    tool = {"type": "function", "function": {"name": "look"}}
    asyncio.run(
        visit(
            engine,
            chat(stream=True, tools=[tool]),
            leave=lambda got: seen in got,
            writes_fail=writes_fail,
            observer=watching,
        )
    )
    assert (engine.cancelled, engine.finished) == (1, 0)
    assert watching.left == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [[FOREVER], [*text("a"), FOREVER]])
def test_a_client_that_leaves_while_waiting_cancels_its_work(stream: bool, script: Any) -> None:
    engine = ScriptedEngine(script)
    asyncio.run(visit(engine, chat(stream=stream), after_s=0.1))
    assert (engine.cancelled, engine.finished) == (1, 0)


def test_leaving_ends_all_answers_to_several_prompts() -> None:
    engine = ScriptedEngine([*text("a"), FOREVER])
    body = {"model": MODEL, "prompt": ["x", "y", "z"], "stream": True}
    asyncio.run(
        visit(engine, body, path="/v1/completions", leave=lambda got: got.count(b'"a"') == 3)
    )
    assert engine.cancelled == 3


def test_leaving_a_response_cancels_it() -> None:
    engine = ScriptedEngine([*text("a"), FOREVER])
    body = {"model": MODEL, "input": "x", "stream": True}
    asyncio.run(
        visit(engine, body, path="/v1/responses", leave=lambda got: b"output_text.delta" in got)
    )
    assert engine.cancelled == 1


def test_an_engine_that_has_not_taken_the_request_is_left_too() -> None:
    class Slow(ScriptedEngine):
        async def embed(self, request: Any) -> Any:
            self.asked.append(request)
            await asyncio.sleep(WAIT_S * 2)

    body = {"model": EMBEDDING_MODEL, "input": "x"}
    asyncio.run(visit(Slow(), body, path="/v1/embeddings", after_s=0.05))


def test_an_observer_hears_what_happens(every_way: str) -> None:
    watching = Watching()
    engine = ScriptedEngine([*text("a"), end()])
    asyncio.run(visit(engine, chat(zzz=1, user="me", stream=True), observer=watching))
    assert watching.facts == [(MODEL, True, ["zzz"])]
    assert isinstance(watching.events[-1], Finished)
    asyncio.run(visit(ScriptedEngine(), chat(model="none"), observer=watching))
    asyncio.run(visit(ScriptedEngine(), chat(messages=[]), observer=watching))
    broken = ScriptedEngine([*text("a"), RuntimeError("x")])
    asyncio.run(visit(broken, chat(stream=True), observer=watching))
    assert [type(error).__name__ for error in watching.errors] == [
        "ModelNotFound",
        "BadRequest",
        "RuntimeError" if every_way == "direct" else "EngineFailed",
    ]


def test_the_engine_is_closed_with_the_server() -> None:
    engine = ScriptedEngine()
    app = create_app(Settings(), engine)

    async def go() -> None:
        async with app.router.lifespan_context(app):
            assert not engine.closed
        assert engine.closed

    asyncio.run(go())


class AnswersTogether(ScriptedEngine):
    """Answers nobody before so many have asked."""

    def __init__(self, enough: int) -> None:
        super().__init__()
        self._enough = enough
        self._all_asked = asyncio.Event()

    async def chat(self, request: ChatRequest) -> AsyncIterator[Event]:
        answer = super().chat(request)
        if len(self.asked) >= self._enough:
            self._all_asked.set()
        await self._all_asked.wait()
        async for event in answer:
            yield event


def test_answers_do_not_wait_for_each_other() -> None:
    engine = AnswersTogether(20)

    async def go() -> list[bytes]:
        return await asyncio.gather(*(visit(engine, chat()) for _ in range(20)))

    assert all(b"Hello" in answer for answer in asyncio.run(go()))
