"""A language model on the Rust engine, for asyncio: tokens in, text out, many answers at once.

One model has one engine: a thread of its own that never takes the GIL. It writes one event a step
to a file descriptor; the loop then drains the news of all answers in one call and wakes who waits.

A stream that nobody reads holds at most :data:`BUFFERED_TOKENS_MAX` tokens here; beyond that its
news stays in the core, which pauses the answer until there is room. Works on plain asyncio and on
uvloop; a model belongs to the loop it was loaded on.

Not here: chat roles, tools, model names (``qbtc.llm``) and HTTP (the gateway).
"""

import asyncio
import os
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import msgspec

from qbtc import _core
from qbtc.core.generation import (
    Constraint,
    Finished,
    Generation,
    LanguageModelInfo,
    Prefill,
    Text,
    Token,
    Update,
    Usage,
)
from qbtc.errors import EngineBusy, InputError, ModelError, RunFailed

__all__ = [
    "Constraint",
    "ContextTooShort",
    "Finished",
    "Generation",
    "GenerationRefused",
    "LanguageModel",
    "LanguageModelInfo",
    "Prefill",
    "Stream",
    "Text",
    "Token",
    "Update",
    "Usage",
    "check_constraint",
]

BUFFERED_TOKENS_MAX = 1_024
"""Tokens of one answer kept for a slow reader before the core is told to wait."""
LONG_TEXT_CHARACTERS = 4_096
"""Texts from this length on are tokenized beside the loop, not on it."""


class GenerationRefused(InputError):
    """The core cannot answer this; ``field`` names what is at fault, e.g. ``constraint``."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class ContextTooShort(GenerationRefused):
    """The prompt leaves no room for an answer in the model's context."""


def check_constraint(constraint: Constraint) -> None:
    """Refuse a constraint that no model could keep; takes milliseconds.

    Raises
    ------
    GenerationRefused
        It is not valid, not supported, cannot be met, or is too large.
    """
    try:
        _core.check_constraint(*constraint)
    except _core.CoreInputError as error:
        raise GenerationRefused(str(error), field=str(error).partition(":")[0]) from None


class CoreEngine(Protocol):
    """What this module asks of ``qbtc._core.LanguageEngine``; tests script it."""

    def info(self) -> dict[str, Any]: ...
    def encode(self, text: str, *, special: bool = False) -> list[int]: ...
    def decode(self, tokens: Sequence[int], *, keep_control: bool = False) -> bytes: ...
    def render(
        self,
        messages_json: str,
        tools_json: str | None,
        *,
        add_generation_prompt: bool,
        now_unix_s: int,
    ) -> str: ...
    @property
    def submit(self) -> Callable[..., int]: ...
    def cancel(self, request: int, /) -> None: ...
    def drain(self, skip: Collection[int] = (), /) -> list[tuple[Any, ...]]: ...
    def wake_fd(self) -> int: ...
    def stats(self) -> dict[str, int]: ...
    def restored(self) -> tuple[int, str | None]: ...
    def save_snapshot(self) -> int: ...
    def close(self) -> None: ...


class _Inbox:
    """News of one answer that its reader has not taken yet."""

    __slots__ = ("failure", "tokens", "updates", "waiter")

    def __init__(self) -> None:
        self.updates: deque[Update] = deque()
        self.tokens = 0
        self.waiter: asyncio.Future[None] | None = None
        self.failure: Exception | None = None

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def fail(self, failure: Exception) -> None:
        self.failure = failure
        self.wake()


