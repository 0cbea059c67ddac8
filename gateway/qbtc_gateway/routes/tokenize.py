"""``/tokenize``, ``/detokenize`` and token counts of a request that is not sent yet."""

from typing import Annotated

from fastapi import APIRouter, Request
from msgspec import Meta
from starlette.responses import Response

from qbtc_gateway.answers import json_response
from qbtc_gateway.body import read_body
from qbtc_gateway.errors import BadRequest
from qbtc_gateway.openai_types import Body, ChatBody, Message, Token, ToolSpec
from qbtc_gateway.state import gateway_of
from qbtc_gateway.translate import chat_messages, chat_request, chat_tools

__all__ = ["router"]

router = APIRouter()


class TokenizeBody(Body, frozen=True, kw_only=True):
    """``POST /tokenize``: a text (``prompt``, or ``content``), or a conversation."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    tools: list[ToolSpec] | None = None
    parse_special: bool = True
    """Read control tokens such as ``<|im_end|>`` as such, not as text."""


class DetokenizeBody(Body, frozen=True, kw_only=True):
    """``POST /detokenize``."""

    model: str | None = None
    tokens: list[Token]


@router.post("/tokenize")
async def tokenize(request: Request) -> Response:
    """Token ids of a text or a conversation."""
    body = await read_body(request, TokenizeBody)
    engine = gateway_of(request).engine
    model = body.model or await _default_model(request)
    text = body.prompt if body.prompt is not None else body.content
    if (text is None) == (body.messages is None):
        raise BadRequest(
            "Give either 'prompt' or 'messages'.", param="prompt", code="missing_required_parameter"
        )
    if text is not None:
        tokens = await engine.tokenize(model, text, special=body.parse_special)
    else:
        assert body.messages is not None
        tokens = await engine.tokenize_chat(
            model, chat_messages(body.messages), chat_tools(body.tools or ())
        )
    return json_response({"tokens": tokens, "count": len(tokens)})


@router.post("/detokenize")
async def detokenize(request: Request) -> Response:
    """Text of token ids."""
    body = await read_body(request, DetokenizeBody)
    model = body.model or await _default_model(request)
    text = await gateway_of(request).engine.detokenize(model, body.tokens)
    return json_response({"prompt": text, "content": text})


@router.post("/v1/chat/completions/input_tokens")
async def input_tokens(request: Request) -> Response:
    """Count the tokens of a chat's prompt, with tools and format, as the model reads it."""
    asked = chat_request(await read_body(request, ChatBody))
    tokens = await gateway_of(request).engine.tokenize_chat(
        asked.model,
        asked.messages,
        asked.tools if asked.tool_choice.mode != "none" else (),
        asked.response_format,
    )
    return json_response({"object": "response.input_tokens", "input_tokens": len(tokens)})


async def _default_model(request: Request) -> str:
    served = await gateway_of(request).engine.models()
    return next((info.id for info in served if info.kind == "chat"), "")
