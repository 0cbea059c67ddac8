"""An engine that answers from a script: what the gateway and clients are tested against.

A script is a list of steps: engine events as they are, a number of seconds to sleep (also
:data:`FOREVER`), a :class:`threading.Event` to wait for, so that a test decides when the answer
goes on, or an exception to raise. The engine remembers what it was asked and how many of
its answers were closed before their end.
"""

import asyncio
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Final

from qbtc.llm.engine import Stats, model_named, no_model
from qbtc.messages.language import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Embeddings,
    Event,
    Finished,
    ModelInfo,
    Prefill,
    ResponseFormat,
    TextDelta,
    Tool,
    ToolCallDelta,
    Usage,
)

FOREVER: Final = float("inf")
MODEL: Final = "scripted"
EMBEDDING_MODEL: Final = "scripted-embedding"
DIMENSIONS: Final = 4

type Step = Event | float | threading.Event | BaseException
type Script = Sequence[Step]
type ChatScript = Script | Callable[[ChatRequest], Script]


def text(*pieces: str, choice: int = 0) -> list[Step]:
    """Pieces of an answer."""
    return [TextDelta(choice=choice, text=piece) for piece in pieces]


def call(
    name: str, *fragments: str, number: int = 0, choice: int = 0, id: str = "call_1"
) -> list[Step]:
    """A tool call in fragments of its arguments."""
    first = ToolCallDelta(choice=choice, call=number, id=id, name=name)
    rest = [ToolCallDelta(choice=choice, call=number, arguments=each) for each in fragments]
    return [first, *rest]


def end(
    reason: str = "stop", *, choice: int = 0, prompt: int = 7, completion: int = 3, cached: int = 4
) -> Finished:
    """The end of an answer."""
    return Finished(
        choice=choice,
        reason=reason,  # type: ignore[arg-type]
        usage=Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached),
        seed=1,
    )


class ScriptedEngine:
    """Implements ``qbtc.llm.engine.Engine``; scripts are taken in turn, the last one for ever."""

    def __init__(
        self, *scripts: ChatScript, created: int = 1_700_000_000, sha256: str = ""
    ) -> None:
        self.scripts: list[ChatScript] = list(scripts) or [[*text("Hello"), end()]]
        self.asked: list[ChatRequest | CompletionRequest | EmbeddingRequest] = []
        self.cancelled = 0
        self.finished = 0
        self.closed = False
        self._models = (
            ModelInfo(
                id=MODEL,
                kind="chat",
                created=created,
                context_tokens=8192,
                vocabulary=256,
                sha256=sha256,
                suffix=True,
            ),
            ModelInfo(
                id=EMBEDDING_MODEL,
                kind="embedding",
                created=created,
                context_tokens=256,
                embedding_dimensions=DIMENSIONS,
            ),
        )

    async def models(self) -> Sequence[ModelInfo]:
        return self._models

    def chat(self, request: ChatRequest) -> AsyncIterator[Event]:
        self.asked.append(request)
        return self._play(request.model, self._next(request))

    def complete(self, request: CompletionRequest) -> AsyncIterator[Event]:
        self.asked.append(request)
        return self._play(request.model, self._next(request))

    def _next(self, request: ChatRequest | CompletionRequest) -> Script:
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        if callable(script):
            assert isinstance(request, ChatRequest)
            return script(request)
        return script

    def _check(self, model: str, kind: str) -> None:
        info = model_named(model, self._models)
        if info is None or info.kind != kind:
            raise no_model(model, self._models)

    async def _play(self, model: str, script: Iterable[Step]) -> AsyncIterator[Event]:
        self._check(model, "chat")
        steps = list(script)
        done = False
        try:
            if not (steps and isinstance(steps[0], BaseException)):
                yield Prefill(done=0, total=7, cached=0)
            for step in steps:
                if isinstance(step, BaseException):
                    done = True
                    raise step
                if isinstance(step, int | float):
                    await asyncio.sleep(min(step, 86_400))
                elif isinstance(step, threading.Event):
                    while not step.is_set():  # noqa: ASYNC110 - set from another thread
                        await asyncio.sleep(0.005)
                else:
                    yield step
            done = True
        finally:
            self.finished += done
            self.cancelled += not done

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        self.asked.append(request)
        self._check(request.model, "embedding")
        vectors = []
        for each in request.inputs:
            data = each.encode() if isinstance(each, str) else bytes(x % 256 for x in each)
            raw = [1.0 + sum(data[index::DIMENSIONS]) for index in range(DIMENSIONS)]
            length = sum(x * x for x in raw) ** 0.5
            vectors.append(struct.pack(f"<{DIMENSIONS}f", *(x / length for x in raw)))
        return Embeddings(
            vectors=tuple(vectors),
            dimensions=DIMENSIONS,
            prompt_tokens=sum(len(each) for each in request.inputs),
        )

    async def tokenize(self, model: str, text: str, *, special: bool = False) -> list[int]:
        self._check(model, "chat")
        return list(text.encode())

    async def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        self._check(model, "chat")
        return bytes(token % 256 for token in tokens).decode(errors="replace")

    async def tokenize_chat(
        self,
        model: str,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        response_format: ResponseFormat | None = None,
    ) -> list[int]:
        self._check(model, "chat")
        return list("".join(message.content for message in messages).encode())

    def stats(self) -> Stats:
        return Stats()

    async def close(self) -> None:
        self.closed = True
