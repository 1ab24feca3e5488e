"""Queries of an export: rows with ids in place of row numbers."""

from collections.abc import Iterator

from proxy.storage.connection import Connection, Row
from proxy.storage.damaged_values import nearest
from proxy.storage.queries.exchanges import end_of, with_parameters
from proxy.storage.queries.users import DEFAULT_USER_ID

# Row numbers are internal to one database.
_OWN = ("exchange_no", "session_no", "leaf_no")


def iterate_users(connection: Connection, *, user_id: str | None, session_id: str | None) -> Iterator[Row]:
    """All users, a single one, or the owner of one session."""
    parameters = {"user_id": user_id, "session_id": session_id, "default_user_id": DEFAULT_USER_ID}
    return connection.each("export_users", parameters)


def iterate_blobs(connection: Connection, *, user_id: str | None, session_id: str | None) -> Iterator[Row]:
    """The large parts of messages (blobs)."""
    return connection.each("export_blobs", {"user_id": user_id, "session_id": session_id})


def iterate_sessions(connection: Connection, *, user_id: str | None, session_id: str | None) -> Iterator[Row]:
    """Sessions ordered by id."""
    return connection.each("export_sessions", {"user_id": user_id, "session_id": session_id})


def iterate_messages(connection: Connection, session_id: str) -> Iterator[Row]:
    """A session's messages in storage order; `message_no` is included for further queries."""
    for row in connection.each("export_messages", {"session_id": session_id}):
        root_id = row.pop("root_id")
        # NULL in the session's first conversation, and most sessions have only that one
        root = {"root_id": root_id} if root_id else {}
        yield row | {"chain_hash": nearest(row["chain_hash"], (bytes,)).hex()} | root


def list_digests(connection: Connection, message_no: int) -> list[str]:
    """The blob digests of a message."""
    return connection.values("export_message_blobs", {"message_no": message_no})


def iterate_exchanges(connection: Connection, session_id: str) -> Iterator[Row]:
    """A session's exchanges in storage order."""
    for row in connection.each("export_exchanges", {"session_id": session_id}):
        row = with_parameters(row)
        row["completed_at"] = end_of(row["created_at"], row["duration_ms"], row["completed_at"])
        yield {name: value for name, value in row.items() if name not in _OWN}


def find_message_id(connection: Connection, message_no: int) -> str | None:
    found: str | None = connection.value("find_message_id", {"message_no": message_no})
    return found


def list_leaves(connection: Connection, session_id: str) -> list[Row]:
    """The leaves of a session's branches, oldest first: `message_no`, `message_id`, `role`."""
    return connection.all("list_leaves", {"session_id": session_id})
