"""The users: who talks, and how many sessions each has."""

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
    """Make the user where there is none; it was active now."""
    connection.changes("upsert_user", {"user_id": user_id, "now": now})


def find_user_no(connection: Connection, user_id: str) -> int | None:
    """The number of the user, if there is one."""
    found: int | None = connection.value("find_user_no", {"user_id": user_id})
    return found


def get_user(connection: Connection, user_id: str) -> User | None:
    """The user, if there is one."""
    row = connection.one("get_user", {"user_id": user_id})
    return None if row is None else built(User, row)


def delete_user(connection: Connection, user_id: str) -> bool:
    """Delete the user and all that is its; whether there was one."""
    return connection.changes("delete_user", {"user_id": user_id}) > 0


def delete_some_of_user(connection: Connection, user_id: str, *, limit: int) -> int:
    """Delete some of what is a user's, what depends on others first; how much was found."""
    parameters = {"user_id": user_id, "limit": limit}
    for name in ("delete_messages_of_user", "delete_exchanges_of_user", "delete_empty_sessions_of_user"):
        if deleted := connection.changes(name, parameters):
            return deleted
    return 0


def count_sessions(connection: Connection, user_id: str, *, sessions: int, active: int) -> None:
    """Count sessions that were made."""
    connection.changes("count_sessions", {"user_id": user_id, "sessions": sessions, "active": active})
