"""What goes into a language engine and what comes out of it.

Frozen structs: they travel between tasks, processes and machines without change. No HTTP here: the
gateway turns a client's body into these, and a worker reads them from a queue.
"""

from typing import Any, Literal

import msgspec

__all__ = [
    "Alternative",
    "ChatMessage",
    "ChatRequest",
    "CompletionRequest",
    "EmbeddingRequest",
    "Embeddings",
    "Event",
    "Finished",
    "ModelInfo",
    "Prefill",
    "ResponseFormat",
    "Sampling",
    "TextDelta",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "Usage",
]

type Role = Literal["system", "user", "assistant", "tool"]
type FinishReason = Literal["stop", "length", "tool_calls"]


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call the model made."""

    id: str
    name: str
    arguments: str
    """JSON text of an object."""


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One turn. ``developer`` and part arrays are resolved before this."""

    role: Role
    content: str = ""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function the model may call."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    """JSON Schema of the arguments; None: there are none."""
    strict: bool = False
    """Refuse a schema with keywords that cannot be kept, instead of leaving them out."""


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Whether and what the model must call; ``name`` only with ``named``."""

    mode: Literal["none", "auto", "required", "named"] = "auto"
    name: str | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """What the text of an answer must be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    schema: dict[str, Any] | bool | None = None
    strict: bool = False
    """Refuse a schema with keywords that cannot be kept, instead of leaving them out."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are chosen. ``seed`` None draws one; the engine reports which."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation to continue."""

    model: str
    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = ResponseFormat()
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    """None: as many as the context holds."""
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: bool = False
    top_logprobs: int = 0


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A text to continue, without a chat template. Token ids are taken as they are."""

    model: str
    prompt: str | tuple[int, ...]
    suffix: str | None = None
    sampling: Sampling = Sampling()
    max_tokens: int | None = 16
    stop: tuple[str, ...] = ()
    n: int = 1
    echo: bool = False
    logprobs: bool = False
    top_logprobs: int = 0


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Texts (or token ids) to embed."""

    model: str
    inputs: tuple[str | tuple[int, ...], ...]


class Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    """Unit vectors, little-endian float32 ``(dimensions,)`` each, in the order of the inputs."""

    vectors: tuple[bytes, ...]
    dimensions: int
    prompt_tokens: int


class Alternative(msgspec.Struct, frozen=True, kw_only=True):
    """A token that might have been chosen."""

    token: str
    bytes: tuple[int, ...]
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A chosen token, its log-probability, and the most likely ones."""

    token: str
    bytes: tuple[int, ...]
    logprob: float
    top: tuple[Alternative, ...] = ()


class Prefill(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The prompt is being read."""

    done: int
    total: int
    cached: int


class TextDelta(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """More text of answer ``choice``."""

    choice: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """More of tool call ``call`` of answer ``choice``: ``id`` and ``name``, then fragments."""

    choice: int
    call: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens and times of one answer."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    drafted_tokens: int = 0
    queued_s: float = 0.0
    first_token_s: float = 0.0
    total_s: float = 0.0


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer ``choice`` is complete."""

    choice: int
    reason: FinishReason
    usage: Usage
    seed: int
    stop: str | None = None


type Event = Prefill | TextDelta | ToolCallDelta | Finished


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A model an engine serves."""

    id: str
    kind: Literal["chat", "embedding"]
    created: int
    """UNIX seconds the file was made or pulled."""
    context_tokens: int
    vocabulary: int = 0
    parameters: int = 0
    quantization: str = ""
    sha256: str = ""
    embedding_dimensions: int = 0
    suffix: bool = False
    """Whether it can fill in the middle."""
