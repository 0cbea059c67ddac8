"""The engine in this process: chats, completions and embeddings on ``qbtc.core``.

A request becomes token ids and a grammar here, the core generates, and its text becomes deltas and
tool calls here. ``n`` answers are ``n`` generations with seeds derived from the first; each answer
reports its own, and asking again with it gives the same answer.
"""

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from qbtc.core.embedding import Embedder
from qbtc.core.language_model import (
    ContextTooShort,
    Generation,
    GenerationRefused,
    LanguageModel,
    Stream,
    Text,
    check_constraint,
)
from qbtc.core.language_model import Finished as CoreFinished
from qbtc.core.language_model import Prefill as CorePrefill
from qbtc.core.language_model import Token as CoreToken
from qbtc.errors import InputError
from qbtc.llm.chat import (
    AnswerParser,
    Constraint,
    PromptWriter,
    constraint_of,
    reads_tool_calls,
    schema_of,
)
from qbtc.llm.engine import Stats, model_named, no_model
from qbtc.llm.errors import ContextLengthExceeded, RequestError
from qbtc.llm.interleave import Interleaved
from qbtc.messages.language import (
    Alternative,
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
    Sampling,
    TextDelta,
    TokenLogprob,
    Tool,
    ToolChoice,
    Usage,
)

if TYPE_CHECKING:
    from qbtc.llm.models import ModelFile

__all__ = ["LocalEngine"]

PINNED_TOKENS_MIN = 32
"""A page of the prefix cache; shorter beginnings are not worth pinning."""
PINNED_TEXTS_MAX = 64
"""Beginnings whose tokens are remembered."""


