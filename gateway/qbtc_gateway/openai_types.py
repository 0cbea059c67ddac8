"""Bodies of OpenAI's chat, completions and embeddings requests, as clients send them.

A field that OpenAI allows to be null is ``X | None``. Fields that OpenAI has and that change
nothing here are named in ``IGNORED``; any other unknown field is ignored too, and counted. Limits
carry their unit last. Answers are written by hand in the routes: they are the hot path.
"""

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "ChatBody",
    "CompletionBody",
    "EmbeddingBody",
]

CHOICES_MAX = 16
STOPS_MAX = 4
MESSAGES_MAX = 4096
TOOLS_MAX = 128
TOP_LOGPROBS_MAX = 20
INPUTS_MAX = 2048

type Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
type Temperature = Annotated[float, Meta(ge=0, le=2)]
type Share = Annotated[float, Meta(ge=0, le=1)]
type Penalty = Annotated[float, Meta(ge=-2, le=2)]
type Bias = Annotated[float, Meta(ge=-100, le=100)]
type Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
type StopText = Annotated[str, Meta(min_length=1, max_length=1000)]
type Stop = StopText | Annotated[list[StopText], Meta(max_length=STOPS_MAX)]
type Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
type LogitBias = dict[Annotated[int, Meta(ge=0, le=2**31 - 1)], Bias]
type FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.:/-]{1,128}$")]


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all bodies."""


# Content


class TextPart(Body, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A piece of text."""

    text: str


class RefusalPart(Body, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """A refusal that the assistant gave earlier."""

    refusal: str


class ImageUrl(Body, frozen=True, kw_only=True):
    """Where an image is."""

    url: str
    detail: str | None = None


class ImagePart(Body, frozen=True, kw_only=True, tag_field="type", tag="image_url"):
    """An image; understood, and refused by models that cannot see."""

    image_url: ImageUrl | str


class AudioPart(Body, frozen=True, kw_only=True, tag_field="type", tag="input_audio"):
    """Sound; refused."""

    input_audio: dict[str, Any]


class FilePart(Body, frozen=True, kw_only=True, tag_field="type", tag="file"):
    """A file; refused."""

    file: dict[str, Any]


type Part = TextPart | RefusalPart | ImagePart | AudioPart | FilePart
type Content = str | list[Part]


# Messages


class SystemMessage(Body, frozen=True, kw_only=True, tag_field="role", tag="system"):
    """Instructions."""

    content: Content
    name: str | None = None


class DeveloperMessage(Body, frozen=True, kw_only=True, tag_field="role", tag="developer"):
    """Instructions, by OpenAI's newer name."""

    content: Content
    name: str | None = None


class UserMessage(Body, frozen=True, kw_only=True, tag_field="role", tag="user"):
    """What the user says."""

    content: Content
    name: str | None = None


class CalledFunction(Body, frozen=True, kw_only=True):
    """A function and the JSON text of its arguments."""

    name: str
    arguments: str


class CalledTool(Body, frozen=True, kw_only=True):
    """A call that the assistant made."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class AssistantMessage(Body, frozen=True, kw_only=True, tag_field="role", tag="assistant"):
    """What the assistant said and called."""

    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[CalledTool] | None = None
    function_call: CalledFunction | None = None


class ToolMessage(Body, frozen=True, kw_only=True, tag_field="role", tag="tool"):
    """What a tool answered."""

    content: Content
    tool_call_id: str


class FunctionMessage(Body, frozen=True, kw_only=True, tag_field="role", tag="function"):
    """What a function answered, in the way before tools."""

    name: str
    content: str | None = None


type Message = (
    SystemMessage
    | DeveloperMessage
    | UserMessage
    | AssistantMessage
    | ToolMessage
    | FunctionMessage
)


# Tools and formats


class FunctionSpec(Body, frozen=True, kw_only=True):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(Body, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """A tool; functions are the only kind."""

    function: FunctionSpec


class FunctionRef(Body, frozen=True, kw_only=True):
    """A function by its name."""

    name: str


class NamedTool(Body, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """The one tool that must be called."""

    function: FunctionRef


class TextFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Any text."""


class JsonObjectFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class SchemaSpec(Body, frozen=True, kw_only=True):
    """A JSON Schema and its name."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    """JSON that fits a schema. It always fits, whatever ``strict`` says."""

    json_schema: SchemaSpec


type Format = TextFormat | JsonObjectFormat | JsonSchemaFormat


class StreamOptions(Body, frozen=True, kw_only=True):
    """What a stream carries besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


# Bodies


class SamplingFields(Body, frozen=True, kw_only=True):
    """How tokens are chosen; ``top_k``, ``min_p`` and ``repetition_penalty`` are not OpenAI's."""

    temperature: Temperature | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None


class ChatBody(SamplingFields, frozen=True, kw_only=True):
    """``POST /v1/chat/completions``."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            "metadata",
            "modalities",
            "prediction",
            "prompt_cache_key",
            "prompt_cache_retention",
            "reasoning_effort",
            "safety_identifier",
            "service_tier",
            "store",
            "user",
            "verbosity",
        }
    )

    model: str
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MESSAGES_MAX)]
    tools: Annotated[list[ToolSpec], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[FunctionSpec], Meta(max_length=TOOLS_MAX)] | None = None
    function_call: Literal["none", "auto"] | FunctionRef | None = None
    response_format: Format | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stop: Stop | None = None
    n: Annotated[int, Meta(ge=1, le=CHOICES_MAX)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


def _one_kind(text: dict[str, Any]) -> Meta:
    """Say in a schema that arrays do not mix kinds; msgspec has one type of array in a union."""
    token = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
    tokens = {"type": "array", "items": token, "minItems": 1}
    kinds = (text, token, tokens)
    arrays = [{"type": "array", "items": kind, "minItems": 1} for kind in kinds]
    return Meta(extra_json_schema={"anyOf": [text, *arrays]})


class CompletionBody(SamplingFields, frozen=True, kw_only=True):
    """``POST /v1/completions``."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"user"})

    model: str
    prompt: Annotated[
        str
        | Annotated[
            list[str | Token | Annotated[list[Token], Meta(min_length=1)]],
            Meta(min_length=1, max_length=2**20),
        ],
        _one_kind({"type": "string"}),
    ]
    suffix: str | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    stop: Stop | None = None
    n: Annotated[int, Meta(ge=1, le=CHOICES_MAX)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=CHOICES_MAX)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class EmbeddingBody(Body, frozen=True, kw_only=True):
    """``POST /v1/embeddings``."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"user"})

    model: str
    input: Annotated[
        Annotated[str, Meta(min_length=1)]
        | Annotated[
            list[
                Annotated[str, Meta(min_length=1)]
                | Token
                | Annotated[list[Token], Meta(min_length=1)]
            ],
            Meta(min_length=1, max_length=2**20),
        ],
        _one_kind({"type": "string", "minLength": 1}),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
