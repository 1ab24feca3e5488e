"""Queries of API keys, by hash, and of the tokens used with each."""

from dataclasses import dataclass

from proxy.storage.connection import Connection


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A row of `api_keys`; the key itself is not stored."""

    key_id: str
    user_id: str
    name: str | None
    key_hash: bytes
    hint: str
    is_admin: bool
    requests_per_minute: int | None
    tokens_per_day: int | None
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None


def insert_key(connection: Connection, key: ApiKey) -> None:
    connection.changes("insert_key", {name: getattr(key, name) for name in ApiKey.__slots__})


def find_key(connection: Connection, key_hash: bytes) -> ApiKey | None:
    """The key with this hash, even if revoked or expired."""
    row = connection.one("find_key", {"key_hash": key_hash})
    return None if row is None else ApiKey(**row)


def list_keys(connection: Connection, *, user_id: str | None = None) -> list[ApiKey]:
    """All keys, or one user's, oldest first."""
    return [ApiKey(**row) for row in connection.all("list_keys", {"user_id": user_id})]


def key_exists(connection: Connection) -> bool:
    """Whether any key exists, revoked ones included."""
    return bool(connection.value("key_exists", {}))


def keys_were_required(connection: Connection) -> bool:
    """Whether API keys were ever required."""
    return bool(connection.value("keys_were_required", {}))


def require_keys(connection: Connection, *, now: str) -> None:
    """Records that API keys are required from now on."""
    connection.changes("require_keys", {"now": now})


def list_key_hashes(connection: Connection, *, after: str) -> list[tuple[str, bytes]]:
    """Id and hash of the keys with ids greater than `after`."""
    return [(row["key_id"], row["key_hash"]) for row in connection.all("list_key_hashes", {"after": after})]


def revoke_key(connection: Connection, key: str, *, now: str) -> list[str]:
    """Revokes the keys with this id or prefix; returns the ids of those not revoked before."""
    return connection.values("revoke_key", {"key": key, "now": now})


def revoke_keys_of_user(connection: Connection, user_id: str, *, now: str) -> int:
    """Revokes a user's keys; returns how many were not revoked before."""
    return connection.changes("revoke_keys_of_user", {"user_id": user_id, "now": now})


def touch_key(connection: Connection, key_id: str, *, used_at: str) -> None:
    """Updates the key's last use."""
    connection.changes("touch_key", {"key_id": key_id, "used_at": used_at})


def add_key_tokens(connection: Connection, key_id: str, *, day: str, tokens: int) -> None:
    """Adds to the key's tokens of a day; replaces the count of an earlier day."""
    connection.changes("add_key_tokens", {"key_id": key_id, "day": day, "tokens": tokens})
    connection.changes("delete_old_key_tokens", {"key_id": key_id, "day": day})


def get_key_tokens(connection: Connection, key_id: str, *, day: str) -> int:
    """The key's tokens of a day."""
    return int(connection.value("get_key_tokens", {"key_id": key_id, "day": day}) or 0)
