"""The sentence embedder against its slow twin, on the real model.

The core's matrices and activations are 8-bit with a scale per 32 numbers. Texts agree to within a
thousandth; the mean of two or three tokens that are hardly text averages less of the rounding out,
and is held to two thousandths.
"""

import asyncio

import numpy as np
from bert_twin import BertTwin

from qbtc.core.embedding import Embedder
from qbtc.llm.models import find_model

COSINE_MIN = 0.999
COSINE_MIN_HARDLY_TEXT = 0.998

HARDLY_TEXT = ("", "a" * 300)
TEXTS = (
    *HARDLY_TEXT,
    "Bitcoin",
    "The Federal Reserve left interest rates unchanged on Wednesday.",
    "BTC/USD order book: bids thin out below 60,000; asks stack at 61,250!",
    "Der Kurs fällt; 价格下跌; цена падает; 価格が下がる 📉",
    "def mean(x):\n    return sum(x) / len(x)  # (n,) -> ()",
    " ".join(f"Trade {n}: sold {n * 7 % 13} coins at {60_000 - n}." for n in range(12)),
    "The end of this text is not read. " * 60,
)


def test_vectors_are_those_of_the_slow_twin() -> None:
    folder = find_model(kind="embedding").path
    twin = BertTwin(folder)

    async def embedded() -> np.ndarray:
        embedder = Embedder.load(folder)
        try:
            return await embedder.embed(TEXTS)
        finally:
            await embedder.close()

    for text, vector in zip(TEXTS, asyncio.run(embedded()), strict=True):
        cosine = float(twin.embed(text) @ vector)
        bound = COSINE_MIN_HARDLY_TEXT if text in HARDLY_TEXT else COSINE_MIN
        assert cosine >= bound, f"{cosine} for {text[:60]!r}"
