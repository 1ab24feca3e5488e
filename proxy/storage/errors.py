"""What can go wrong in a database, in words that know no engine, which `sqlite_connection.py` and
`postgresql_errors.py` translate."""

from typing import Literal

Trouble = Literal["none", "later", "lock", "unknown"]
"""none: the statement or its data is at fault; later: the file, the disk or the server is, which passes; lock: another
program holds a lock; unknown: the answer to a COMMIT was lost."""


class StorageError(Exception):
    """The database did not do what it was asked."""

    trouble: Trouble = "none"


class StorageUnavailableError(StorageError):
    """The database cannot be used now: a full disk, an I/O error, no memory."""

    trouble = "later"


class StorageDamagedError(StorageUnavailableError):
    """The database file is damaged, or not a database."""


class StorageLockedError(StorageError):
    """Another program holds the lock for longer than we wait."""

    trouble = "lock"


class StorageUnknownError(StorageError):
    """The answer to a COMMIT was lost: what was written may be stored or not."""

    trouble = "unknown"


class StorageInterruptedError(StorageError):
    """The statement was ended by us, since it ran longer than it may."""

    trouble = "later"


def trouble(exc: BaseException) -> Trouble:
    """What an exception says about the database."""
    return exc.trouble if isinstance(exc, StorageError) else "none"
