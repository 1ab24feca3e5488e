"""Queries of tombstones: digests of what was deleted on request."""

from proxy.storage.connection import Connection


def upsert_tombstone(connection: Connection, *, digest: bytes, kind: str, now: str) -> None:
    """Records a deletion."""
    connection.changes("upsert_tombstone", {"digest": digest, "kind": kind, "now": now})


def newest_deletion(connection: Connection) -> str:
    """The time of the last deletion; "" if there was none."""
    moment: str = connection.value("newest_deletion", {})
    return moment


def was_deleted(connection: Connection, user_digest: bytes, session_digest: bytes, *, asked_at: str) -> bool:
    """Whether either was deleted at `asked_at` or later."""
    parameters = {"user_digest": user_digest, "session_digest": session_digest, "asked_at": asked_at}
    return bool(connection.value("was_deleted", parameters))


def delete_old_tombstones(connection: Connection, *, before: str, limit: int) -> int:
    """Deletes up to `limit` tombstones older than `before`; returns how many."""
    return connection.changes("delete_old_tombstones", {"before": before, "limit": limit})