class Stream(AsyncIterator[Update]):
    """Updates of one answer, the last a :class:`Finished`.

    Closing or dropping the stream cancels the work: decoding stops, and the prompt read so far
    stays in the prefix cache. A wait that is cancelled or times out loses nothing: ask again.
    Raises :class:`~qbtc.errors.RunFailed` where the engine cannot go on.
    """

    __slots__ = ("_inbox", "_model", "id")

    def __init__(self, model: "LanguageModel", request: int, inbox: _Inbox) -> None:
        self.id = request
        self._model = model
        self._inbox: _Inbox | None = inbox

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Update:
        inbox = self._inbox
        if inbox is None:
            raise StopAsyncIteration
        while not inbox.updates:
            if inbox.failure is not None:
                self._inbox = None
                raise inbox.failure
            waiter = inbox.waiter = self._model.loop.create_future()
            try:
                await waiter
            finally:
                inbox.waiter = None
            if self._inbox is None:  # closed meanwhile
                raise StopAsyncIteration
        update = inbox.updates.popleft()
        if type(update) is Text:
            self._model._taken(self.id, inbox, update.tokens)
        elif type(update) is Finished:
            self._inbox = None
        return update

    async def aclose(self) -> None:
        """Cancel what is left; the stream then ends."""
        self._cancel()

    def _cancel(self) -> None:
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            self._model._cancel(self.id)
            inbox.wake()

    def __del__(self) -> None:
        self._cancel()


