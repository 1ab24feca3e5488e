"""Retention: deletes old sessions a few rows at a time, and returns the free space.

Chats may have to wait for each transaction, so each is small: a session with many messages loses its newest ones first,
and is deleted together with the last of them.
"""

from dataclasses import dataclass
from datetime import timedelta

from proxy.ids import timestamp
from proxy.storage import free_pages, queries
from proxy.storage.connection import Connection

ROWS = 100  # maximum number of messages and exchanges deleted per transaction
_GIVE_BACK_SECONDS = 0.01  # maximum time per transaction for freeing pages, about 1.5 MB
# Free pages to keep for new rows: freeing them only to allocate them again would be wasted work.
_PAGES_KEPT = 256


@dataclass(slots=True)
class Pruned:
    """The numbers of deleted rows."""

    sessions: int = 0
    messages: int = 0

    def __iadd__(self, other: "Pruned") -> "Pruned":
        self.sessions += other.sessions
        self.messages += other.messages
        return self

    def __bool__(self) -> bool:
        return bool(self.sessions or self.messages)


def moment_before(age: timedelta, *, now_seconds: float) -> str:
    """The timestamp `age` ago, as it is stored."""
    return timestamp(max(0.0, now_seconds - age.total_seconds()))


def count_old(connection: Connection, *, before: str) -> Pruned:
    """What a prune would delete."""
    return Pruned(*queries.prune.count_old_sessions(connection, before=before))


def prune_some(connection: Connection, *, before: str, rows: int = ROWS) -> Pruned:
    """Deletes some sessions without activity since `before`, inside a transaction; nothing if none is left."""
    pruned = Pruned()
    for is_active in (True, False):
        for session_id in queries.prune.list_old_sessions(connection, before=before, is_active=is_active, limit=rows):
            messages, exchanges = queries.prune.count_rows_up_to(connection, session_id, most=rows + 1)
            if messages + exchanges <= rows:
                queries.sessions.delete_session(connection, session_id)
                pruned += Pruned(1, messages)
            elif not pruned:
                return _shorten(connection, session_id, rows=rows)
            rows -= messages + exchanges + 1
            if rows <= 0:
                return pruned
    return pruned


def give_back_some(connection: Connection, *, seconds: float = _GIVE_BACK_SECONDS) -> bool:
    """Frees some pages of the file; returns whether there are more."""
    return free_pages.give_back(connection, kept=_PAGES_KEPT, seconds=seconds)


def _shorten(connection: Connection, session_id: str, *, rows: int) -> Pruned:
    queries.prune.delete_newest_exchanges(connection, session_id, limit=rows // 2)
    tokens = queries.prune.delete_newest_messages(connection, session_id, limit=rows // 2)
    queries.prune.shorten_session(connection, session_id, messages=len(tokens), tokens=sum(tokens))
    return Pruned(0, max(1, len(tokens)))
