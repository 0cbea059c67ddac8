"""The OpenAPI document of routes whose bodies are msgspec structs.

Request schemas are made from the structs that the routes decode with, so they cannot differ.
Answers are written by hand in the routes; what is said of them here is held to them by tests.
"""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from qbtc_gateway.errors import ErrorBody
from qbtc_gateway.idempotency import HEADER, KEY_CHARS_MAX, KEY_PATTERN
from qbtc_gateway.openai_types import ChatBody, CompletionBody, EmbeddingBody
from qbtc_gateway.responses_types import ResponsesBody
from qbtc_gateway.routes.tokenize import DetokenizeBody, TokenizeBody

__all__ = ["describe"]

type _Schema = dict[str, Any]

_TEXT: _Schema = {"type": "string"}
_COUNT: _Schema = {"type": "integer", "minimum": 0}
_EVENT: _Schema = {
    "type": "object",
    "description": "One event of a stream; its data is JSON, and at the end [DONE].",
    "required": ["data"],
    "properties": {"event": _TEXT, "data": _TEXT},
}

_KEY: _Schema = {
    "name": HEADER,
    "in": "header",
    "description": "A repeat with the same key and body is told the first one's answer.",
    "schema": {"type": "string", "maxLength": KEY_CHARS_MAX, "pattern": KEY_PATTERN},
}


def _object(required: _Schema, **optional: _Schema) -> _Schema:
    return {"type": "object", "required": sorted(required), "properties": required | optional}


def _list(items: _Schema) -> _Schema:
    return {"type": "array", "items": items}


def _or_null(schema: _Schema) -> _Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_ANSWERS: dict[str, _Schema] = {
    "Usage": _object(
        {
            "prompt_tokens": _COUNT,
            "completion_tokens": _COUNT,
            "total_tokens": _COUNT,
            "prompt_tokens_details": _object({"cached_tokens": _COUNT}),
            "completion_tokens_details": {"type": "object"},
            "cache_read_input_tokens": _COUNT,
        }
    ),
    "ChatCompletion": _object(
        {
            "id": _TEXT,
            "object": {"const": "chat.completion"},
            "created": _COUNT,
            "model": _TEXT,
            "system_fingerprint": _TEXT,
            "choices": _list(
                _object(
                    {
                        "index": _COUNT,
                        "message": _object(
                            {
                                "role": {"const": "assistant"},
                                "content": _or_null(_TEXT),
                                "refusal": {"type": "null"},
                            },
                            tool_calls=_list(
                                _object(
                                    {
                                        "id": _TEXT,
                                        "type": {"const": "function"},
                                        "function": _object({"name": _TEXT, "arguments": _TEXT}),
                                    }
                                )
                            ),
                            function_call=_object({"name": _TEXT, "arguments": _TEXT}),
                        ),
                        "logprobs": _or_null({"type": "object"}),
                        "finish_reason": {
                            "enum": ["stop", "length", "tool_calls", "function_call"]
                        },
                    }
                )
            ),
            "usage": _ref("Usage"),
        }
    ),
    "Completion": _object(
        {
            "id": _TEXT,
            "object": {"const": "text_completion"},
            "created": _COUNT,
            "model": _TEXT,
            "system_fingerprint": _TEXT,
            "choices": _list(
                _object(
                    {
                        "text": _TEXT,
                        "index": _COUNT,
                        "logprobs": _or_null({"type": "object"}),
                        "finish_reason": {"enum": ["stop", "length"]},
                    }
                )
            ),
            "usage": _ref("Usage"),
        }
    ),
    "Embeddings": _object(
        {
            "object": {"const": "list"},
            "model": _TEXT,
            "data": _list(
                _object(
                    {
                        "object": {"const": "embedding"},
                        "index": _COUNT,
                        "embedding": {"anyOf": [_list({"type": "number"}), _TEXT]},
                    }
                )
            ),
            "usage": _object({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
        }
    ),
    "Model": _object(
        {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": _COUNT,
            "owned_by": _TEXT,
            "kind": {"enum": ["chat", "embedding"]},
            "context_length": _COUNT,
        }
    ),
    "Models": _object({"object": {"const": "list"}, "data": _list(_ref("Model"))}),
    "Response": _object(
        {
            "id": _TEXT,
            "object": {"const": "response"},
            "created_at": _COUNT,
            "status": {"enum": ["completed", "incomplete"]},
            "model": _TEXT,
            "output": _list(
                _object(
                    {
                        "id": _TEXT,
                        "type": {"enum": ["message", "function_call"]},
                        "status": {"enum": ["completed", "incomplete"]},
                    }
                )
            ),
            "error": {"type": "null"},
            "usage": _object(
                {"input_tokens": _COUNT, "output_tokens": _COUNT, "total_tokens": _COUNT}
            ),
        }
    ),
    "Tokens": _object({"tokens": _list(_COUNT), "count": _COUNT}),
    "Text": _object({"prompt": _TEXT, "content": _TEXT}),
    "InputTokens": _object({"object": {"const": "response.input_tokens"}, "input_tokens": _COUNT}),
}

_ROUTES: dict[str, tuple[str, type[msgspec.Struct] | None, str, bool]] = {
    "/v1/chat/completions": ("post", ChatBody, "ChatCompletion", True),
    "/v1/chat/completions/input_tokens": ("post", ChatBody, "InputTokens", False),
    "/v1/completions": ("post", CompletionBody, "Completion", True),
    "/v1/embeddings": ("post", EmbeddingBody, "Embeddings", False),
    "/v1/models": ("get", None, "Models", False),
    "/v1/models/{model}": ("get", None, "Model", False),
    "/v1/responses": ("post", ResponsesBody, "Response", True),
    "/v1/responses/input_tokens": ("post", ResponsesBody, "InputTokens", False),
    "/tokenize": ("post", TokenizeBody, "Tokens", False),
    "/detokenize": ("post", DetokenizeBody, "Text", False),
}


def describe(app: FastAPI) -> None:
    """Let the application write its document when it is first asked for."""

    def openapi() -> _Schema:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI) -> _Schema:
    document = get_openapi(
        title=app.title, version=app.version, summary=app.summary, routes=app.routes
    )
    bodies = list(dict.fromkeys(body for _, body, _, _ in _ROUTES.values() if body is not None))
    references, components = msgspec.json.schema_components(
        [*bodies, ErrorBody], ref_template="#/components/schemas/{name}"
    )
    schemas = dict(zip([*bodies, ErrorBody], references, strict=True))
    document.setdefault("components", {})["schemas"] = components | _ANSWERS
    error = {
        "description": "What is wrong, and with which parameter.",
        "content": {"application/json": {"schema": schemas[ErrorBody]}},
    }
    for path, (method, body, answer, streams) in _ROUTES.items():
        operation = document["paths"][path][method]
        if body is not None:
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": schemas[body]}},
            }
        content: _Schema = {"application/json": {"schema": _ref(answer)}}
        if streams:
            content["text/event-stream"] = {"schema": _EVENT}
            operation["parameters"] = [*operation.get("parameters", ()), _KEY]
        operation["responses"] = {
            "200": {"description": "The answer.", "content": content},
            "default": error,
        }
    return document
