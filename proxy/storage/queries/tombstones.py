"""The tombstones: what was deleted by hand, by digest."""

from proxy.storage.connection import Connection


def upsert_tombstone(connection: Connection, *, digest: bytes, kind: str, now: str) -> None:
    """Something was deleted now."""
    connection.changes("upsert_tombstone", {"digest": digest, "kind": kind, "now": now})


def newest_deletion(connection: Connection) -> str:
    """When something was deleted last; empty where nothing was."""
    moment: str = connection.value("newest_deletion", {})
    return moment


def was_deleted(connection: Connection, user_digest: bytes, session_digest: bytes, *, asked_at: str) -> bool:
    """Whether one of the two was deleted at that moment or later."""
    parameters = {"user_digest": user_digest, "session_digest": session_digest, "asked_at": asked_at}
    return bool(connection.value("was_deleted", parameters))


def delete_old_tombstones(connection: Connection, *, before: str, limit: int) -> int:
    """Forget some deletions that are older; how many."""
    return connection.changes("delete_old_tombstones", {"before": before, "limit": limit})
