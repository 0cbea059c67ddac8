"""What goes into a language engine of the core, and what comes out of it."""

from collections.abc import Sequence
from typing import Literal

import msgspec

__all__ = [
    "Constraint",
    "FinishReason",
    "Finished",
    "Generation",
    "LanguageModelInfo",
    "Prefill",
    "Text",
    "Token",
    "Update",
    "Usage",
]

type FinishReason = Literal["stop", "length"]
type Constraint = tuple[Literal["json_object", "json_schema", "lark"], str]
"""Kind and text: empty for ``json_object``, a JSON Schema, or llguidance's dialect of Lark."""


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to generate. The defaults are the core's: temperature 1, nothing cut off."""

    prompt: Sequence[int]
    """Token ids, at least one."""
    new_tokens_max: int
    pinned: int = 0
    """Leading tokens of the prompt to keep in the prefix cache before all others."""
    temperature: float = 1.0
    """0 picks the most likely token."""
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int = 0
    """0 to 2**64 - 1; the same request with the same seed has the same answer."""
    stop: tuple[str, ...] = ()
    constraint: Constraint | None = None
    logprobs: int | None = None
    """Send each token's log-probability and those of this many alternatives."""
    ignore_end: bool = False
    """Go on past the model's end-of-answer token (benchmarks)."""


class Token(msgspec.Struct, frozen=True):
    """A token with its natural log-probability, before temperature and cut-offs."""

    id: int
    bytes: bytes
    """May be part of a character."""
    logprob: float
    top: tuple["Token", ...] = ()
    """The most likely ones, best first; only of a chosen token."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens and times of one answer."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    drafted_tokens: int
    """Of the completion: drafted and accepted, or forced by a grammar."""
    queued_ns: int
    first_token_ns: int
    total_ns: int


class Prefill(msgspec.Struct, frozen=True):
    """The prompt is being read: ``done`` of ``total`` tokens, ``cached`` of them not anew."""

    done: int
    total: int
    cached: int


class Text(msgspec.Struct, frozen=True):
    """More of the answer: whole characters, never the beginning of a stop text."""

    text: str
    """May be empty where only log-probabilities are sent."""
    tokens: int
    """Number of tokens behind it."""
    logprobs: tuple[Token, ...] = ()
    """One entry a token, when asked for."""


class Finished(msgspec.Struct, frozen=True):
    """The end; nothing follows."""

    reason: FinishReason
    stop: str | None
    """Which stop text ended it, if one did."""
    usage: Usage


type Update = Prefill | Text | Finished


class LanguageModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a model file says about itself, and how it runs here."""

    architecture: str
    name: str
    context_tokens: int
    vocabulary: int
    parameters: int
    quantization: str
    """The most common kind of its matrices, e.g. ``Q4_1``."""
    bytes: int
    sha256: str
    isa: str
    threads: int
    reads_tools: bool
    """Whether its chat template can show tools."""
    suffix: bool
    """Whether it can fill in the middle."""
    bos: int | None
    """Token that begins every prompt, if the file asks for one."""
    end_tokens: tuple[int, ...]