class _Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the answers of one request have in common."""

    prompt: list[int]
    pinned: int = 0
    limit: int
    sampling: Sampling
    stop: tuple[str, ...]
    n: int
    constraints: tuple[Constraint | None, ...] = (None,)
    """What the answer must look like: exactly, and where that is refused."""
    logprobs: int | None
    tools: tuple[Tool, ...] = ()
    response_format: ResponseFormat = ResponseFormat()
    echo: str = ""


class LocalEngine:
    """Implements :class:`~qbtc.llm.engine.Engine`. Make it with :meth:`load`.

    Parameters
    ----------
    model, info
        A loaded model, and what to say of it.
    native_tools
        Whether its template shows tools in the ``<tool_call>`` way.
    embedder, embedder_info
        A sentence embedder, and what to say of it.
    """

    def __init__(
        self,
        model: LanguageModel,
        info: ModelInfo,
        *,
        native_tools: bool = False,
        embedder: Embedder | None = None,
        embedder_info: ModelInfo | None = None,
    ) -> None:
        self._model = model
        self._info = info
        self._embedder = embedder
        self._served = (info,) if embedder_info is None else (info, embedder_info)
        self._writer = PromptWriter(model.render, native_tools=native_tools)
        self._pinned: OrderedDict[str, list[int]] = OrderedDict()

    @classmethod
    async def load(
        cls,
        model: "ModelFile",
        *,
        embedder: "ModelFile | None" = None,
        threads: int | None = None,
        kv_bytes_max: int | None = None,
        active_max: int = 64,
        queue_max: int = 256,
        snapshot: Path | None = None,
        speculation: bool = True,
    ) -> Self:
        """Load a chat model and, if given, an embedder.

        ``snapshot`` is the file that keeps the prefix cache: read now, written by :meth:`close`.
        The other options are those of :meth:`qbtc.core.language_model.LanguageModel.load`.

        Raises
        ------
        ModelError
            A file is damaged or not supported.
        """
        beside = (
            None
            if embedder is None
            else asyncio.ensure_future(
                asyncio.to_thread(Embedder.load, embedder.path, threads=threads)
            )
        )
        loaded: LanguageModel | None = None
        try:
            loaded = await LanguageModel.load(
                model.path,
                threads=threads,
                kv_bytes_max=kv_bytes_max,
                active_max=active_max,
                queue_max=queue_max,
                snapshot=snapshot,
                speculation=speculation,
                sha256=model.sha256,
            )
            native_tools = loaded.info.reads_tools and await reads_tool_calls(loaded.render)
            embedding = None if beside is None else await beside
        except BaseException:
            if beside is not None:
                beside.cancel()
                await asyncio.gather(beside, return_exceptions=True)
            if loaded is not None:
                await loaded.close()
            raise
        embedding_info: ModelInfo | None = None
        if embedder is not None and embedding is not None:
            embedding_info = ModelInfo(
                id=embedder.id,
                kind="embedding",
                created=embedder.created,
                context_tokens=embedding.context_tokens,
                vocabulary=embedder.vocabulary,
                parameters=embedder.parameters,
                quantization=embedder.quantization,
                sha256=embedder.sha256 or "",
                embedding_dimensions=embedding.dimensions,
            )
        core = loaded.info
        info = ModelInfo(
            id=model.id,
            kind="chat",
            created=model.created,
            context_tokens=core.context_tokens,
            vocabulary=core.vocabulary,
            parameters=core.parameters,
            quantization=core.quantization,
            sha256=core.sha256,
            suffix=core.suffix,
        )
        return cls(
            loaded,
            info,
            native_tools=native_tools,
            embedder=embedding,
            embedder_info=embedding_info,
        )

    async def models(self) -> Sequence[ModelInfo]:
        """Models served, the chat model first."""
        return self._served

    def chat(self, request: ChatRequest) -> AsyncGenerator[Event]:
        """Continue a conversation; see :class:`~qbtc.llm.engine.Engine`."""
        return self._run(lambda: self._chat_job(request), where="messages")

    async def _chat_job(self, request: ChatRequest) -> _Job:
        self._check_model(request.model)
        tools = request.tools if request.tool_choice.mode != "none" else ()
        exact, loose = (
            constraint_of(
                tools,
                request.tool_choice,
                parallel=request.parallel_tool_calls,
                response_format=request.response_format,
                loose=loose,
            )
            for loose in (False, True)
        )
        prompt, pinned = await self._read_chat(request.messages, tools, request.response_format)
        return _Job(
            prompt=prompt,
            pinned=pinned,
            limit=self._limit(len(prompt), request.max_tokens, where="messages"),
            sampling=request.sampling,
            # Where a call must come there is no text that could be stopped.
            stop=request.stop if not tools or request.tool_choice.mode == "auto" else (),
            n=request.n,
            constraints=(exact,) if loose == exact else (exact, loose),
            logprobs=request.top_logprobs if request.logprobs else None,
            tools=tools,
            response_format=request.response_format,
        )

    def complete(self, request: CompletionRequest) -> AsyncGenerator[Event]:
        """Continue a text; see :class:`~qbtc.llm.engine.Engine`."""
        return self._run(lambda: self._text_job(request), where="prompt")

    async def _text_job(self, request: CompletionRequest) -> _Job:
        self._check_model(request.model)
        prompt = await self._read_text(request)
        echo = ""
        if request.echo:
            echo = (
                request.prompt
                if isinstance(request.prompt, str)
                else self._model.decode(prompt, keep_control=True).decode(errors="replace")
            )
        return _Job(
            prompt=prompt,
            limit=self._limit(len(prompt), request.max_tokens, where="prompt"),
            sampling=request.sampling,
            stop=request.stop,
            n=request.n,
            logprobs=request.top_logprobs if request.logprobs else None,
            echo=echo,
        )

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Embed texts."""
        found = model_named(request.model, self._served)
        if found is None:
            raise no_model(request.model, self._served)
        if self._embedder is None or found.kind != "embedding":
            raise RequestError(
                f"The model '{request.model}' makes no embeddings.",
                param="model",
                code="unsupported_model",
            )
        texts: list[str] = []
        for index, each in enumerate(request.inputs):
            if not isinstance(each, str):
                raise RequestError(
                    "This model embeds text, not token ids: ids of another model's tokenizer would "
                    "mean other words. Send strings.",
                    param=f"input[{index}]",
                    code="unsupported_value",
                )
            texts.append(each)
        try:
            counts = await self._embedder.count_tokens(texts)
        except InputError as error:
            raise RequestError(str(error), param="input", code="invalid_value") from None
        for count in counts:
            if count > self._embedder.context_tokens:
                raise ContextLengthExceeded(
                    f"This model's maximum context length is {self._embedder.context_tokens} "
                    f"tokens, however you requested {count} tokens ({count} in your prompt; 0 for "
                    "the completion). Please reduce your prompt; or completion length.",
                    param="input",
                )
        try:
            vectors = await self._embedder.embed(texts)  # (inputs, dimensions) f32
        except InputError as error:
            raise RequestError(str(error), param="input", code="invalid_value") from None
        return Embeddings(
            vectors=tuple(vector.astype("<f4").tobytes() for vector in vectors),
            dimensions=self._embedder.dimensions,
            prompt_tokens=sum(counts),
        )

    async def tokenize(self, model: str, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text."""
        self._check_model(model)
        return await self._model.encode(text, special=special)

    async def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        self._check_model(model)
        self._check_tokens(tokens, "tokens")
        return self._model.decode(tokens, keep_control=True).decode(errors="replace")

    async def tokenize_chat(
        self,
        model: str,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        response_format: ResponseFormat | None = None,
    ) -> list[int]:
        """Token ids of a conversation as the model will read it."""
        self._check_model(model)
        tokens, _ = await self._read_chat(messages, tools, response_format)
        return tokens

    def stats(self) -> Stats:
        """Counters and gauges now."""
        return msgspec.convert(self._model.stats(), Stats)

    async def close(self) -> None:
        """Stop the engine, which keeps its prefix cache if that was asked for; free the models."""
        await self._model.close()
        if self._embedder is not None:
            await self._embedder.close()

    # Prompts

    def _check_model(self, model: str) -> None:
        found = model_named(model, self._served)
        if found is None:
            raise no_model(model, self._served)
        if found.kind == "embedding":
            raise RequestError(
                f"The model '{model}' makes embeddings only.",
                param="model",
                code="unsupported_model",
            )

    def _check_tokens(self, tokens: Sequence[int], where: str) -> None:
        for index, token in enumerate(tokens):
            if token >= self._info.vocabulary:
                raise RequestError(
                    f"Invalid '{where}[{index}]': token {token} is outside this model's vocabulary "
                    f"of {self._info.vocabulary}.",
                    param=f"{where}[{index}]",
                    code="invalid_value",
                )

    async def _read_chat(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool],
        response_format: ResponseFormat | None = None,
    ) -> tuple[list[int], int]:
        """Return the tokens of a conversation, and how many of them to pin."""
        try:
            prompt = await self._writer.write(messages, tools, response_format)
        except InputError as error:
            raise RequestError(
                f"The model's chat template refuses these messages: {error}",
                param="messages",
                code="invalid_value",
            ) from None
        tokens = await self._encode(prompt.text)
        if not prompt.pinned:
            return tokens, 0
        begun = self._pinned.get(prompt.pinned)
        if begun is None:
            begun = await self._encode(prompt.pinned)
            self._pinned[prompt.pinned] = begun
            if len(self._pinned) > PINNED_TEXTS_MAX:
                self._pinned.popitem(last=False)
        else:
            self._pinned.move_to_end(prompt.pinned)
        # The last tokens may join with what follows.
        same = len(begun)
        while same and tokens[:same] != begun[:same]:
            same -= 1
        return tokens, same if same >= PINNED_TOKENS_MIN else 0

    async def _encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt."""
        return self._begun(await self._model.encode(text, special=True))

    def _begun(self, tokens: list[int]) -> list[int]:
        """Put the token before all prompts there, where the file asks for one."""
        bos = self._model.info.bos
        return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]

    async def _read_text(self, request: CompletionRequest) -> list[int]:
        """Return the tokens of a text to continue."""
        if request.suffix is not None:
            return await self._read_infill(request.prompt, request.suffix)
        if isinstance(request.prompt, str):
            tokens = self._begun(await self._model.encode(request.prompt, special=True))
        else:
            self._check_tokens(request.prompt, "prompt")
            tokens = list(request.prompt)
        if not tokens:
            raise RequestError(
                "Invalid 'prompt': empty string. Expected at least one token.",
                param="prompt",
                code="empty_string",
            )
        return tokens

    async def _read_infill(self, prompt: str | tuple[int, ...], suffix: str) -> list[int]:
        """Return the tokens that ask for the text between two texts."""
        marks = next((m for m in _INFILL if all(map(self._model.is_control, m))), None)
        if not self._info.suffix or marks is None or not isinstance(prompt, str):
            raise RequestError(
                "Unsupported parameter: 'suffix' is not supported with this model"
                f"{' and a prompt of tokens' if self._info.suffix and marks else ''}.",
                param="suffix",
                code="unsupported_parameter",
            )
        tokens: list[int] = []
        for mark, text in zip(marks, (prompt, suffix, ""), strict=True):
            tokens += await self._model.encode(mark, special=True)
            tokens += await self._model.encode(text)
        return self._begun(tokens)

    def _limit(self, prompt: int, asked: int | None, *, where: str) -> int:
        """Return how many tokens to generate; refuse what does not fit the context."""
        context = self._info.context_tokens
        if prompt + (1 if asked is None else asked) <= context:
            return context - prompt if asked is None else asked
        thing = "messages" if where == "messages" else "prompt"
        if asked is None or prompt >= context:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {context} tokens. However, your {thing} "
                f"resulted in {prompt} tokens. Please reduce the length of the {thing}.",
                param=where,
            )
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context} tokens. However, you requested "
            f"{prompt + asked} tokens ({prompt} in the {thing}, {asked} in the completion). Please "
            f"reduce the length of the {thing} or completion.",
            param=where,
        )

    # Answers

    async def _run(
        self, prepare: Callable[[], Awaitable[_Job]], *, where: str
    ) -> AsyncGenerator[Event]:
        job = await prepare()
        first = job.sampling.seed
        seeds = _seeds(secrets.randbits(63) if first is None else first % 2**64, job.n)
        streams: list[Stream] = []
        answers: AsyncIterator[Event] | None = None
        try:
            if job.limit:
                for seed in seeds:
                    # One at a time, so that those before a refusal are closed.
                    stream = await self._generate(job, seed, where=where)
                    streams.append(stream)
            yield Prefill(done=0, total=len(job.prompt), cached=0)
            for choice in range(job.n):
                if job.echo:
                    yield TextDelta(choice=choice, text=job.echo)
                if not job.limit:
                    usage = Usage(prompt_tokens=len(job.prompt), completion_tokens=0)
                    yield Finished(choice=choice, reason="length", usage=usage, seed=seeds[choice])
            parts = [
                _answer(stream, choice, seed, job)
                for choice, (stream, seed) in enumerate(zip(streams, seeds, strict=False))
            ]
            answers = parts[0] if len(parts) == 1 else Interleaved(parts)
            async for event in answers:
                yield event
        finally:
            # A part that never began has no `finally` of its own, so the streams are closed here.
            for stream in streams:
                await stream.aclose()
            close: Callable[[], Any] | None = getattr(answers, "aclose", None)
            if close is not None:
                await close()

    async def _generate(self, job: _Job, seed: int, *, where: str) -> Stream:
        refusal: GenerationRefused | None = None
        for constraint in job.constraints:
            try:
                return await self._model.generate(_generation(job, seed, constraint))
            except ContextTooShort as error:
                # The memory for keys and values may hold less than the model's context.
                raise ContextLengthExceeded(str(error), param=where) from None
            except GenerationRefused as error:
                if error.field not in _CONSTRAINT_FIELDS:
                    param = (
                        where if error.field == "prompt" else _FIELDS.get(error.field, error.field)
                    )
                    raise RequestError(str(error), param=param, code="invalid_value") from None
                refusal = error
        assert refusal is not None
        # A grammar is made of all schemas of a request; only now is it worth asking which.
        raise await asyncio.to_thread(_bad_schema, refusal, job) from None


