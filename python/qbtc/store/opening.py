"""Which database records go to, and opening it."""

import os
import re
from pathlib import Path

from qbtc.errors import InputError
from qbtc.store.protocol import Store

__all__ = ["DATABASE_VARIABLE", "database_url", "open_store", "shown"]

DATABASE_VARIABLE = "QBTC_DATABASE_URL"

_FORMS = "sqlite:///file, postgresql://user@host/database, or off"


def database_url(url: str | None = None) -> str | None:
    """Return where records go: as said, else ``QBTC_DATABASE_URL``, else a file of the user's.

    None: nowhere, because it says ``off``.
    """
    chosen = url or os.environ.get(DATABASE_VARIABLE) or ""
    if chosen.strip().lower() == "off":
        return None
    return chosen.strip() or f"sqlite:///{_default_path()}"


async def open_store(url: str | None = None, *, ready: bool = True) -> Store:
    """Open a database for records.

    A SQLite file is made and brought up to date; PostgreSQL is as ``qbtc db migrate`` left it.

    Parameters
    ----------
    url
        ``sqlite:///records.db`` (four slashes: from the root), ``postgresql://...``; None: see
        ``database_url``.
    ready
        False: take the database as it is, for ``migrate`` and ``status``, also without tables.

    Raises
    ------
    InputError
        It is no such URL.
    StoreUnavailable
        The database does not answer.
    StoreError
        It refuses, or its tables are missing, older or newer.
    """
    chosen = database_url(url)
    if chosen is None:
        raise InputError(f"records are off; give a database: {_FORMS}")
    if chosen.startswith("sqlite:///"):
        from qbtc.store.sqlite import SqliteStore

        return await SqliteStore.open(_sqlite_path(chosen), migrate=ready)
    if chosen.startswith(("postgresql://", "postgres://")):
        from qbtc.store.postgres import PostgresStore

        return await PostgresStore.open(chosen, ready=ready)
    # Its scheme at most: the rest may have a password.
    scheme, separator, _ = chosen.partition("://")
    raise InputError(f"{f'{scheme}:// is' if separator else 'that is'} no database URL: {_FORMS}")


def shown(url: str) -> str:
    """Return a URL that can be printed: without password and parameters."""
    if url.startswith("sqlite:"):
        return url
    scheme, mark, rest = url.partition("://")
    if not mark:
        return "the database"
    # A password may hold any sign that nobody escaped, so what counts is the last @.
    user, at, place = rest.rpartition("@")
    return f"{scheme}://{_until(':/?#', user)}{at}{_until('?#', place)}"


def _until(signs: str, text: str) -> str:
    return re.split(f"[{signs}]", text, maxsplit=1)[0]


def _sqlite_path(url: str) -> Path:
    path = Path(url.removeprefix("sqlite:///")).expanduser()
    if path == _default_path():
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _default_path() -> Path:
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / "qbtc" / "records.db"
