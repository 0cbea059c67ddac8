"""The models that a server or a worker serves, found before anything is loaded."""

import logging

from qbtc.errors import ModelError
from qbtc.llm.models import DEFAULT_EMBEDDING_MODEL, ModelFile, find_model

__all__ = ["find_models"]

_LOGGER = logging.getLogger(__name__)


def find_models(model: str, embedding_model: str) -> tuple[ModelFile, ModelFile | None]:
    """Find a chat model and an embedding model; none for an empty name.

    Raises
    ------
    ModelError
        A model is not here. The default embedding model may be absent, as from a slim
        installation; then no embeddings are served and the log says so.
    """
    chat = find_model(model)
    try:
        embedder = find_model(embedding_model, kind="embedding") if embedding_model else None
    except ModelError as error:
        if embedding_model != DEFAULT_EMBEDDING_MODEL:
            raise
        _LOGGER.warning("no embeddings are served: %s", error)
        embedder = None
    return chat, embedder
