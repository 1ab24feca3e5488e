"""Tombstones: a chat requested before its user or session was deleted is not stored afterwards.

Such a chat may still be streaming in any process, or wait in a spill file. A chat requested later creates the user
again. Runs inside the writer's transaction.
"""

from datetime import timedelta
from hashlib import sha256
from typing import Literal

from proxy.ids import timestamp
from proxy.storage import queries
from proxy.storage.connection import Connection

Kind = Literal["user", "session"]

# Longer than any stream lasts, and than a spill file should wait for the next start.
KEPT = timedelta(days=30)


def digest(kind: Kind, id_: str) -> bytes:
    """The digest that represents a deleted user or session."""
    return sha256(f"{kind}\0{id_}".encode("utf-8", "surrogatepass")).digest()


def add_tombstone(connection: Connection, kind: Kind, id_: str, *, now: str) -> None:
    """Records a deletion."""
    queries.tombstones.upsert_tombstone(connection, digest=digest(kind, id_), kind=kind, now=now)


def was_deleted(connection: Connection, *, user_id: str, session_id: str, asked_at: str) -> bool:
    """Whether the user or session was deleted after the chat was requested, or in the same millisecond."""
    digests = digest("user", user_id), digest("session", session_id)
    return queries.tombstones.was_deleted(connection, *digests, asked_at=asked_at)


def forget_some(connection: Connection, *, now_seconds: float, limit: int = 1000) -> int:
    """Deletes tombstones that no remaining chat can refer to; returns how many."""
    before = timestamp(max(0.0, now_seconds - KEPT.total_seconds()))
    return queries.tombstones.delete_old_tombstones(connection, before=before, limit=limit)
