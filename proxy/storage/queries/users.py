"""Queries of the `users` table and its session counts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proxy.storage.connection import Connection
from proxy.storage.damaged_values import built

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


def insert_user(connection: Connection, *, user_no: int, user_id: str, now: str) -> None:
    """Inserts a user that is missing."""
    row = {"user_no": user_no, "user_id": user_id, "created_at": now, "last_active": now}
    connection.store("insert_user", [row])


def touch_users(connection: Connection, seen: Mapping[str, str]) -> None:
    """Sets last_active of existing users, given by id."""
    connection.store("touch_user", [{"user_id": user_id, "now": now} for user_id, now in seen.items()])


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
    connection.store("count_sessions", [{"user_id": user_id, "sessions": sessions, "active": active}])


def count_active_sessions(connection: Connection, user_ids: Sequence[str]) -> None:
    """Adds new active sessions, each given by its user, to the users' counts."""
    counts = Counter(user_ids)
    rows = [{"user_id": user_id, "sessions": count, "active": count} for user_id, count in counts.items()]
    connection.store("count_sessions", rows)