def _generation(job: _Job, seed: int, constraint: Constraint | None) -> Generation:
    sampling = job.sampling
    return Generation(
        prompt=job.prompt,
        new_tokens_max=job.limit,
        pinned=job.pinned,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=sampling.logit_bias,
        seed=seed,
        # Beside tools the parser looks for them, which knows what is text.
        stop=() if job.tools else job.stop,
        constraint=constraint,
        logprobs=job.logprobs,
    )


async def _answer(stream: Stream, choice: int, seed: int, job: _Job) -> AsyncGenerator[Event]:
    """Yield the events of one answer."""
    tools = bool(job.tools)
    parser = AnswerParser(
        choice=choice, tools=tools, new_id=_call_id, stop=job.stop if tools else ()
    )
    counted = _Counted(len(job.prompt))
    async for update in stream:
        match update:
            case Text():
                counted.text(update)
                for delta in parser.feed(update.text, _logprobs(update.logprobs)):
                    yield delta
                if parser.stopped is not None:
                    await stream.aclose()
                    _, reason = parser.finish("stop")
                    yield Finished(
                        choice=choice,
                        reason=reason,
                        usage=counted.usage(),
                        seed=seed,
                        stop=parser.stopped,
                    )
                    return
            case CorePrefill():
                counted.prefill(update)
                # All answers read the same prompt; one of them tells how far.
                if choice == 0:
                    yield Prefill(done=update.done, total=update.total, cached=update.cached)
            case CoreFinished():
                rest, reason = parser.finish(update.reason)
                for delta in rest:
                    yield delta
                yield Finished(
                    choice=choice,
                    reason=reason,
                    usage=_usage(update),
                    seed=seed,
                    stop=parser.stopped or update.stop,
                )


