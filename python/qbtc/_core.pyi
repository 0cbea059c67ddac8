"""The compiled core: numerics in Rust. This stub is its manual.

Wrong arguments raise :class:`CoreInputError`, a model file that does not fit raises
:class:`CoreModelError`, a file that cannot be read raises ``OSError``; each message names the
field. ``qbtc.core`` turns them into the errors of ``qbtc.errors``.
"""

class CoreInputError(ValueError):
    """A number from outside is not finite, out of range, or of the wrong sign."""

class CoreModelError(ValueError):
    """A model file is damaged or does not fit; the message names the tensor or metadata key."""

def build_info() -> dict[str, str]:
    """Return ``version``, cargo ``profile`` and ``source_hash`` of this binary."""
