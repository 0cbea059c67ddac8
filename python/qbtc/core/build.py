"""Which source the compiled core was built from, and whether it is the one beside it.

A number measured with yesterday's extension, or with a debug build, is a wrong number:
:func:`require_fresh` refuses both. ``core-rs/python/build.rs`` stamps the extension with the hash
that :func:`source_hash` computes here.
"""

from pathlib import Path

import msgspec

from qbtc import _core
from qbtc.errors import InputError

__all__ = ["BuildInfo", "build_info", "fnv1a", "require_fresh", "source_hash"]

_FNV_OFFSET = 0xCBF2_9CE4_8422_2325
_FNV_PRIME = 0x0000_0100_0000_01B3


class BuildInfo(msgspec.Struct, frozen=True):
    """What the loaded extension says of itself."""

    version: str
    profile: str
    """Cargo's: ``release`` or ``debug``."""
    source_hash: str
    """16 hex digits, see :func:`source_hash`."""


def build_info() -> BuildInfo:
    """Return the stamp of the loaded extension."""
    return msgspec.convert(_core.build_info(), BuildInfo)


def fnv1a(data: bytes, state: int = _FNV_OFFSET) -> int:
    """Return the 64-bit FNV-1a hash of ``data``, continued from ``state``; O(len(data))."""
    for byte in data:
        state = ((state ^ byte) * _FNV_PRIME) & 0xFFFF_FFFF_FFFF_FFFF
    return state


def source_hash(root: Path) -> str:
    """Hash every Rust source below a checkout as the build does.

    Parameters
    ----------
    root
        The checkout: holds ``Cargo.toml``, ``Cargo.lock`` and ``core-rs``.

    Returns
    -------
    str
        FNV-1a, 16 hex digits, over ``name NUL content NUL`` of both Cargo files and of each
        ``.rs`` and ``Cargo.toml`` below ``core-rs``, in the order of their path components.
    """
    rust = root / "core-rs"
    files = [root / "Cargo.toml", root / "Cargo.lock"]
    files += [path for path in rust.rglob("*.rs") if path.is_file()]
    files += [path for path in rust.rglob("Cargo.toml") if path.is_file()]
    state = _FNV_OFFSET
    for path in sorted(files, key=lambda path: path.relative_to(root).parts):
        name = path.relative_to(root).as_posix().encode()
        state = fnv1a(name + b"\0" + path.read_bytes() + b"\0", state)
    return f"{state:016x}"


def require_fresh(root: Path) -> BuildInfo:
    """Return the loaded build, provided it is a release build of the source at ``root``.

    Raises
    ------
    InputError
        It is a debug build, or the source has changed since; both end with ``make setup``.
    """
    build = build_info()
    if build.profile != "release":
        raise InputError(f"the core is a {build.profile} build; run `make setup` first")
    if build.source_hash != source_hash(root):
        raise InputError("the Rust source has changed since the core was built; run `make setup`")
    return build
