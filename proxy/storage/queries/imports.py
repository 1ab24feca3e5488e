"""Queries of an import; existing rows are kept."""

from typing import NamedTuple

from proxy.storage.connection import Connection, Row


class Place(NamedTuple):
    """A message's position in the tree."""

    message_no: int
    depth: int
    session_id: str


def import_user(connection: Connection, row: Row) -> None:
    """Inserts a user, or widens the dates of an existing one."""
    connection.changes("import_user", row)


def import_session(connection: Connection, row: Row) -> bool:
    """Inserts a session; returns whether it is new."""
    return connection.changes("import_session", row) > 0


def import_blob(connection: Connection, *, digest: str, data: str) -> bool:
    """Inserts a blob; returns whether it is new."""
    return connection.changes("import_blob", {"digest": digest, "data": data}) > 0


def insert_message_blob(connection: Connection, *, message_no: int, digest: str) -> None:
    """Links a message to a blob."""
    connection.changes("insert_message_blob", {"message_no": message_no, "digest": digest})


def set_exchange(connection: Connection, *, message_no: int, exchange_no: int) -> None:
    """Sets the exchange of a message that was imported before it."""
    connection.changes("set_exchange", {"message_no": message_no, "exchange_no": exchange_no})


def set_root(connection: Connection, message_no: int) -> None:
    """Marks a message as the first of a conversation."""
    connection.changes("set_root", {"message_no": message_no})


def find_place(connection: Connection, message_id: str) -> Place | None:
    """The position of the message with this id, if it exists."""
    row = connection.one("find_place", {"message_id": message_id})
    return None if row is None else Place(**row)


def find_exchange_session(connection: Connection, exchange_no: int) -> int | None:
    """The row number of an exchange's session."""
    number: int | None = connection.value("find_exchange_session", {"exchange_no": exchange_no})
    return number


def settle_session(connection: Connection, *, session_id: str, leaf_id: str | None, updated_at: str) -> None:
    """Recomputes a session's counts after an import."""
    connection.changes("settle_session", {"session_id": session_id, "leaf_id": leaf_id, "updated_at": updated_at})
