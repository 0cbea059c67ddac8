"""The embedder from Python: vectors, counts, bounds, and the loop that stays free."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from qbtc.core.embedding import Embedder
from qbtc.errors import InputError, ModelError, RunFailed
from qbtc.llm.models import find_model

TEXTS = ("A cat sleeps on the sofa.", "A kitten naps on a couch.", "Interest rates rose again.")


def with_embedder[T](scene: Callable[[Embedder], Awaitable[T]]) -> T:
    async def run() -> T:
        embedder = Embedder.load(find_model(kind="embedding").path)
        try:
            return await scene(embedder)
        finally:
            await embedder.close()

    return asyncio.run(run())


def test_texts_of_one_meaning_are_near_and_vectors_have_unit_length() -> None:
    vectors = with_embedder(lambda embedder: embedder.embed(TEXTS))
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.5 > far + 0.2


def test_a_vector_does_not_depend_on_its_neighbours() -> None:
    async def scene(embedder: Embedder) -> None:
        texts = [f"{text} {n}" * (1 + n % 5) for n in range(21) for text in TEXTS]
        together = await embedder.embed(texts)
        parts = await asyncio.gather(*[embedder.embed([text]) for text in texts[::10]])
        np.testing.assert_allclose(together[::10], np.concatenate(parts), atol=2e-3)

    with_embedder(scene)


def test_tokens_are_counted_before_any_are_cut_off() -> None:
    async def scene(embedder: Embedder) -> None:
        assert embedder.context_tokens == 256
        short, long = await embedder.count_tokens(["a cat", "cat " * 1000])
        assert (short, long) == (4, 1002)
        assert (await embedder.embed(["cat " * 1000])).shape == (1, 384)
        assert (await embedder.embed([])).shape == (0, 384)
        assert (await embedder.count_tokens([""])) == [2]

    with_embedder(scene)


def test_what_cannot_be_embedded_is_refused() -> None:
    async def scene(embedder: Embedder) -> None:
        with pytest.raises(InputError):
            await embedder.embed(["x" * (1 << 21)])
        with pytest.raises(InputError):
            await embedder.embed(["\ud800"])
        await embedder.close()
        with pytest.raises(RunFailed, match="closed"):
            await embedder.embed(["a"])

    with_embedder(scene)


def test_a_folder_that_is_no_embedder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=str(tmp_path)):
        Embedder.load(tmp_path)
    with pytest.raises(InputError, match="threads"):
        Embedder.load(find_model(kind="embedding").path, threads=0)
