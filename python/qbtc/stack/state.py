"""What ``qbtc up`` remembers of a stack, in ``stack.json`` of its folder, for its owner only."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from qbtc.errors import InputError

__all__ = ["PREFIX", "PROGRAMS", "SERVERS", "Stack", "load", "locked", "save"]

SERVERS = {
    "postgres": ("PostgreSQL", "QBTC_DATABASE_URL"),
    "redis": ("Redis", "QBTC_REDIS_URL"),
    "rabbitmq": ("RabbitMQ", "QBTC_AMQP_URL"),
}
"""Each server's name for people, and the variable that names it to our programs."""
PREFIX = "QBTC_BUS_PREFIX"
"""The variable that says what the names of exchanges and queues begin with."""
PROGRAMS = ("worker", "gateway", "node")
"""Ours, in the order in which they start; a node only on demand."""


class Stack(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One stack: which servers it stands on, and what runs on them."""

    version: int = 1
    variables: dict[str, str] = {}
    """``QBTC_DATABASE_URL`` and so on, with passwords, and ``QBTC_BUS_PREFIX``."""
    external: list[str] = []
    """Servers that were there already: watched, never stopped."""
    commands: dict[str, list[str]] = {}
    """Of our own programs."""

    @property
    def prefix(self) -> str:
        """Of its exchanges and queues."""
        return self.variables.get(PREFIX, "")


def load(folder: Path) -> Stack | None:
    """Read it; None: nothing was started there.

    Raises
    ------
    InputError
        The file is damaged.
    """
    path = folder / "stack.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Stack)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{path}: {error}; remove it, then run qbtc up again") from None


def save(folder: Path, stack: Stack) -> None:
    """Write it whole or not at all."""
    path = folder / "stack.json"
    temporary = path.with_suffix(".tmp")
    data = msgspec.json.format(msgspec.json.encode(stack), indent=2)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data + b"\n")
    temporary.replace(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second ``qbtc up`` or ``down`` out.

    Raises
    ------
    InputError
        The folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; give another --folder") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
