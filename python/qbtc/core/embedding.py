"""Texts as vectors: a sentence embedder on the Rust core, for asyncio.

Vectors have unit length, so that their dot product is the cosine of the angle between them.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from qbtc import _core
from qbtc.errors import InputError, ModelError, RunFailed

if TYPE_CHECKING:
    # The core imports NumPy with the first vectors: a server that makes none starts without it.
    import numpy as np
    import numpy.typing as npt

__all__ = ["Embedder"]


class Embedder:
    """A loaded embedder. Make it with :meth:`load`; calls take turns beside the event loop.

    Attributes
    ----------
    folder
        Where its files are.
    dimensions
        Numbers of a vector.
    context_tokens
        Most tokens of a text that are read.
    """

    def __init__(self, core: _core.Embedder, *, folder: Path) -> None:
        self.folder = folder
        self.dimensions = core.dimensions
        self.context_tokens = core.context_tokens
        self._core: _core.Embedder | None = core

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, threads: int | None = None) -> Self:
        """Read a folder in the form that ``sentence-transformers`` writes; not for the event loop.

        Parameters
        ----------
        folder
            With ``config.json``, ``model.safetensors`` and ``tokenizer.json``.
        threads
            Default: the machine's.

        Raises
        ------
        ModelError
            Naming the file and what in it is missing, damaged or not supported.
        InputError
            ``threads`` is out of range.
        """
        folder = Path(folder)
        try:
            core = _core.Embedder(folder, threads=threads)
        except (_core.CoreModelError, OSError) as error:
            raise ModelError(f"{folder}: {error}") from None
        except _core.CoreInputError as error:
            raise InputError(str(error)) from None
        return cls(core, folder=folder)

    async def embed(self, texts: Sequence[str]) -> "npt.NDArray[np.float32]":
        """Vectors (n, dimensions) of texts; of a text too long, its beginning is read.

        Raises
        ------
        InputError
            Too many texts, or one beyond all bounds.
        RunFailed
            The embedder was closed.
        """
        vectors, _, _ = await self._call(self._open().embed, texts)
        return vectors

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as the model reads it, before any are cut off.

        Raises
        ------
        InputError
            A text beyond all bounds.
        RunFailed
            The embedder was closed.
        """
        return await self._call(self._open().count_tokens, texts)

    async def close(self) -> None:
        """Free the model, once the calls in work are done."""
        self._core = None

    def _open(self) -> _core.Embedder:
        if self._core is None:
            raise RunFailed("the embedder is closed")
        return self._core

    async def _call[T](self, function: Callable[[list[str]], T], texts: Sequence[str]) -> T:
        try:
            return await asyncio.to_thread(function, list(texts))
        except (_core.CoreInputError, UnicodeEncodeError) as error:
            raise InputError(str(error)) from None
