"""Notices that the database's files were removed or replaced while they are open: what is written then is lost.

Device and inode of the database and of its write-ahead log are compared around every transaction (a few microseconds),
and once a second.
"""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_Identity = tuple[int, int]


class MovedError(Exception):
    """The file at the database's path is not the one that is open."""


class FileIdentity:
    """What was at the database's paths when it was opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log_path = path.with_name(path.name + "-wal")
        self._database: _Identity | None = None
        self._log: _Identity | None = None

    def remember(self) -> None:
        """The database has just been opened."""
        self._database, self._log = _identity(self._path), _identity(self._log_path)

    @property
    def is_another(self) -> bool:
        """Whether another file is at the database's path, rather than none."""
        return _identity(self._path) not in (None, self._database)

    def guard(self, work: Callable[[sqlite3.Connection], T]) -> Callable[[sqlite3.Connection], T]:
        """The same work: it is not begun where the files are others, and does not count where they are so after it."""

        def guarded(connection: sqlite3.Connection) -> T:
            self.check()
            result = work(connection)
            self.check()
            return result

        return guarded

    def check(self) -> None:
        """Raises MovedError."""
        database = _identity(self._path)
        if self._database is not None and database != self._database:
            raise MovedError(
                f"the database {self._path} was {'replaced' if database else 'removed'} while it is served"
            )
        log = _identity(self._log_path)
        if self._log is None:
            self._log = log  # made by the first write
        elif log != self._log:
            raise MovedError(f"the log {self._log_path} was {'replaced' if log else 'removed'} while it is served")


def _identity(path: Path) -> _Identity | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
