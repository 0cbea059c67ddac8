"""API keys: made once, shown once, kept as hashes.

A key is ``qbtc-<id>-<secret>`` with a secret of 256 random bits. The file keeps its SHA-256. A slow
password hash would add nothing: those exist for secrets that can be guessed, and 2^256 cannot be;
it would only let a flood of wrong keys cost us CPU. The id finds the record, so exactly one
constant-time comparison is made for every key that is presented, known or not.

The file is JSON, 0600, replaced atomically under a lock. A running server notices within a second.
Times of last use are the server's, in a file beside it, so that it never writes the keys.
"""

import fcntl
import hmac
import os
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import msgspec

from qbtc.errors import InputError
from qbtc_gateway.security.scopes import Scope

__all__ = ["Key", "KeyFile", "KeyRing", "new_key", "parse_key"]

SECRET_BYTES = 32
FILE_BYTES_MAX = 4_000_000
NAME_CHARS_MAX = 80
RELOAD_S_MIN = 1.0
"""The file is looked at no more often than this."""
USED_WRITE_S_MIN = 60.0
_PREFIX = "qbtc-"
_NOBODY = "0" * 64


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key as it is kept."""

    id: str
    name: str
    sha256: str
    """Of the whole key, hexadecimal."""
    scopes: tuple[Scope, ...]
    created: str
    """ISO 8601, UTC."""


class _Keys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int = 1
    keys: tuple[Key, ...] = ()


def new_key(name: str, scopes: Sequence[Scope]) -> tuple[str, Key]:
    """Make a key: its text, which is nowhere kept, and its record."""
    identity = secrets.token_hex(4)
    text = f"{_PREFIX}{identity}-{secrets.token_urlsafe(SECRET_BYTES)}"
    record = Key(
        id=identity,
        name=name,
        sha256=_hash(text),
        scopes=tuple(scopes),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return text, record


def parse_key(text: str) -> str | None:
    """Id inside a key; None if it is none of ours."""
    if not text.startswith(_PREFIX) or len(text) > 200:
        return None
    identity, dash, secret = text[len(_PREFIX) :].partition("-")
    return identity if dash and secret else None


class KeyFile:
    """The file: read, add, revoke."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def used_path(self) -> Path:
        """File of the times of last use."""
        return self.path.with_suffix(".used.json")

    def read(self) -> tuple[Key, ...]:
        """Return all keys; none if there is no file.

        Raises
        ------
        InputError
            The file is damaged, or others may write it.
        """
        try:
            # A pipe would keep the open waiting for a writer.
            with open(self.path, "rb", opener=_open_at_once) as file:
                mode = os.fstat(file.fileno()).st_mode
                if not stat.S_ISREG(mode):
                    raise InputError(f"{self.path} is not a file; give one with --keys-file")
                data = file.read(FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}") from None
        if mode & 0o022:
            raise InputError(f"{self.path} may be written by others; run chmod 600 {self.path}")
        if len(data) > FILE_BYTES_MAX:
            raise InputError(
                f"{self.path} is larger than {FILE_BYTES_MAX} bytes; is it a key file?"
            )
        try:
            found = msgspec.json.decode(data, type=_Keys)
        except msgspec.DecodeError as error:
            raise InputError(f"{self.path} is not a key file: {error}") from None
        if found.version != 1:
            raise InputError(f"{self.path} has version {found.version}; this program reads 1")
        return found.keys

    def add(self, key: Key) -> None:
        """Add a key."""
        with self._locked():
            self._write((*self.read(), key))

    def revoke(self, identity: str) -> Key:
        """Take a key out; return it.

        Raises
        ------
        InputError
            No key has that id.
        """
        with self._locked():
            keys = self.read()
            gone = next((key for key in keys if key.id == identity), None)
            if gone is None:
                known = ", ".join(key.id for key in keys) or "none"
                raise InputError(f"no key has the id {identity!r}; ids: {known}")
            self._write(tuple(key for key in keys if key is not gone))
            return gone

    def used(self) -> dict[str, int]:
        """Return UNIX seconds of last use by id, as far as servers have written them."""
        try:
            return msgspec.json.decode(self.used_path.read_bytes(), type=dict[str, int])
        except (OSError, msgspec.DecodeError):
            return {}

    def write_used(self, used: dict[str, int]) -> None:
        """Keep the times of last use; without effect where the folder cannot be written."""
        try:
            _replace(self.used_path, msgspec.json.encode(self.used() | used))
        except OSError:
            return

    def _write(self, keys: tuple[Key, ...]) -> None:
        data = msgspec.json.format(msgspec.json.encode(_Keys(keys=keys)), indent=2)
        try:
            _replace(self.path, data + b"\n")
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}") from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep a second ``qbtc keys`` out between reading and writing."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self.path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise InputError(f"{self.path.parent}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


class KeyRing:
    """The keys of a running server; follows its file.

    Once there were keys, keys stay required: a deleted file or a last key revoked locks out, a
    damaged file leaves the keys as they were, and nothing opens up.
    """

    def __init__(self, file: KeyFile) -> None:
        self._file = file
        self._keys: dict[str, Key] = {}
        self._stamp: tuple[int, ...] | None = None
        self._looked_s = 0.0
        self._used: dict[str, int] = {}
        self._used_written_s = time.monotonic()
        self.required = False
        self.problem: str | None = None
        """Why the file as it is now could not be read; the keys read before stay valid."""
        self._stamp = self._stat()
        self._take(file.read())

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, text: str) -> Key | None:
        """Record of a key, or None; takes the same time for every unknown key."""
        self.refresh()
        key = self._keys.get(parse_key(text) or "")
        same = hmac.compare_digest(_hash(text), key.sha256 if key is not None else _NOBODY)
        if key is None or not same:
            return None
        self._used[key.id] = int(time.time())
        return key

    def refresh(self) -> None:
        """Read the file again if it changed, at most once in ``RELOAD_S_MIN``."""
        now = time.monotonic()
        if now - self._looked_s < RELOAD_S_MIN:
            return
        self._looked_s = now
        stamp = self._stat()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._take(self._file.read())
                self.problem = None
            except InputError as error:
                self.problem = str(error)
        if self._used and now - self._used_written_s >= USED_WRITE_S_MIN:
            self.save_used()

    def save_used(self) -> None:
        """Write the times of last use."""
        if self._used:
            self._used_written_s = time.monotonic()
            self._file.write_used(self._used)
            self._used = {}

    def _take(self, keys: tuple[Key, ...]) -> None:
        self._keys = {key.id: key for key in keys}
        self.required = self.required or bool(keys)

    def _stat(self) -> tuple[int, ...] | None:
        try:
            found = self._file.path.stat()
        except OSError:
            return None
        # The mode, too: `chmod 600` alone makes a refused file good again.
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode


def _hash(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, readable by its owner only."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    handle = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
