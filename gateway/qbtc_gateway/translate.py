"""From client bodies to engine requests: roles, parts, tools, formats.

What the engine can never do is refused here with the parameter named; what depends on the model
(its context, its schemas) is the engine's to refuse.
"""

import re
from collections.abc import Sequence

import msgspec

from qbtc.messages.language import (
    ChatMessage,
    ChatRequest,
    ResponseFormat,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
)
from qbtc_gateway import openai_types as t
from qbtc_gateway.errors import BadRequest

__all__ = [
    "chat_field",
    "chat_messages",
    "chat_request",
    "chat_tools",
    "choose_tool",
    "response_format",
    "sampling",
    "stops",
]

SCHEMA_BYTES_MAX = 262_144
"""Schemas of all tools together, or of the response format, as compact JSON."""


def chat_request(body: t.ChatBody) -> ChatRequest:
    """Return what the engine is asked."""
    tools, choice = _tools(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise BadRequest(
            "Invalid value for 'top_logprobs': it needs 'logprobs' to be true.",
            param="top_logprobs",
            code="invalid_value",
        )
    max_tokens = body.max_completion_tokens
    return ChatRequest(
        model=body.model,
        messages=chat_messages(body.messages),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False and body.functions is None,
        response_format=response_format(body.response_format),
        sampling=sampling(body),
        max_tokens=max_tokens if max_tokens is not None else body.max_tokens,
        stop=stops(body.stop),
        n=body.n or 1,
        logprobs=bool(body.logprobs),
        top_logprobs=body.top_logprobs or 0,
    )


def chat_field(param: str, *, functions: bool) -> str:
    """Return the name of a field as the client wrote it; its tools may be ``functions``."""
    return re.sub(r"^tools(?:(\[\d+\])\.function)?", r"functions\1", param) if functions else param


def sampling(body: t.SamplingFields) -> Sampling:
    """Return how tokens are chosen; null means the default."""
    given = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "min_p": body.min_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "repetition_penalty": body.repetition_penalty,
        "logit_bias": body.logit_bias,
        "seed": body.seed,
    }
    return Sampling(
        top_k=max(0, body.top_k or 0),
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
    )


def stops(stop: str | list[str] | None) -> tuple[str, ...]:
    """Return stop texts."""
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def chat_messages(messages: Sequence[t.Message]) -> tuple[ChatMessage, ...]:
    """Return turns: ``developer`` is ``system``, parts are joined, tool results belong to calls."""
    out: list[ChatMessage] = []
    called: set[str] = set()
    for index, message in enumerate(messages):
        at = f"messages[{index}]"
        match message:
            case t.SystemMessage() | t.DeveloperMessage():
                out.append(
                    ChatMessage(
                        role="system", content=_text(message.content, at), name=message.name
                    )
                )
            case t.UserMessage():
                out.append(
                    ChatMessage(role="user", content=_text(message.content, at), name=message.name)
                )
            case t.AssistantMessage():
                calls = _calls(message, index)
                called.update(call.id for call in calls)
                content = "" if message.content is None else _text(message.content, at)
                out.append(
                    ChatMessage(
                        role="assistant",
                        content=content or message.refusal or "",
                        name=message.name,
                        tool_calls=calls,
                    )
                )
            case t.ToolMessage():
                if message.tool_call_id not in called:
                    raise BadRequest(
                        f"Invalid parameter: '{at}.tool_call_id' is {message.tool_call_id!r}; "
                        "messages with role 'tool' must be a response to a preceding message with "
                        "'tool_calls'.",
                        param=f"{at}.tool_call_id",
                        code="invalid_value",
                    )
                out.append(
                    ChatMessage(
                        role="tool",
                        content=_text(message.content, at),
                        tool_call_id=message.tool_call_id,
                    )
                )
            case t.FunctionMessage():
                out.append(
                    ChatMessage(role="tool", content=message.content or "", name=message.name)
                )
    return tuple(out)


def _calls(message: t.AssistantMessage, index: int) -> tuple[ToolCall, ...]:
    calls = [
        ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
        for call in message.tool_calls or ()
    ]
    if message.function_call is not None:
        old = message.function_call
        calls.append(ToolCall(id=f"function_{index}", name=old.name, arguments=old.arguments))
    return tuple(calls)


