"""Payloads of the bus: one struct for each file of ``schemas/``, held equal to it by tests.

The schema is the contract: it says lengths, patterns and ranges, and every incoming message is
checked against it before it becomes one of these structs.
"""

from typing import Any, Literal

import msgspec

from qbtc.messages.language import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Event,
    FinishReason,
    ModelInfo,
    ResponseFormat,
    TokenLogprob,
    Tool,
    ToolCall,
    Usage,
)

__all__ = [
    "TYPES",
    "Action",
    "Cancel",
    "Choice",
    "DetokenizeRequest",
    "Embedded",
    "Failure",
    "Fill",
    "Health",
    "LlmChunk",
    "LlmRequest",
    "LlmResponse",
    "OrderEvent",
    "Payload",
    "TokenizeChatRequest",
    "TokenizeRequest",
    "TradingRequest",
    "TradingSignal",
    "likeliest",
    "type_of",
]

type Action = Literal["BUY", "SELL", "HOLD"]

type DecimalText = str
"""A decimal number as text: ``-?digits[.digits]``, no exponent."""


class _Payload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class TokenizeRequest(_Payload, frozen=True, kw_only=True):
    """Which text to turn into token ids."""

    model: str
    text: str
    special: bool = False
    """Read control tokens such as ``<|im_end|>`` as such."""


class DetokenizeRequest(_Payload, frozen=True, kw_only=True):
    """Which token ids to turn into text."""

    model: str
    tokens: tuple[int, ...]


class TokenizeChatRequest(_Payload, frozen=True, kw_only=True):
    """Which conversation to turn into token ids."""

    model: str
    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    response_format: ResponseFormat = ResponseFormat()


class LlmRequest(_Payload, frozen=True, kw_only=True):
    """What a language engine is asked. The field named as ``operation`` is given, no other.

    ``models`` has no field of its own.
    """

    request_id: str
    operation: Literal[
        "chat", "completion", "embedding", "tokenize", "detokenize", "tokenize_chat", "models"
    ]
    stream: bool = False
    """Whether chunks are wanted before the response; only of ``chat`` and ``completion``."""
    chat: ChatRequest | None = None
    completion: CompletionRequest | None = None
    embedding: EmbeddingRequest | None = None
    tokenize: TokenizeRequest | None = None
    detokenize: DetokenizeRequest | None = None
    tokenize_chat: TokenizeChatRequest | None = None


class LlmChunk(_Payload, frozen=True, kw_only=True):
    """A piece of an answer. An answer that is made again, by another worker, has a new attempt."""

    request_id: str
    attempt: str
    """Of one delivery of the request to one worker."""
    sequence: int
    """0, 1, 2, ... of the attempt."""
    events: tuple[Event, ...]


class Failure(_Payload, frozen=True, kw_only=True):
    """Why a request was not answered: inside an ``LlmResponse``, or itself the last reply."""

    kind: Literal[
        "invalid_request", "context_length", "model_not_found", "busy", "expired", "internal"
    ]
    message: str
    param: str | None = None
    """Field at fault, as the client wrote it."""
    code: str | None = None
    retry_after_s: float | None = None
    """Of ``busy``."""


