"""Every error a user can meet, and the exit code it ends the command line with.

::

    QbtcError
    ├── InputError        exit 2: something given to us is wrong; the message says what to change
    │   ├── ConfigError   a run or train config (names the file and the key)
    │   ├── DataError     market data (names the file and the row, gap or column)
    │   └── ModelError    a model file (names the field)
    └── RunFailed         exit 1: the run itself failed (a strategy raised, an order engine stopped)

One line says what is wrong and what to do next; details go in notes (``add_note``).
"""

__all__ = ["ConfigError", "DataError", "InputError", "ModelError", "QbtcError", "RunFailed"]


class QbtcError(Exception):
    """Base of all errors that QBTC raises on purpose."""

    exit_code = 1


class InputError(QbtcError):
    """Something given to us is wrong."""

    exit_code = 2


class ConfigError(InputError):
    """A config file is missing, malformed, or has an unknown or impossible value."""


class DataError(InputError):
    """Market data is missing, empty, damaged, out of order or not finite."""


class ModelError(InputError):
    """A model file is damaged, of another feature schema, or not a model."""


class RunFailed(QbtcError):
    """A run started and did not end well; partial results are marked partial."""
