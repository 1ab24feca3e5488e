"""Gives the free pages of an SQLite file back to the disk, a bounded time at a go."""

import time

from proxy.storage.connection import Connection
from proxy.storage.sqlite_connection import SqliteConnection, translated_errors

# Pages between two looks at the clock; a page costs about 6 µs.
_PAGES_BETWEEN = 64


@translated_errors()
def free_page_count(connection: Connection) -> int:
    """Pages of the file that hold nothing."""
    assert isinstance(connection, SqliteConnection)
    count: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
    return count


@translated_errors()
def give_back(connection: Connection, *, kept: int, seconds: float) -> bool:
    """Cut free pages off the file until `kept` are left or the time is up; whether there are more.

    A page a statement: where a PRAGMA has no result columns, Python runs only its first step, and each step of this
    one frees one page, whatever number it is given. https://sqlite.org/pragma.html#pragma_incremental_vacuum
    """
    if not isinstance(connection, SqliteConnection):
        return False  # a server looks after its own files
    deadline = time.monotonic() + seconds
    while (left := free_page_count(connection) - kept) > 0:
        if time.monotonic() >= deadline:
            return True
        for _ in range(min(left, _PAGES_BETWEEN)):
            connection.execute("PRAGMA incremental_vacuum(1)").fetchall()
    return False