def _text(content: str | list[t.Part], at: str) -> str:
    """Return the text of a content; parts of text are joined by line ends."""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for index, part in enumerate(content):
        match part:
            case t.TextPart():
                texts.append(part.text)
            case t.RefusalPart():
                texts.append(part.refusal)
            case _:
                kind = {
                    t.ImagePart: "image_url",
                    t.AudioPart: "input_audio",
                    t.FilePart: "file",
                }[type(part)]
                raise BadRequest(
                    f"Invalid content type: '{kind}'. This model reads text only; send the content "
                    "as parts of type 'text'.",
                    param=f"{at}.content[{index}].type",
                    code="unsupported_content_type",
                )
    return "\n".join(texts)


def _tools(body: t.ChatBody) -> tuple[tuple[Tool, ...], ToolChoice]:
    if body.tools and body.functions:
        raise BadRequest(
            "Only one of 'tools' and 'functions' can be given; 'functions' is the older name.",
            param="functions",
            code="invalid_value",
        )
    if body.functions is not None:
        tools = functions(body.functions, "functions")
    else:
        tools = chat_tools(body.tools or ())
    old = body.tool_choice is None and body.function_call is not None
    return tools, choose_tool(
        body.function_call if old else body.tool_choice,
        tools,
        where="function_call" if old else "tool_choice",
    )


def chat_tools(tools: Sequence[t.ToolSpec]) -> tuple[Tool, ...]:
    """Return the tools of a chat."""
    return functions([tool.function for tool in tools], "tools")


def functions(specs: Sequence[t.FunctionSpec], where: str) -> tuple[Tool, ...]:
    """Return tools from functions; ``where`` is the name of their field."""
    tools: dict[str, Tool] = {}
    for index, spec in enumerate(specs):
        if spec.name in tools:
            raise BadRequest(
                f"Invalid '{where}[{index}]': a function named {spec.name!r} is there already.",
                param=f"{where}[{index}]",
                code="invalid_value",
            )
        tools[spec.name] = Tool(
            name=spec.name,
            description=spec.description or "",
            parameters=spec.parameters,
            strict=bool(spec.strict),
        )
    _check_size([tool.parameters for tool in tools.values()], where)
    return tuple(tools.values())


def _check_size(schemas: object, param: str) -> None:
    size = len(msgspec.json.encode(schemas))
    if size > SCHEMA_BYTES_MAX:
        raise BadRequest(
            f"Invalid schema for '{param}': {size} bytes of JSON Schema; the limit is "
            f"{SCHEMA_BYTES_MAX}.",
            param=param,
            code="invalid_schema",
        )


def choose_tool(
    asked: str | t.NamedTool | t.FunctionRef | None, tools: Sequence[Tool], *, where: str
) -> ToolChoice:
    """Return what must be called; ``where`` is the name of the field."""
    match asked:
        case None | "auto" | "none" | "required":
            # Some clients say `auto` or `none` without any tool; that asks for nothing.
            if asked == "required" and not tools:
                raise BadRequest(
                    f"Invalid value for '{where}': '{where}' is only allowed when 'tools' are "
                    "specified.",
                    param=where,
                    code="invalid_value",
                )
            return ToolChoice(mode=asked or "auto") if tools else ToolChoice(mode="none")
        case t.NamedTool():
            name = asked.function.name
        case t.FunctionRef():
            name = asked.name
        case _:
            name = asked
    if all(tool.name != name for tool in tools):
        raise BadRequest(
            f"Tool choice '{name}' not found in 'tools' parameter.",
            param=where,
            code="invalid_value",
        )
    return ToolChoice(mode="named", name=name)


def response_format(given: t.Format | None, where: str = "response_format") -> ResponseFormat:
    """Return what the text must be; ``where`` is the name of the field."""
    match given:
        case None | t.TextFormat():
            return ResponseFormat()
        case t.JsonObjectFormat():
            return ResponseFormat(type="json_object")
        case t.JsonSchemaFormat():
            schema = given.json_schema.schema
            _check_size(schema, where)
            return ResponseFormat(
                type="json_schema",
                schema={"type": "object"} if schema is None else schema,
                strict=bool(given.json_schema.strict),
            )
