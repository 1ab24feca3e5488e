"""Deletes what is older than it may be, a few rows at a time, and gives the space back.

A transaction of a prune is what a chat may have to wait for, so each is small: a session with many messages loses its
newest ones first, and goes with the last of them.
"""

import sqlite3
from dataclasses import dataclass
from datetime import timedelta

from proxy.ids import timestamp
from proxy.storage import free_pages, queries
from proxy.storage.queries import QUERIES

ROWS = 100  # messages and exchanges a transaction deletes at most
_GIVE_BACK_SECONDS = 0.01  # time a transaction gives pages back at most: about 1.5 MB
# Pages that stay free for what is stored next: giving back what is wanted again at once is work for nothing.
_PAGES_KEPT = 256


@dataclass(slots=True)
class Pruned:
    """What was deleted."""

    sessions: int = 0
    messages: int = 0

    def __iadd__(self, other: "Pruned") -> "Pruned":
        self.sessions += other.sessions
        self.messages += other.messages
        return self

    def __bool__(self) -> bool:
        return bool(self.sessions or self.messages)


def moment_before(age: timedelta, *, now_seconds: float) -> str:
    """The point in time that long ago, as it is stored."""
    return timestamp(max(0.0, now_seconds - age.total_seconds()))


def count_old(connection: sqlite3.Connection, *, before: str) -> Pruned:
    """What a prune would delete."""
    return Pruned(*connection.execute(QUERIES["count_old_sessions"], {"before": before}).fetchone())


def prune_some(connection: sqlite3.Connection, *, before: str, rows: int = ROWS) -> Pruned:
    """Delete some of the sessions without activity since a moment, in a transaction; nothing when none is left."""
    pruned = Pruned()
    for is_active in (True, False):
        parameters = {"before": before, "is_active": is_active, "limit": rows}
        for (session_id,) in connection.execute(QUERIES["list_old_sessions"], parameters).fetchall():
            messages, exchanges = _rows_of(connection, session_id, most=rows)
            if messages + exchanges <= rows:
                queries.delete_session(connection, session_id)
                pruned += Pruned(1, messages)
            elif not pruned:
                return _shorten(connection, session_id, rows=rows)
            rows -= messages + exchanges + 1
            if rows <= 0:
                return pruned
    return pruned


def give_back_some(connection: sqlite3.Connection, *, seconds: float = _GIVE_BACK_SECONDS) -> bool:
    """Cut some free pages off the file; whether there are more."""
    return free_pages.give_back(connection, kept=_PAGES_KEPT, seconds=seconds)


def _rows_of(connection: sqlite3.Connection, session_id: str, *, most: int) -> tuple[int, int]:
    parameters = {"session_id": session_id, "most": most + 1}
    messages, exchanges = connection.execute(QUERIES["count_rows_up_to"], parameters).fetchone()
    return messages, exchanges


def _shorten(connection: sqlite3.Connection, session_id: str, *, rows: int) -> Pruned:
    parameters = {"session_id": session_id, "limit": rows // 2}
    connection.execute(QUERIES["delete_newest_exchanges"], parameters)
    tokens = [row[0] for row in connection.execute(QUERIES["delete_newest_messages"], parameters)]
    shorter = {"session_id": session_id, "messages": len(tokens), "tokens": sum(tokens)}
    connection.execute(QUERIES["shorten_session"], shorter)
    return Pruned(0, max(1, len(tokens)))
