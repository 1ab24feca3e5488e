"""Queries of retention: old sessions, and parts of large ones."""

from proxy.storage.connection import Connection


def list_old_sessions(connection: Connection, *, before: str, is_active: bool, limit: int) -> list[str]:
    """Sessions without activity since `before`, least recently active first."""
    return connection.values("list_old_sessions", {"before": before, "is_active": is_active, "limit": limit})


def count_old_sessions(connection: Connection, *, before: str) -> tuple[int, int]:
    """How many sessions are older, and how many messages they have."""
    row = connection.one("count_old_sessions", {"before": before})
    assert row is not None
    return row["sessions"], row["messages"]


def count_rows_up_to(connection: Connection, session_id: str, *, most: int) -> tuple[int, int]:
    """The numbers of messages and exchanges of a session; counting stops at `most`."""
    row = connection.one("count_rows_up_to", {"session_id": session_id, "most": most})
    assert row is not None
    return row["messages"], row["exchanges"]


def delete_newest_messages(connection: Connection, session_id: str, *, limit: int) -> list[int]:
    """Deletes a session's newest messages; returns the tokens of each."""
    return connection.values("delete_newest_messages", {"session_id": session_id, "limit": limit})


def delete_newest_exchanges(connection: Connection, session_id: str, *, limit: int) -> None:
    connection.changes("delete_newest_exchanges", {"session_id": session_id, "limit": limit})


def shorten_session(connection: Connection, session_id: str, *, messages: int, tokens: int) -> None:
    """Subtracts deleted messages from a session's counts."""
    parameters = {"session_id": session_id, "messages": messages, "tokens": tokens}
    connection.changes("shorten_session", parameters)
