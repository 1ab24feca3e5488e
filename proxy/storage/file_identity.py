"""Detects that an open file was removed or replaced on disk: later writes to it would be lost.

Device and inode of the database and its write-ahead log are compared around every transaction (a few microseconds) and
once a second.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from proxy.storage.connection import Connection

T = TypeVar("T")

logger = logging.getLogger(__name__)

_Identity = tuple[int, int]


class MovedError(Exception):
    """The database's path no longer refers to the open file."""


class FileIdentity:
    """Device and inode of the database files at the time of opening."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log_path = path.with_name(path.name + "-wal")
        self._shared_path = path.with_name(path.name + "-shm")
        self._database: _Identity | None = None
        self._log: _Identity | None = None
        self._shared: _Identity | None = None
        self._header: bytes | None = None  # header of the replacing file, as last read

    def remember(self) -> None:
        """Called right after the database was opened."""
        self._database, self._log = _identity(self._path), _identity(self._log_path)
        self._shared = _identity(self._shared_path)
        self._header = None

    @property
    def is_another(self) -> bool:
        """Whether a different file exists at the path (not merely none)."""
        return _identity(self._path) not in (None, self._database)

    @property
    def is_moved(self) -> bool:
        """Whether the path no longer refers to the open file."""
        try:
            self.check()
        except MovedError:
            return True
        return False

    def refuse_unusable(self, *, application_id: int) -> None:
        """Raises MovedError until the path holds a complete database of ours. It may still be being copied.

        Two successive reads of its header must agree. https://sqlite.org/fileformat.html#the_database_header
        """
        with self._path.open("rb") as file:
            header = file.read(100)
            size = os.fstat(file.fileno()).st_size
        page_bytes = int.from_bytes(header[16:18], "big") or 1
        page_bytes = 65536 if page_bytes == 1 else page_bytes
        pages = int.from_bytes(header[28:32], "big")
        is_ours = header[68:72] == application_id.to_bytes(4, "big") and pages > 0
        seen, self._header = self._header, header + size.to_bytes(8, "big")
        if not is_ours or size < pages * page_bytes or seen != self._header:
            raise MovedError(f"the database {self._path} was replaced by a file that is not a complete one of ours")

    def remove_log(self) -> None:
        """Deletes the old database's log if it lies beside the new one; SQLite would apply it and damage the new
        database."""
        if self._log is not None and _identity(self._log_path) == self._log:
            self._log_path.unlink(missing_ok=True)
        if self._shared is not None and _identity(self._shared_path) == self._shared:
            self._shared_path.unlink(missing_ok=True)

    def guard(self, work: Callable[[Connection], T]) -> Callable[[Connection], T]:
        """Wraps `work`: it does not start if the files have changed, and fails if they have changed when it ends."""

        def guarded(connection: Connection) -> T:
            self.check()
            result = work(connection)
            self.check()
            return result

        return guarded

    def check(self) -> None:
        """Raises MovedError if the files have changed."""
        database = _identity(self._path)
        if self._database is not None and database != self._database:
            raise MovedError(
                f"the database {self._path} was {'replaced' if database else 'removed'} while the server was using it"
            )
        log = _identity(self._log_path)
        if self._log is None:
            self._log = log  # the first write creates the log
        elif log != self._log:
            raise MovedError(f"{self._log_path} was {'replaced' if log else 'removed'} while the server was using it")


def _identity(path: Path) -> _Identity | None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def is_at(file: int, path: Path) -> bool:
    """Whether an open file is still at this path."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def sync_folder(folder: Path) -> None:
    """Syncs the folder, so that a power failure cannot lose the file's name."""
    file = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    except OSError as exc:
        logger.debug("the folder %s cannot be synced: %s", folder, exc.strerror)
    finally:
        os.close(file)
