"""How near a quantised forward pass is to its own weights in f32."""

import os
from collections.abc import Callable, Sequence

import msgspec

from qbtc import _core
from qbtc.errors import InputError, ModelError

__all__ = ["WindowFidelity", "compare_with_reference"]


class WindowFidelity(msgspec.Struct, frozen=True, kw_only=True):
    """The engine beside the reference on one text. Losses and divergences in nats."""

    tokens: int
    """Tokens that were foreseen: all but the first."""
    loss: float
    """Mean of minus the logarithm of their probability."""
    reference_loss: float
    kl_mean: float
    kl_p99: float
    kl_max: float
    agreement: float
    """Share of positions where both find the same token most likely."""


def compare_with_reference(
    path: str | os.PathLike[str],
    texts: Sequence[str],
    *,
    threads: int | None = None,
    on_text: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[WindowFidelity]:
    """Foresee each text with both; slow, for the reference takes no shortcuts.

    Parameters
    ----------
    path
        A GGUF file.
    texts
        Each a sequence of its own, of two tokens at least.
    threads
        Default: the machine's.
    on_text
        Called with how many of how many are done.

    Raises
    ------
    ModelError
        The file is damaged or not supported.
    InputError
        A text does not fit the model.
    """
    try:
        found = _core.language_fidelity(path, list(texts), threads=threads, progress=on_text)
    except (_core.CoreModelError, OSError) as error:
        raise ModelError(f"{path}: {error}") from None
    except _core.CoreInputError as error:
        raise InputError(str(error)) from None
    return msgspec.convert(found, list[WindowFidelity])
