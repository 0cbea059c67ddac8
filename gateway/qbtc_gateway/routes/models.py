"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from qbtc.llm.engine import model_named, no_model
from qbtc.messages.language import ModelInfo
from qbtc_gateway.answers import json_response
from qbtc_gateway.state import gateway_of

__all__ = ["router"]

router = APIRouter()


@router.head("/v1/models", include_in_schema=False)
@router.get("/v1/models")
async def models(request: Request) -> Response:
    """List the models served, the default first."""
    served = await gateway_of(request).engine.models()
    return json_response({"object": "list", "data": [_model(info) for info in served]})


@router.head("/v1/models/{model:path}", include_in_schema=False)
@router.get("/v1/models/{model:path}")
async def model(request: Request, model: str) -> Response:
    """Describe one model."""
    served = await gateway_of(request).engine.models()
    info = model_named(model, served)
    if info is None:
        raise no_model(model, served)
    return json_response(_model(info))


def _model(info: ModelInfo) -> dict[str, Any]:
    """Return OpenAI's four fields, and what we know besides."""
    more = {
        "vocabulary": info.vocabulary,
        "parameters": info.parameters,
        "quantization": info.quantization,
        "sha256": info.sha256,
        "embedding_dimensions": info.embedding_dimensions,
    }
    return {
        "id": info.id,
        "object": "model",
        "created": info.created,
        "owned_by": "qbtc",
        "kind": info.kind,
        "context_length": info.context_tokens,
        **{name: value for name, value in more.items() if value},
    }
