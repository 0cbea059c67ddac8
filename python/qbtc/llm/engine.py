"""Who answers a request about language: the protocol that in-process and remote engines share."""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Protocol

import msgspec

from qbtc.llm.errors import ModelNotFound
from qbtc.messages.language import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Embeddings,
    Event,
    ModelInfo,
    ResponseFormat,
    Tool,
)

__all__ = ["Engine", "EngineStats", "Stats", "model_named", "no_model"]


class EngineStats(Protocol):
    """Counters and gauges of an engine, for metrics; all since its start."""

    @property
    def active(self) -> int:
        """Answers that are computed now."""
        ...

    @property
    def queued(self) -> int:
        """Answers that wait."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Tokens of prompts."""
        ...

    @property
    def cached_tokens(self) -> int:
        """Of these, from the prefix cache."""
        ...

    @property
    def completion_tokens(self) -> int:
        """Tokens generated."""
        ...

    @property
    def drafted_tokens(self) -> int:
        """Of these, drafted and accepted, or forced by a grammar."""
        ...

    @property
    def steps(self) -> int:
        """Steps of the model."""
        ...

    @property
    def kv_pages(self) -> int:
        """Pages of keys and values there are."""
        ...

    @property
    def kv_pages_free(self) -> int:
        """Of these, free."""
        ...

    @property
    def prefix_pages(self) -> int:
        """Pages that the prefix cache holds."""
        ...


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters and gauges; see :class:`EngineStats`."""

    active: int = 0
    queued: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    steps: int = 0
    kv_pages: int = 0
    kv_pages_free: int = 0
    prefix_pages: int = 0


class Engine(Protocol):
    """Answers chats, completions and embeddings.

    Every method raises :class:`~qbtc.llm.errors.RequestError` for a request it refuses and
    :class:`~qbtc.llm.errors.EngineBusy` when its queue is full, before the first event. The first
    event is a ``Prefill`` and comes as soon as the request is taken. Closing an event iterator
    cancels the work: decoding stops, the prompt read so far stays cached.
    """

    async def models(self) -> Sequence[ModelInfo]:
        """Models served, the default first."""
        ...

    def chat(self, request: ChatRequest) -> AsyncIterator[Event]:
        """Continue a conversation; answers of ``n > 1`` are interleaved."""
        ...

    def complete(self, request: CompletionRequest) -> AsyncIterator[Event]:
        """Continue a text."""
        ...

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Embed texts."""
        ...

    async def tokenize(self, model: str, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text; ``special`` reads control tokens such as ``<|im_end|>`` as such."""
        ...

    async def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        ...

    async def tokenize_chat(
        self,
        model: str,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        response_format: ResponseFormat | None = None,
    ) -> list[int]:
        """Token ids of a conversation as the model will read it, with tools and format."""
        ...

    def stats(self) -> EngineStats:
        """Counters and gauges now."""
        ...

    async def close(self) -> None:
        """Finish or cancel what is running and free the model."""
        ...


def model_named(name: str, models: Iterable[ModelInfo]) -> ModelInfo | None:
    """Return the model of that name; names differ in more than case."""
    wanted = name.casefold()
    return next((info for info in models if info.id.casefold() == wanted), None)


def no_model(name: str, models: Iterable[ModelInfo]) -> ModelNotFound:
    """Return the refusal of a name that none of the models has; it says which there are."""
    served = ", ".join(f"'{info.id}'" for info in models)
    return ModelNotFound(
        f"The model '{name}' does not exist or you do not have access to it. Served here: {served}."
    )
