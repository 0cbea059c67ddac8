"""What an error of PostgreSQL or of its driver means for whoever keeps records."""

import os

import asyncpg

from qbtc.errors import RecordRefused, StoreError, StoreUnavailable

__all__ = ["Locked", "refusal"]


class Locked(StoreUnavailable):
    """A table is locked by somebody else."""


def refusal(error: Exception, where: str) -> StoreError:
    """Say what an error means and what to do; ``where`` is the database, without its password."""
    # Not its details: they quote whole rows, prompts too.
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    state = getattr(error, "sqlstate", None) or ""
    match error:
        case StoreError():
            return error
        case asyncpg.InvalidPasswordError() | asyncpg.InvalidAuthorizationSpecificationError():
            return StoreError(f"{where}: {text}; check user and password in the URL")
        case asyncpg.InvalidCatalogNameError():
            return StoreError(f"{where}: {text}; create it, or name another in the URL")
        case (
            asyncpg.UndefinedTableError()
            | asyncpg.UndefinedFunctionError()
            | asyncpg.InvalidSchemaNameError()
        ):
            return StoreError(f"{where}: {text}; run: qbtc db migrate")
        case asyncpg.InsufficientPrivilegeError():
            return StoreError(
                f"{where}: {text}; use the owner's URL, or let the owner run: "
                "SELECT qbtc.allow('role')"
            )
        case asyncpg.LockNotAvailableError():
            return Locked(f"{where}: {text}")
        case asyncpg.PostgresError() if state[:2] in ("22", "23"):
            return RecordRefused(f"{where}: {_column(error)}{text}")
        case asyncpg.PostgresError() if state[:2] in ("08", "25", "40", "53", "57", "58"):
            return StoreUnavailable(f"{where}: {text}")
        case asyncpg.PostgresError():
            return StoreError(f"{where}: {text}")
        case TimeoutError():
            return StoreUnavailable(f"{where} does not answer in time")
        case OSError():
            return StoreUnavailable(
                f"{where} does not answer: {os.strerror(error.errno) if error.errno else text}"
            )
        case asyncpg.InterfaceError() | asyncpg.InternalClientError():
            return StoreUnavailable(f"{where}: {text}")
        case _:
            return StoreError(f"{where}: {text}")


def _column(error: Exception) -> str:
    table = getattr(error, "table_name", None)
    column = getattr(error, "column_name", None)
    return f"{table}.{column}: " if table and column else ""