class LanguageModel:
    """A loaded model and its engine. Make it with :meth:`load`; close it when done.

    Attributes
    ----------
    path
        The GGUF file.
    info
        What the file says about itself.
    loop
        The event loop it belongs to.
    """

    def __init__(self, core: CoreEngine, *, path: Path) -> None:
        self.path = path
        self.info = msgspec.convert(core.info(), LanguageModelInfo)
        self.loop = asyncio.get_running_loop()
        self._core = core
        self._inboxes: dict[int, _Inbox] = {}
        self._paused: set[int] = set()
        self._submitting = 0
        self._early: dict[int, list[tuple[Any, ...]]] = {}
        # Cancelled here, not ended yet in the core.
        self._left: set[int] = set()
        self._closed = False
        self._wake_fd = core.wake_fd()
        self.loop.add_reader(self._wake_fd, self._drain)

    @classmethod
    async def load(
        cls,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        kv_bytes_max: int | None = None,
        active_max: int = 64,
        queue_max: int = 256,
        speculation: bool = True,
        snapshot: str | os.PathLike[str] | None = None,
        sha256: str | None = None,
    ) -> Self:
        """Map, check and repack a GGUF file, and start its engine.

        Parameters
        ----------
        path
            The file.
        threads
            Of the engine; default: the machine's.
        kv_bytes_max
            Memory for keys and values, prefix cache included; default: the core's.
        active_max, queue_max
            Answers generated at once, and waiting; one more raises ``EngineBusy``.
        speculation
            Whether to guess tokens from the prompt; answers are the same either way.
        snapshot
            File that keeps the prefix cache: read now, written by :meth:`close` and
            :meth:`save_snapshot`. One that does not fit is ignored; :meth:`restored` says why.
        sha256
            What the file must be.

        Raises
        ------
        ModelError
            Naming the file and what in it is damaged or not supported.
        InputError
            An option is out of range.
        """
        path = Path(path)

        def build() -> CoreEngine:
            return _core.LanguageEngine(
                path,
                threads=threads,
                kv_bytes_max=kv_bytes_max,
                active_max=active_max,
                queue_max=queue_max,
                speculation=speculation,
                snapshot=snapshot,
            )

        try:
            core = await asyncio.to_thread(build)
        except (_core.CoreModelError, OSError) as error:
            raise ModelError(f"{path}: {error}") from None
        except _core.CoreInputError as error:
            raise InputError(str(error)) from None
        model = cls(core, path=path)
        if sha256 is not None and model.info.sha256 != sha256:
            await model.close()
            found = model.info.sha256
            raise ModelError(f"{path}: its SHA-256 is {found}, not {sha256}; get it again")
        return model

    async def generate(self, generation: Generation) -> Stream:
        """Queue an answer; the stream has its updates.

        Raises
        ------
        GenerationRefused
            A value is out of range, the prompt does not fit, or the grammar does not compile.
        EngineBusy
            The queue is full.
        RunFailed
            The model was closed, or its engine failed.
        """
        if self._closed:
            raise RunFailed("the language model is closed")
        options = msgspec.structs.asdict(generation)
        prompt, limit = options.pop("prompt"), options.pop("new_tokens_max")
        if generation.constraint is None:
            request = self._submit(prompt, limit, options)
            return self._open(request)
        # A grammar takes a while to compile, so the loop goes on meanwhile; what the core says of
        # the answer before we know its number is kept aside.
        self._submitting += 1
        work = self.loop.run_in_executor(None, self._submit, prompt, limit, options)
        try:
            request = await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(self._abandon)
            raise
        except BaseException:
            self._submitted()
            raise
        try:
            return self._open(request)
        finally:
            self._submitted()

    def _submit(self, prompt: Sequence[int], limit: int, options: dict[str, Any]) -> int:
        try:
            return self._core.submit(prompt, limit, **options)
        except _core.CoreContextError as error:
            raise ContextTooShort(str(error), field="prompt") from None
        except _core.CoreInputError as error:
            field = str(error).partition(":")[0]
            if field == "engine":
                raise RunFailed(str(error)) from None
            raise GenerationRefused(str(error), field=field) from None
        except _core.CoreBusyError as error:
            raise EngineBusy(str(error), retry_after_s=error.retry_after_s) from None
        except (TypeError, ValueError, OverflowError) as error:
            raise GenerationRefused(str(error), field=_argument(str(error))) from None

    def _open(self, request: int) -> Stream:
        inbox = self._inboxes[request] = _Inbox()
        for news in self._early.pop(request, ()):
            self._deliver(news)
        if self._closed:
            inbox.fail(RunFailed("the language model was closed"))
        return Stream(self, request, inbox)

    def _abandon(self, work: asyncio.Future[int]) -> None:
        if not work.cancelled() and work.exception() is None:
            request = work.result()
            if all(news[1] != "finished" for news in self._early.pop(request, ())):
                self._left.add(request)
            self._core.cancel(request)
        self._submitted()

    def _submitted(self) -> None:
        self._submitting -= 1
        if not self._submitting:
            self._early.clear()

    def _drain(self) -> None:
        try:
            for news in self._core.drain(self._paused):
                self._deliver(news)
        except Exception as error:  # the reader of a file descriptor has nobody to raise to
            for inbox in self._inboxes.values():
                inbox.fail(RunFailed(f"the engine failed: {error}"))
            self._inboxes.clear()

    def _deliver(self, news: tuple[Any, ...]) -> None:
        request, kind = news[0], news[1]
        inbox = self._inboxes.get(request)
        if inbox is None:
            if request in self._left:
                if kind == "finished":
                    self._left.discard(request)
            elif self._submitting:
                self._early.setdefault(request, []).append(news)
            return
        if kind == "text":
            _, _, text, tokens, logprobs = news
            inbox.updates.append(Text(text, tokens, _tokens(logprobs) if logprobs else ()))
            inbox.tokens += tokens
            if inbox.tokens >= BUFFERED_TOKENS_MAX:
                self._paused.add(request)
        elif kind == "prefill":
            # Only the latest matters.
            if inbox.updates and type(inbox.updates[-1]) is Prefill:
                inbox.updates.pop()
            inbox.updates.append(Prefill(*news[2:]))
        else:
            self._end(request, inbox, *news[2:])
        inbox.wake()

    def _end(
        self,
        request: int,
        inbox: _Inbox,
        reason: Literal["stop", "length", "cancelled", "failed"],
        stop: str | None,
        error: str | None,
        usage: tuple[int, ...],
    ) -> None:
        del self._inboxes[request]
        self._paused.discard(request)
        if reason == "stop" or reason == "length":
            names = Usage.__struct_fields__
            counted = Usage(**dict(zip(names, usage, strict=True)))
            inbox.updates.append(Finished(reason, stop, counted))
        else:
            inbox.fail(RunFailed(f"the answer was not finished: {error or reason}"))

    def _taken(self, request: int, inbox: _Inbox, tokens: int) -> None:
        inbox.tokens -= tokens
        if request in self._paused and inbox.tokens <= BUFFERED_TOKENS_MAX // 2:
            self._paused.discard(request)
            # What the core held back has written its event already.
            self.loop.call_soon(self._drain_open)

    def _drain_open(self) -> None:
        if not self._closed:
            self._drain()

    def _cancel(self, request: int) -> None:
        if request in self._paused:
            self._paused.discard(request)
            # The core holds its place until what was held back is taken, and says so no more.
            if not self.loop.is_closed():
                self.loop.call_soon(self._drain_open)
        if self._inboxes.pop(request, None) is not None:
            self._left.add(request)
            self._core.cancel(request)

    async def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text; ``special`` reads control tokens such as ``<|im_end|>`` as such."""
        if len(text) < LONG_TEXT_CHARACTERS:
            return self._core.encode(text, special=special)
        return await asyncio.to_thread(self._core.encode, text, special=special)

    def decode(self, tokens: Sequence[int], *, keep_control: bool = False) -> bytes:
        """Bytes of token ids; not every token is a whole character.

        Raises
        ------
        GenerationRefused
            A token is outside the vocabulary.
        """
        try:
            return self._core.decode(tokens, keep_control=keep_control)
        except _core.CoreInputError as error:
            raise GenerationRefused(str(error), field="tokens") from None

    def is_control(self, text: str) -> bool:
        """Whether a text, or a part of it, is read as a control token, such as ``<|im_end|>``."""
        tokens = self._core.encode(text, special=True)
        return any(not self._core.decode([token]) for token in tokens)

    async def render(
        self, messages: object, tools: object | None = None, *, add_generation_prompt: bool = True
    ) -> str:
        """Write a conversation as the file's own chat template does.

        Parameters
        ----------
        messages, tools
            What the template sees: plain lists and dictionaries, or structs that encode to them.

        Raises
        ------
        GenerationRefused
            The template refuses them, or the file has none.
        """
        sent = msgspec.json.encode(messages).decode()
        shown = None if tools is None else msgspec.json.encode(tools).decode()
        try:
            return await asyncio.to_thread(
                self._core.render,
                sent,
                shown,
                add_generation_prompt=add_generation_prompt,
                now_unix_s=int(time.time()),
            )
        except (_core.CoreInputError, _core.CoreModelError) as error:
            raise GenerationRefused(str(error), field="messages") from None

    def stats(self) -> dict[str, int]:
        """Counters since the start and gauges of now, named as in ``qbtc.llm.engine``."""
        return self._core.stats()

    def restored(self) -> tuple[int, str | None]:
        """Pages that the snapshot gave back, and why it was ignored, if it was."""
        return self._core.restored()

    async def save_snapshot(self) -> int:
        """Write the prefix cache to the snapshot file; returns its bytes.

        Raises
        ------
        InputError
            No snapshot file was named.
        RunFailed
            It cannot be written.
        """
        try:
            return await asyncio.to_thread(self._core.save_snapshot)
        except _core.CoreInputError as error:
            raise InputError(str(error)) from None
        except OSError as error:
            raise RunFailed(str(error)) from None

    async def close(self) -> None:
        """Cancel what is running, stop the engine's thread and free the model."""
        if self._closed:
            return
        self._closed = True
        self.loop.remove_reader(self._wake_fd)
        for inbox in self._inboxes.values():
            inbox.fail(RunFailed("the language model was closed"))
        self._inboxes.clear()
        self._paused.clear()
        await asyncio.to_thread(self._core.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _argument(message: str) -> str:
    """Name of the argument that could not be converted: ``argument 'seed': ...``."""
    found = re.match(r"argument '(\w+)'", message)
    return found[1] if found else "prompt"


def _tokens(entries: Sequence[tuple[Any, ...]]) -> tuple[Token, ...]:
    """Tokens of the core's (id, bytes, logprob, [(id, bytes, logprob), ...])."""
    return tuple(
        Token(id, text, logprob, tuple(Token(*each) for each in top))
        for id, text, logprob, top in entries
    )