class Choice(_Payload, frozen=True, kw_only=True):
    """One whole answer."""

    index: int
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the text; only where the request asks for them."""
    finish_reason: FinishReason
    usage: Usage
    seed: int


class Embedded(_Payload, frozen=True, kw_only=True):
    """Unit vectors, little-endian float32 in base64, in the order of the inputs."""

    vectors: tuple[bytes, ...]
    dimensions: int
    prompt_tokens: int


class LlmResponse(_Payload, frozen=True, kw_only=True):
    """The end of a request. Of a streamed one that succeeded, the chunks were the answer."""

    request_id: str
    attempt: str
    status: Literal["success", "error"]
    failure: Failure | None = None
    """Only of an error."""
    model: str = ""
    worker: str = ""
    """Instance that answered."""
    choices: tuple[Choice, ...] = ()
    embedded: Embedded | None = None
    tokens: tuple[int, ...] | None = None
    """Of ``tokenize`` and ``tokenize_chat``."""
    text: str | None = None
    """Of ``detokenize``."""
    models: tuple[ModelInfo, ...] = ()
    chunks: int = 0
    """How many were sent before this."""


class TradingRequest(_Payload, frozen=True, kw_only=True):
    """Asks for a signal on features that the sender computed."""

    request_id: str
    instrument: str
    """Nautilus id, like ``BTCUSDT.BINANCE``."""
    ts_event: int
    """Time of the market event the features stand at, UNIX ns."""
    features: dict[str, float | None]
    """By the names of the feature table; what is absent or null is missing and integrated out."""
    price: DecimalText | None = None
    """Mid at ``ts_event``."""
    model: str | None = None
    """Name of a signal model the worker serves; None: its default."""
    metadata: dict[str, Any] = {}


def likeliest(p_down: float, p_flat: float, p_up: float) -> tuple[Action, float]:
    """Return what the likeliest class says to do, and its probability.

    Parameters
    ----------
    p_down, p_flat, p_up
        Probabilities of the three classes, 0 to 1.

    Returns
    -------
    SELL, HOLD or BUY for down, flat or up, and the probability of that class. Where two are as
    likely it is HOLD, with the probability of flat.
    """
    chances: dict[Action, float] = {"SELL": p_down, "HOLD": p_flat, "BUY": p_up}
    best = max(chances.values())
    likely = [action for action, chance in chances.items() if chance == best]
    action = likely[0] if len(likely) == 1 else "HOLD"
    return action, chances[action]


class TradingSignal(_Payload, frozen=True, kw_only=True):
    """A model's view of one instrument. Advice: whoever acts on it checks risk and age."""

    signal_id: str
    instrument: str
    action: Action
    confidence: float
    """Probability of the action's class, 0 to 1."""
    p_down: float | None = None
    p_flat: float | None = None
    p_up: float | None = None
    price: DecimalText | None = None
    """Mid at ``ts_event``."""
    ts_event: int
    """Time of the market event, UNIX ns."""
    ts_init: int
    """When the signal was made, UNIX ns, on the clock of ``ts_event``."""
    valid_until: int | None = None
    """Act no later than this, UNIX ns, on the clock of ``ts_event``; None: never act on it."""
    horizon_ns: int | None = None
    model: str = ""
    model_sha256: str = ""
    features_given: int | None = None
    """How many of the features were there, not integrated out."""
    request_id: str | None = None
    run_id: str | None = None
    metadata: dict[str, Any] = {}


class Fill(_Payload, frozen=True, kw_only=True):
    """One execution."""

    trade_id: str
    price: DecimalText
    quantity: DecimalText
    commission: DecimalText
    commission_currency: str
    liquidity: Literal["maker", "taker", "none"]


class OrderEvent(_Payload, frozen=True, kw_only=True):
    """Something that happened to an order."""

    order_id: str
    """The client's own id, unique for a venue account."""
    sequence: int
    """0, 1, 2, ... of the order."""
    kind: Literal[
        "initialized",
        "denied",
        "submitted",
        "accepted",
        "rejected",
        "updated",
        "triggered",
        "cancelled",
        "expired",
        "filled",
    ]
    run_id: str
    strategy: str
    instrument: str
    side: Literal["BUY", "SELL"]
    order_type: str
    quantity: DecimalText
    price: DecimalText | None = None
    """Limit price, where the order has one."""
    filled: DecimalText = "0"
    """Quantity filled so far."""
    status: str
    """Of the order after the event, in Nautilus's words."""
    venue_order_id: str | None = None
    signal_id: str | None = None
    """Signal that the order acts on."""
    fill: Fill | None = None
    """Only of ``filled``."""
    reason: str | None = None
    """Of ``denied`` and ``rejected``."""
    ts_event: int
    ts_init: int


class Health(_Payload, frozen=True, kw_only=True):
    """A service's heartbeat."""

    service: Literal["gateway", "worker", "node"]
    instance: str
    status: Literal["starting", "ok", "degraded", "stopping"]
    version: str
    started_at: str
    interval_s: float
    """The next heartbeat comes within this."""
    detail: str = ""
    counters: dict[str, float] = {}


class Cancel(_Payload, frozen=True, kw_only=True):
    """Nobody waits for a request's answer any more."""

    request_id: str
    """``correlationid`` of the request."""
    reason: str = ""


type Payload = (
    LlmRequest
    | LlmChunk
    | LlmResponse
    | TradingRequest
    | TradingSignal
    | Failure
    | OrderEvent
    | Health
    | Cancel
)

TYPES: dict[str, type[_Payload]] = {
    "qbtc.llm.request.v2": LlmRequest,
    "qbtc.llm.chunk.v2": LlmChunk,
    "qbtc.llm.response.v2": LlmResponse,
    "qbtc.trading.request.v2": TradingRequest,
    "qbtc.trading.signal.v2": TradingSignal,
    "qbtc.failure.v2": Failure,
    "qbtc.order.event.v2": OrderEvent,
    "qbtc.health.v2": Health,
    "qbtc.cancel.v2": Cancel,
}
"""Version 1 is what earlier systems sent, without an envelope; ``qbtc.messages.v1`` upgrades it."""

_NAMES = {payload: name for name, payload in TYPES.items()}


def type_of(data: Payload) -> str:
    """Return the type of a payload's messages."""
    return _NAMES[type(data)]
