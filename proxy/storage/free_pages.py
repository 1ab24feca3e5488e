"""Returns an SQLite file's free pages to the file system, for a limited time per call."""

import time

from proxy.storage.connection import Connection
from proxy.storage.sqlite_connection import SqliteConnection, translated_errors

# Pages freed between two clock reads; one page takes about 6 µs.
_PAGES_BETWEEN = 64


@translated_errors()
def free_page_count(connection: Connection) -> int:
    """Number of unused pages in the file."""
    assert isinstance(connection, SqliteConnection)
    count: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
    return count


@translated_errors()
def give_back(connection: Connection, *, kept: int, seconds: float) -> bool:
    """Frees pages until `kept` remain or the time is up; returns whether more could be freed.

    One statement per page: for a PRAGMA without result columns Python executes only the first step, and each step frees
    one page whatever its argument is. https://sqlite.org/pragma.html#pragma_incremental_vacuum
    """
    if not isinstance(connection, SqliteConnection):
        return False  # PostgreSQL manages its own files
    deadline = time.monotonic() + seconds
    while (left := free_page_count(connection) - kept) > 0:
        if time.monotonic() >= deadline:
            return True
        for _ in range(min(left, _PAGES_BETWEEN)):
            connection.execute("PRAGMA incremental_vacuum(1)").fetchall()
    return False
