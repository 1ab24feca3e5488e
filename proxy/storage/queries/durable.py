"""Queries of the boot clock, which orders deletions, and of idempotency keys."""

from proxy.storage.connection import Connection


def get_boot_clock(connection: Connection) -> tuple[str, float] | None:
    """The id of the boot that the clock counts from, and its time."""
    row = connection.one("get_boot_clock")
    return None if row is None else (row["boot_id"], row["started_at"])


def replace_boot_clock(connection: Connection, *, boot_id: str, started_at: float) -> None:
    """Stores a new boot time after a restart of the machine."""
    connection.changes("delete_boot_clock")
    connection.changes("insert_boot_clock", {"boot_id": boot_id, "started_at": started_at})


def get_idempotency_key(connection: Connection, digest: bytes) -> tuple[bytes, str] | None:
    """The digest of the request that used this key, and the id of its result."""
    row = connection.one("get_idempotency_key", {"digest": digest})
    return None if row is None else (row["request_digest"], row["made_id"])


def insert_idempotency_key(
    connection: Connection, digest: bytes, *, request_digest: bytes, made_id: str, now: str
) -> None:
    """Stores the result id of a request with an idempotency key."""
    parameters = {"digest": digest, "request_digest": request_digest, "made_id": made_id, "now": now}
    connection.changes("insert_idempotency_key", parameters)


def delete_old_idempotency_keys(connection: Connection, *, before: str) -> int:
    """Deletes keys stored before `before`; returns how many."""
    return connection.changes("delete_old_idempotency_keys", {"before": before})
