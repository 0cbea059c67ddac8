"""``POST /v1/embeddings``."""

import base64
import struct
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from qbtc.llm.engine import model_named
from qbtc.messages.language import EmbeddingRequest
from qbtc_gateway.answers import json_response
from qbtc_gateway.body import read_body
from qbtc_gateway.errors import BadRequest
from qbtc_gateway.observe import observer_of
from qbtc_gateway.openai_types import INPUTS_MAX, EmbeddingBody
from qbtc_gateway.sse import until_disconnect
from qbtc_gateway.state import gateway_of

__all__ = ["router"]

router = APIRouter()


@router.post("/v1/embeddings")
async def embeddings(request: Request) -> Response:
    """Embed texts. Vectors have length 1; ``dimensions`` must be the model's own."""
    body = await read_body(request, EmbeddingBody)
    inputs = _inputs(body.input)
    engine = gateway_of(request).engine
    if body.dimensions is not None:
        await _check_dimensions(request, body.model, body.dimensions)
    asked = EmbeddingRequest(model=body.model, inputs=inputs)
    found = await until_disconnect(request.receive, lambda: engine.embed(asked))
    if found is None:
        observer_of(request).disconnected()
        return Response(status_code=499)
    observer_of(request).embedded(prompt_tokens=found.prompt_tokens)
    unpack = struct.Struct(f"<{found.dimensions}f").unpack
    plain = body.encoding_format != "base64"
    return json_response(
        {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": unpack(vector) if plain else base64.b64encode(vector).decode(),
                }
                for index, vector in enumerate(found.vectors)
            ],
            "model": body.model,
            "usage": {
                "prompt_tokens": found.prompt_tokens,
                "total_tokens": found.prompt_tokens,
            },
        }
    )


def _inputs(given: str | list[Any]) -> tuple[str | tuple[int, ...], ...]:
    """Return the inputs: a text, texts, the tokens of one, or those of several."""
    if isinstance(given, str):
        return (given,)
    kinds = {type(each) for each in given}
    if len(kinds) != 1:
        raise BadRequest(
            "Invalid type for 'input': expected a string, or an array of strings, of tokens, or of "
            "arrays of tokens, but got a mixture.",
            param="input",
            code="invalid_type",
        )
    if kinds == {int}:
        return (tuple(given),)
    if len(given) > INPUTS_MAX:
        raise BadRequest(
            f"Invalid 'input': array too long. Expected an array with maximum length {INPUTS_MAX}.",
            param="input",
            code="array_above_max_length",
        )
    return tuple(each if isinstance(each, str) else tuple(each) for each in given)


async def _check_dimensions(request: Request, model: str, dimensions: int) -> None:
    """Refuse to cut vectors: a model that was not trained for it loses more than length."""
    info = model_named(model, await gateway_of(request).engine.models())
    if info is None or info.kind != "embedding" or dimensions == info.embedding_dimensions:
        return
    raise BadRequest(
        f"This model has vectors of {info.embedding_dimensions} dimensions and does not support "
        f"{dimensions}.",
        param="dimensions",
        code="unsupported_value",
    )
