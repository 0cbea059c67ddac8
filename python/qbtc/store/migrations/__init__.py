"""Numbered changes of the tables, plain SQL for each database, and which of them a database has.

A file that was applied never changes again: a change is a new file with the next number.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

from qbtc.errors import StoreError
from qbtc.store.protocol import Migrated

__all__ = ["Migration", "known", "pending", "refuse_unready", "states"]

_NAME = re.compile(r"([0-9]{4})_([a-z0-9_]+)\.sql")


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """One file."""

    number: int
    name: str
    sha256: str
    sql: str


@cache
def known(database: Literal["sqlite", "postgres"]) -> tuple[Migration, ...]:
    """Return the migrations of this version, by number."""
    found = []
    for file in (files(__name__) / database).iterdir():
        match = _NAME.fullmatch(file.name)
        if match:
            body = file.read_bytes()
            found.append(
                Migration(
                    number=int(match[1]),
                    name=match[2],
                    sha256=hashlib.sha256(body).hexdigest(),
                    sql=body.decode(),
                )
            )
    return tuple(sorted(found, key=lambda migration: migration.number))


def states(known: Sequence[Migration], applied: Sequence[Migrated]) -> list[Migrated]:
    """Return every migration of this version and of the database, by number."""
    there = {state.number: state for state in applied}
    for migration in known:
        there.setdefault(
            migration.number,
            Migrated(
                number=migration.number,
                name=migration.name,
                sha256=migration.sha256,
                applied_at=None,
            ),
        )
    return [there[number] for number in sorted(there)]


def pending(
    known: Sequence[Migration], applied: Sequence[Migrated], *, where: str
) -> list[Migration]:
    """Return what is to be applied, in order.

    Raises
    ------
    StoreError
        The database is newer than this version, or a file is not the one that was applied.
    """
    ours = {migration.number: migration for migration in known}
    for state in applied:
        migration = ours.get(state.number)
        if migration is None:
            raise StoreError(
                f"{where}: its tables are from a newer QBTC (migration {state.number:04d}"
                f"_{state.name}); update this installation"
            )
        if migration.sha256 != state.sha256:
            raise StoreError(
                f"{where}: migration {state.number:04d}_{state.name} was applied with SHA-256 "
                f"{state.sha256[:12]}, and the file here has {migration.sha256[:12]}; "
                "install the version that made the database, or restore the file"
            )
    there = {state.number for state in applied}
    return [migration for migration in known if migration.number not in there]


def refuse_unready(known: Sequence[Migration], applied: Sequence[Migrated], *, where: str) -> None:
    """Refuse a database whose tables are missing, older or newer than this version."""
    if pending(known, applied, where=where):
        what = "has older tables" if applied else "has no tables of QBTC yet"
        raise StoreError(f"{where} {what}; run: qbtc db migrate")
