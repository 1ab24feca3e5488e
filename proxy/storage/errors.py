"""Database errors, independent of the engine. `sqlite_connection.py` and `postgresql_errors.py` translate to them."""

from typing import Literal

Trouble = Literal["none", "later", "lock", "unknown"]
"""Which kind of failure a write met.

none: the statement or its data is wrong; later: the file, disk or server failed, retry later; lock: another program
holds a lock; unknown: the reply to COMMIT was lost.
"""


class StorageError(Exception):
    """A database operation failed."""

    trouble: Trouble = "none"


class StorageUnavailableError(StorageError):
    """The database is temporarily unusable: disk full, I/O error, out of memory."""

    trouble = "later"


class StorageDamagedError(StorageUnavailableError):
    """The database file is damaged, or is not a database."""


class StorageNotADatabaseError(StorageDamagedError):
    """The file is not an SQLite database."""


class StorageLockedError(StorageError):
    """Another program held the lock longer than the time limit."""

    trouble = "lock"


class StorageUnknownError(StorageError):
    """The reply to COMMIT was lost, so the transaction may or may not be stored."""

    trouble = "unknown"


class StorageInterruptedError(StorageError):
    """The statement was interrupted because it exceeded its time limit."""

    trouble = "later"


def trouble(exc: BaseException) -> Trouble:
    """Classifies an exception."""
    return exc.trouble if isinstance(exc, StorageError) else "none"


def is_trouble(exc: BaseException) -> bool:
    """Whether the database failed, temporarily or not, rather than the statement or its data being wrong."""
    return trouble(exc) != "none"


def is_unknown(exc: BaseException) -> bool:
    """Whether the reply to a COMMIT was lost."""
    return trouble(exc) == "unknown"


def is_lock(exc: BaseException) -> bool:
    """Whether another program holds the write lock."""
    return trouble(exc) == "lock"
