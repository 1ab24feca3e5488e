"""File operations of an SQLite database: checkpoint, free pages, locks, integrity checks, copy."""

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

# A copy reads this much per step, then lets others use the disk. The target is synced regularly, because one large sync
# at the end would delay the commits of chats.
_STEP_BYTES = 2**20
_SYNC_BYTES = 8 * 2**20


@translated_errors()
def open_read_only(path: Path) -> SqliteConnection:
    """Opens a file read-only; writes nothing beside it unless SQLite must."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, isolation_level=None, factory=SqliteConnection)


def is_ours(connection: Connection) -> bool:
    """Whether the file is marked as a StellarChat database."""
    return bool(_pragma(connection, "application_id")[0][0] == APPLICATION_ID)


def refuse_writes(connection: Connection) -> None:
    """Makes the connection read-only."""
    _pragma(connection, "query_only = ON")


def wait_for_locks(connection: Connection, *, milliseconds: int) -> None:
    """Sets how long the connection waits for locks. https://sqlite.org/pragma.html#pragma_busy_timeout"""
    _pragma(connection, f"busy_timeout = {milliseconds}")


@translated_errors()
def probe(connection: Connection) -> None:
    """Rewrites a page unchanged: an empty transaction would not detect a full disk."""
    with connection.transaction():
        version = _pragma(connection, "user_version")[0][0]
        _pragma(connection, f"user_version = {version}")


def checkpoint(connection: Connection) -> None:
    """Writes the write-ahead log into the database file and truncates it. https://sqlite.org/wal.html#ckpt"""
    _pragma(connection, "wal_checkpoint(TRUNCATE)")


def find_damage(connection: Connection, *, limit: int = 20) -> list[str]:
    """Runs SQLite's integrity check. https://sqlite.org/pragma.html#pragma_integrity_check"""
    try:
        lines = [row[0] for row in _pragma(connection, f"integrity_check({limit})")]
    except StorageDamagedError as exc:
        return [str(exc)]
    return [] if lines == ["ok"] else lines


def find_broken_links(connection: Connection) -> list[str]:
    """Rows with a foreign key to a missing row."""
    return [f"{row[0]} {row[1]} → {row[2]}" for row in _pragma(connection, "foreign_key_check")]


@translated_errors()
def copy(connection: Connection, target: Path, *, progress: Callable[[int, int], None]) -> None:
    """Copies the database into a new file and syncs it. `progress` gets the bytes copied and the total."""
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
            # A single file, without a log beside it.
            written.execute("PRAGMA journal_mode = DELETE").fetchall()
        os.fsync(file)
    finally:
        os.close(file)  # closing a file drops SQLite's locks on it. https://sqlite.org/howtocorrupt.html#_posix


def copy_snapshot(connection: Connection, target: Path, *, progress: Callable[[int, int], None]) -> None:
    """Copies from a snapshot, for a database in use: otherwise SQLite restarts the copy at every commit.

    https://sqlite.org/c3ref/backup_finish.html
    """
    with connection.snapshot():
        _pragma(connection, "user_version")  # the first read starts the snapshot
        copy(connection, target, progress=progress)


def _sqlite(connection: Connection) -> SqliteConnection:
    assert isinstance(connection, SqliteConnection)
    return connection


@translated_errors()
def _pragma(connection: Connection, what: str) -> list[tuple[Any, ...]]:
    return _sqlite(connection).execute(f"PRAGMA {what}").fetchall()
