"""What only a database in a file can be asked: checkpoint, free pages, locks, its own checks, a copy."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from proxy.storage.connection import Connection
from proxy.storage.errors import StorageDamagedError
from proxy.storage.sqlite import APPLICATION_ID
from proxy.storage.sqlite_connection import SqliteConnection, translated_errors

# A step of a copy reads this much, then lets others at the disk; what was written is synced now and then, since one
# large sync at the end would hold up the commits of chats.
_STEP_BYTES = 2**20
_SYNC_BYTES = 8 * 2**20


@translated_errors()
def open_read_only(path: Path) -> SqliteConnection:
    """The file as it is, nothing written beside it where nothing has to be."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, isolation_level=None, factory=SqliteConnection)


def is_ours(connection: Connection) -> bool:
    """Whether the file says that it is a StellarChat database."""
    return bool(_pragma(connection, "application_id")[0][0] == APPLICATION_ID)


def refuse_writes(connection: Connection) -> None:
    """Let the connection only read from now on."""
    _pragma(connection, "query_only = ON")


def wait_for_locks(connection: Connection, *, milliseconds: int) -> None:
    """How long the connection waits for another program's lock. https://sqlite.org/pragma.html#pragma_busy_timeout"""
    _pragma(connection, f"busy_timeout = {milliseconds}")


@translated_errors()
def probe(connection: Connection) -> None:
    """Write a page without changing it: an empty transaction would not notice a full disk."""
    with connection.transaction():
        version = _pragma(connection, "user_version")[0][0]
        _pragma(connection, f"user_version = {version}")


def checkpoint(connection: Connection) -> None:
    """Bring the write-ahead log into the file and empty it. https://sqlite.org/wal.html#ckpt"""
    _pragma(connection, "wal_checkpoint(TRUNCATE)")


def find_damage(connection: Connection, *, limit: int = 20) -> list[str]:
    """What SQLite finds wrong with the file. https://sqlite.org/pragma.html#pragma_integrity_check"""
    try:
        lines = [row[0] for row in _pragma(connection, f"integrity_check({limit})")]
    except StorageDamagedError as exc:
        return [str(exc)]
    return [] if lines == ["ok"] else lines


def find_broken_links(connection: Connection) -> list[str]:
    """Rows that refer to rows that are not there."""
    return [f"{row[0]} {row[1]} → {row[2]}" for row in _pragma(connection, "foreign_key_check")]


@translated_errors()
def copy(connection: Connection, target: Path, *, progress: Callable[[int, int], None]) -> None:
    """Copy the whole database into a new file, and sync it. `progress` is given the bytes done and the bytes in all."""
    page_bytes = _pragma(connection, "page_size")[0][0]
    file = os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    unsynced = 0

    def report(_status: int, remaining: int, total: int) -> None:
        nonlocal unsynced
        unsynced += _STEP_BYTES
        if unsynced >= _SYNC_BYTES:
            os.fdatasync(file)
            unsynced = 0
        progress((total - remaining) * page_bytes, total * page_bytes)

    try:
        with closing(sqlite3.connect(target, isolation_level=None)) as written:
            written.execute("PRAGMA synchronous = OFF")
            _sqlite(connection).backup(written, pages=max(1, _STEP_BYTES // page_bytes), progress=report)
            # One file that needs no other beside it.
            written.execute("PRAGMA journal_mode = DELETE").fetchall()
        os.fsync(file)
    finally:
        os.close(file)  # only now: it gives up SQLite's locks on the file. https://sqlite.org/howtocorrupt.html#_posix


def copy_snapshot(connection: Connection, target: Path, *, progress: Callable[[int, int], None]) -> None:
    """The same from a database that others write: without a snapshot SQLite begins again whenever a chat is saved.
    https://sqlite.org/c3ref/backup_finish.html"""
    with connection.snapshot():
        _pragma(connection, "user_version")  # the snapshot begins with the first read
        copy(connection, target, progress=progress)


def _sqlite(connection: Connection) -> SqliteConnection:
    assert isinstance(connection, SqliteConnection)
    return connection


@translated_errors()
def _pragma(connection: Connection, what: str) -> list[tuple[Any, ...]]:
    return _sqlite(connection).execute(f"PRAGMA {what}").fetchall()
