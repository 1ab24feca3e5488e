"""Takes messages out of a session's tree, and keeps what the session counts right. Inside the writer's transaction."""

import sqlite3

from proxy import queries
from proxy.queries import ExchangeRow


def remove_exchange(connection: sqlite3.Connection, row: ExchangeRow) -> None:
    """Delete an exchange and its replies. A reply that the conversation goes on from stays in the session."""
    replies = queries.list_replies(connection, row)
    queries.delete_exchange(connection, row.exchange_id)
    removed: dict[int, int] = {}
    for message_no in replies:
        tokens = queries.delete_message_at_end(connection, message_no, session_id=row.session_id)
        if tokens is not None:
            removed[message_no] = tokens
    if removed:
        _shrink(connection, row.session_id, removed)


def _shrink(connection: sqlite3.Connection, session_id: str, removed: dict[int, int]) -> None:
    """Count the removed messages, given with their tokens, out of the session."""
    session = queries.get_session(connection, session_id)
    assert session is not None
    leaf_no = session.leaf_no
    if leaf_no in removed:
        leaf_no = queries.newest_message_no(connection, session_id)
    queries.shrink_session(
        connection, session_id=session_id, messages=len(removed), tokens=sum(removed.values()), leaf_no=leaf_no
    )
