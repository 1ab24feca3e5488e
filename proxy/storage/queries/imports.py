"""Rows of an export, put into this database; what is there already stays."""

from typing import NamedTuple

from proxy.storage.connection import Connection, Row


class Place(NamedTuple):
    """Where a message stands."""

    message_no: int
    depth: int
    session_id: str


def import_user(connection: Connection, row: Row) -> None:
    """Add a user, or widen the dates of one that is there."""
    connection.changes("import_user", row)


def import_session(connection: Connection, row: Row) -> bool:
    """Add a session; whether it is new."""
    return connection.changes("import_session", row) > 0


def import_blob(connection: Connection, *, digest: str, data: str) -> bool:
    """Add a large part of a message; whether it is new."""
    return connection.changes("import_blob", {"digest": digest, "data": data}) > 0


def insert_message_blob(connection: Connection, *, message_no: int, digest: str) -> None:
    """A message has this large part."""
    connection.changes("insert_message_blob", {"message_no": message_no, "digest": digest})


def set_exchange(connection: Connection, *, message_no: int, exchange_no: int) -> None:
    """The exchange of a message that came before it."""
    connection.changes("set_exchange", {"message_no": message_no, "exchange_no": exchange_no})


def set_root(connection: Connection, message_no: int) -> None:
    """A message begins a conversation."""
    connection.changes("set_root", {"message_no": message_no})


def find_place(connection: Connection, message_id: str) -> Place | None:
    """Where the message with this id stands, if it is there."""
    row = connection.one("find_place", {"message_id": message_id})
    return None if row is None else Place(**row)


def find_exchange_session(connection: Connection, exchange_no: int) -> int | None:
    """The number of the session that an exchange is of."""
    number: int | None = connection.value("find_exchange_session", {"exchange_no": exchange_no})
    return number


def settle_session(connection: Connection, *, session_id: str, leaf_id: str | None, updated_at: str) -> None:
    """Count a session's messages after an import."""
    connection.changes("settle_session", {"session_id": session_id, "leaf_id": leaf_id, "updated_at": updated_at})
