"""Rows as an export writes them: with ids in the place of row numbers."""

from collections.abc import Iterator

from proxy.storage.connection import Connection, Row
from proxy.storage.queries.exchanges import end_of, with_parameters
from proxy.storage.queries.users import DEFAULT_USER_ID

# Numbers are a database's own affair.
_OWN = ("exchange_no", "session_no", "leaf_no")


def iterate_users(connection: Connection, *, user_id: str | None, session_id: str | None) -> Iterator[Row]:
    """Every user, or the one, or the one of a session."""
    parameters = {"user_id": user_id, "session_id": session_id, "default_user_id": DEFAULT_USER_ID}
    return connection.each("export_users", parameters)


def iterate_blobs(connection: Connection, *, user_id: str | None, session_id: str | None) -> Iterator[Row]:
    """The large parts of messages."""
    return connection.each("export_blobs", {"user_id": user_id, "session_id": session_id})


def iterate_sessions(connection: Connection, *, user_id: str | None, session_id: str | None) -> Iterator[Row]:
    """Sessions in the order of their ids."""
    return connection.each("export_sessions", {"user_id": user_id, "session_id": session_id})


def iterate_messages(connection: Connection, session_id: str) -> Iterator[Row]:
    """A session's messages in the order they were stored; `message_no` is there to ask for what belongs to them."""
    for row in connection.each("export_messages", {"session_id": session_id}):
        root_id = row.pop("root_id")
        root = {"root_id": root_id} if root_id else {}  # none in the session's first conversation: most have no other
        yield row | {"chain_hash": row["chain_hash"].hex()} | root


def list_digests(connection: Connection, message_no: int) -> list[str]:
    """The digests of a message's large parts."""
    return connection.values("export_message_blobs", {"message_no": message_no})


def iterate_exchanges(connection: Connection, session_id: str) -> Iterator[Row]:
    """A session's exchanges in the order they were stored."""
    for row in connection.each("export_exchanges", {"session_id": session_id}):
        row = with_parameters(row)
        row["completed_at"] = end_of(row["created_at"], row["duration_ms"], row["completed_at"])
        yield {name: value for name, value in row.items() if name not in _OWN}


def find_message_id(connection: Connection, message_no: int) -> str | None:
    """The id of the message with this number."""
    found: str | None = connection.value("find_message_id", {"message_no": message_no})
    return found


def list_leaves(connection: Connection, session_id: str) -> list[Row]:
    """The ends of a session's branches, oldest first: `message_no`, `message_id`, `role`."""
    return connection.all("list_leaves", {"session_id": session_id})
