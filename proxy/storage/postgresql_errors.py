"""Translates PostgreSQL errors by SQLSTATE. https://www.postgresql.org/docs/current/errcodes-appendix.html"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from proxy.storage.errors import StorageError, StorageInterruptedError, StorageLockedError, StorageUnavailableError

# SQLSTATE prefixes: connection, resources, server state, I/O.
_LATER = ("08", "53", "57P", "58", "25006", "XX")
# serialization_failure, deadlock_detected, lock_not_available: the same transaction may succeed when retried.
_LOCK = ("40001", "40P01", "55P03")
# query_canceled: the statement exceeded `statement_timeout`.
_CANCELED = "57014"


def storage_error(exc: psycopg.Error) -> StorageError:
    """The error as a StorageError with the same message."""
    state, words = exc.sqlstate, re.sub(r"\[Errno -?\d+\] ", "", str(exc).strip().partition("\n")[0])
    if state is None:  # raised by the client: a lost connection, or a value without a PostgreSQL type
        is_lost = isinstance(exc, psycopg.OperationalError | psycopg.InterfaceError)
        return StorageUnavailableError(words) if is_lost else StorageError(words)
    if state.startswith(_LOCK):
        return StorageLockedError(words)
    if state == _CANCELED:
        return StorageInterruptedError(words)
    return StorageUnavailableError(words) if state.startswith(_LATER) else StorageError(words)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raises PostgreSQL's errors as StorageError."""
    try:
        yield
    except psycopg.Error as exc:
        raise storage_error(exc) from exc
