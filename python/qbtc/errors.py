"""Every error a user can meet, and the exit code it ends the command line with.

::

    QbtcError
    ├── InputError        exit 2: something given to us is wrong; the message says what to change
    │   ├── ConfigError   a run or train config (names the file and the key)
    │   ├── DataError     market data (names the file and the row, gap or column)
    │   ├── ModelError    a model file (names the field)
    │   └── MessageError  a message on the bus (names its type and the place that is wrong)
    ├── RunFailed         exit 1: the run itself failed (a strategy raised, an order engine stopped)
    ├── EngineBusy        exit 1: a language engine's queue is full; try again later
    ├── EngineFailed      exit 1: a language engine broke while it answered
    ├── BusError          exit 1: a message could not be carried
    │   ├── BusUnavailable  the broker is away, or did not confirm in time
    │   ├── OutboxFull      too much waits for the broker already; nothing was taken
    │   ├── Unroutable      nobody has the queue the message is for
    │   └── RequestTimeout  no answer in time; the work was cancelled
    └── StoreError        exit 1: records could not be written or read
        ├── StoreUnavailable  the database is away; try again
        └── RecordRefused     a row that no database can hold; names the column

One line says what is wrong and what to do next; details go in notes (``add_note``).
"""

__all__ = [
    "BusError",
    "BusUnavailable",
    "ConfigError",
    "DataError",
    "EngineBusy",
    "EngineFailed",
    "InputError",
    "MessageError",
    "ModelError",
    "OutboxFull",
    "QbtcError",
    "RecordRefused",
    "RequestTimeout",
    "RunFailed",
    "StoreError",
    "StoreUnavailable",
    "Unroutable",
]


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


class MessageError(InputError):
    """A message is not JSON, of an unknown type, too large, or not what its schema says."""


class RunFailed(QbtcError):
    """A run started and did not end well; partial results are marked partial."""


class EngineBusy(QbtcError):
    """A language engine's queue is full; try again after ``retry_after_s``."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineFailed(QbtcError):
    """A language engine elsewhere broke while it answered; its own log says how."""


class BusError(QbtcError):
    """A message could not be carried."""


class BusUnavailable(BusError):
    """The broker is away, or did not confirm in time; whether it has the message is not known."""


class OutboxFull(BusError):
    """Too much waits for the broker already; the message was not taken."""


class Unroutable(BusError):
    """Nobody has the queue the message is for; ``qbtc bus init`` makes the queues."""


class RequestTimeout(BusError):
    """No answer came in time; the work was cancelled."""


class StoreError(QbtcError):
    """Records could not be written or read."""


class StoreUnavailable(StoreError):
    """The database is away; trying again later may help."""


class RecordRefused(StoreError):
    """A row that the database cannot hold; writing it again does not help."""
