"""What outlives a process besides chats: the clock that deletions are ordered by, and the keys of retried requests."""

from proxy.storage.connection import Connection


def get_boot_clock(connection: Connection) -> tuple[str, float] | None:
    """Which start of the machine the clock counts from, and when that was."""
    row = connection.one("get_boot_clock")
    return None if row is None else (row["boot_id"], row["started_at"])


def replace_boot_clock(connection: Connection, *, boot_id: str, started_at: float) -> None:
    """The machine was started anew."""
    connection.changes("delete_boot_clock")
    connection.changes("insert_boot_clock", {"boot_id": boot_id, "started_at": started_at})


def get_idempotency_key(connection: Connection, digest: bytes) -> tuple[bytes, str] | None:
    """The digest of the request with this key, and the id of what was made for it."""
    row = connection.one("get_idempotency_key", {"digest": digest})
    return None if row is None else (row["request_digest"], row["made_id"])


def insert_idempotency_key(
    connection: Connection, digest: bytes, *, request_digest: bytes, made_id: str, now: str
) -> None:
    """Remember what was made for a request with a key."""
    parameters = {"digest": digest, "request_digest": request_digest, "made_id": made_id, "now": now}
    connection.changes("insert_idempotency_key", parameters)


def delete_old_idempotency_keys(connection: Connection, *, before: str) -> int:
    """Forget the keys of retries that nobody makes any more; how many."""
    return connection.changes("delete_old_idempotency_keys", {"before": before})