class _Counted:
    """Usage of an answer as far as it was read: one that is left has none from the core."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._cached_tokens = 0
        self._completion_tokens = 0
        self._started_s = time.perf_counter()
        self._queued_s: float | None = None
        self._first_token_s: float | None = None

    def prefill(self, update: CorePrefill) -> None:
        self._cached_tokens = update.cached
        if self._queued_s is None:
            self._queued_s = time.perf_counter() - self._started_s

    def text(self, update: Text) -> None:
        self._completion_tokens += update.tokens
        if self._first_token_s is None:
            self._first_token_s = time.perf_counter() - self._started_s

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            cached_tokens=self._cached_tokens,
            queued_s=self._queued_s or 0.0,
            first_token_s=self._first_token_s or 0.0,
            total_s=time.perf_counter() - self._started_s,
        )


_INFILL = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
)
_CONSTRAINT_FIELDS = ("constraint", "schema", "grammar")
_FIELDS = {
    "new_tokens_max": "max_tokens",
    "logprobs": "top_logprobs",
}


def _bad_schema(error: GenerationRefused, job: _Job) -> RequestError:
    """Return which schema of a request the core refuses, and why."""
    reason, param, name = _reason(error), "response_format", "the response format"
    parts = [
        (f"tools[{index}].function.parameters", f"function '{tool.name}'", schema_of(tool, index))
        for index, tool in enumerate(job.tools)
    ]
    if job.tools:
        param, name = "tools", "the tools together"
        answer = constraint_of((), ToolChoice(), response_format=job.response_format, loose=True)
        if answer is not None:
            parts.append(("response_format", "the response format", answer))
    for where, what, constraint in parts:
        try:
            check_constraint(constraint)
        except GenerationRefused as single:
            reason, param, name = _reason(single), where, what
            break
    return RequestError(f"Invalid schema for {name}: {reason}", param=param, code="invalid_schema")


def _reason(error: GenerationRefused) -> str:
    return str(error).partition(": ")[2].partition("\n")[0]


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _seeds(first: int, n: int) -> list[int]:
    """Return one seed an answer, the first as given."""
    return [first] + [
        int.from_bytes(hashlib.blake2b(b"%d/%d" % (first, choice), digest_size=8).digest())
        for choice in range(1, n)
    ]


def _logprobs(tokens: Sequence[CoreToken]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(
            token=token.bytes.decode(errors="replace"),
            bytes=tuple(token.bytes),
            logprob=token.logprob,
            top=tuple(
                Alternative(
                    token=other.bytes.decode(errors="replace"),
                    bytes=tuple(other.bytes),
                    logprob=other.logprob,
                )
                for other in token.top
            ),
        )
        for token in tokens
    )


def _usage(end: CoreFinished) -> Usage:
    usage = end.usage
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        drafted_tokens=usage.drafted_tokens,
        queued_s=usage.queued_ns / 1e9,
        first_token_s=usage.first_token_ns / 1e9,
        total_s=usage.total_ns / 1e9,
    )
