"""Queries of the `users` table and its session counts."""

from dataclasses import dataclass

from proxy.storage.connection import Connection
from proxy.storage.damaged_values import built

DEFAULT_USER_ID = "default_user"

DEFAULT_USER_ID = "default_user"


@dataclass(frozen=True, slots=True)
class User:
    """A row of `users`."""

    user_id: str
    username: str | None
    session_count: int
    active_session_count: int
    created_at: str
    last_active: str


def upsert_user(connection: Connection, *, user_id: str, now: str) -> None:
    """Inserts the user if missing; sets last_active."""
    connection.changes("upsert_user", {"user_id": user_id, "now": now})


def find_user_no(connection: Connection, user_id: str) -> int | None:
    found: int | None = connection.value("find_user_no", {"user_id": user_id})
    return found


def get_user(connection: Connection, user_id: str) -> User | None:
    row = connection.one("get_user", {"user_id": user_id})
    return None if row is None else built(User, row)


def delete_user(connection: Connection, user_id: str) -> bool:
    """Deletes a user and all of its data; returns whether it existed."""
    return connection.changes("delete_user", {"user_id": user_id}) > 0


def delete_some_of_user(connection: Connection, user_id: str, *, limit: int) -> int:
    """Deletes part of a user's data, dependent rows first; returns how many rows were found."""
    parameters = {"user_id": user_id, "limit": limit}
    for name in ("delete_messages_of_user", "delete_exchanges_of_user", "delete_empty_sessions_of_user"):
        if deleted := connection.changes(name, parameters):
            return deleted
    return 0


def count_sessions(connection: Connection, user_id: str, *, sessions: int, active: int) -> None:
    """Adds new sessions to the user's counts."""
    connection.changes("count_sessions", {"user_id": user_id, "sessions": sessions, "active": active})
