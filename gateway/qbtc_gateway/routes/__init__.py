"""One file per endpoint: body in, engine events out."""

from qbtc_gateway.routes import chat, completions, embeddings, models, responses, tokenize

__all__ = ["ROUTERS"]

ROUTERS = (
    chat.router,
    completions.router,
    embeddings.router,
    models.router,
    responses.router,
    tokenize.router,
)
