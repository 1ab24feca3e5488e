"""The API keys, by hash, and what their users have used."""

from dataclasses import dataclass

from proxy.storage.connection import Connection


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A row of `api_keys`; the key itself is not kept."""

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
    """Store a new key."""
    connection.changes("insert_key", {name: getattr(key, name) for name in ApiKey.__slots__})


def find_key(connection: Connection, key_hash: bytes) -> ApiKey | None:
    """The key with this hash, also one that is revoked or has expired."""
    row = connection.one("find_key", {"key_hash": key_hash})
    return None if row is None else ApiKey(**row)


def list_keys(connection: Connection, *, user_id: str | None = None) -> list[ApiKey]:
    """Every key, or a user's, oldest first."""
    return [ApiKey(**row) for row in connection.all("list_keys", {"user_id": user_id})]


def key_exists(connection: Connection) -> bool:
    """Whether there is any key, revoked ones included."""
    return bool(connection.value("key_exists", {}))


def revoke_key(connection: Connection, key: str, *, now: str) -> list[str]:
    """Revoke the keys with this id, or these first characters; the ids of those that were not revoked yet."""
    return connection.values("revoke_key", {"key": key, "now": now})


def revoke_keys_of_user(connection: Connection, user_id: str, *, now: str) -> int:
    """Revoke a user's keys; how many were not revoked yet."""
    return connection.changes("revoke_keys_of_user", {"user_id": user_id, "now": now})


def touch_key(connection: Connection, key_id: str, *, used_at: str) -> None:
    """The key was used then."""
    connection.changes("touch_key", {"key_id": key_id, "used_at": used_at})


def sum_tokens(connection: Connection, *, user_id: str, since_id: str) -> int:
    """Tokens of a user's recorded chats from an identifier on."""
    total: int = connection.value("sum_tokens", {"user_id": user_id, "since_id": since_id})
    return total
