"""Deletes messages from a session's tree and updates the session's counts, inside the writer's transaction."""

from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.context import placed_messages
from proxy.storage.queries.exchanges import ExchangeRow, Unfinished
from proxy.wire import json_text


def remove_exchange(connection: Connection, row: ExchangeRow) -> None:
    """Deletes an exchange and its replies. A reply with children stays in the session."""
    # Before the exchange is deleted, through which its replies are found.
    replies = queries.messages.list_replies(connection, row)
    queries.exchanges.delete_exchange(connection, row.exchange_id)
    _remove_replies(connection, row, replies)


def remove_guessed_replies(connection: Connection, exchange: Unfinished) -> dict[bytes, int]:
    """Deletes the replies that recovery built from a process's fragments. Returns those with children, which stay, by
    chain hash."""
    _remove_replies(connection, exchange, queries.messages.list_replies(connection, exchange))
    stayed = {}
    for message_no in queries.messages.list_replies(connection, exchange):
        node = queries.messages.get_node(connection, message_no)
        assert node is not None
        stayed[node.chain_hash] = message_no
    return stayed


def _remove_replies(connection: Connection, row: ExchangeRow | Unfinished, replies: list[int]) -> None:
    removed: dict[int, int] = {}
    for message_no in replies:
        tokens = queries.messages.delete_message_at_end(connection, message_no, session_no=row.session_no)
        if tokens is not None:
            removed[message_no] = tokens
    if removed:
        _subtract_from_counts(connection, row.session_id, removed, above=row.leaf_no)


def remove_message(connection: Connection, message_no: int, *, session_id: str) -> None:
    """Deletes one message; its children move to its parent.

    Their hashes stay, so a client that still sends the message continues at the same place.
    """
    node = queries.messages.get_node(connection, message_no)
    assert node is not None
    # This and the next come before the children get another parent, by which they are found.
    if node.root_no == message_no:
        queries.tree.move_root(connection, message_no, session_id=session_id)
    queries.tree.raise_subtree(connection, message_no, session_id=session_id)
    queries.messages.reparent(connection, message_no, session_id=session_id, parent_no=node.parent_no)
    queries.exchanges.move_requests(connection, message_no, session_id=session_id, parent_no=node.parent_no)
    _forget_context(connection, message_no, session_id=session_id)
    tokens = queries.messages.delete_message(connection, message_no)
    _subtract_from_counts(connection, session_id, {message_no: tokens}, above=node.parent_no)


def _forget_context(connection: Connection, message_no: int, *, session_id: str) -> None:
    """Removes a deleted system message from the contexts of requests."""
    for exchange_id, context in queries.exchanges.list_contexts(connection, session_id):
        placed = placed_messages(context)
        left = [place for place in placed if place[1] != message_no]
        if len(left) < len(placed):
            queries.exchanges.update_context(connection, exchange_id, json_text.dumps(left) if left else None)


def _subtract_from_counts(
    connection: Connection, session_id: str, removed: dict[int, int], *, above: int | None
) -> None:
    """Subtracts the removed messages (number to tokens) from the session's counts.

    If the session's newest leaf was removed, its leaf becomes the newest one below `above`.
    """
    session = queries.sessions.get_session(connection, session_id)
    assert session is not None
    leaf_no = session.leaf_no
    if leaf_no in removed:
        leaf_no = queries.messages.newest_message_no(connection, session_id)
        if above is not None:
            leaf_no = queries.messages.newest_leaf_below(connection, above, session_no=session.session_no)
    queries.sessions.shrink_session(
        connection, session_id=session_id, messages=len(removed), tokens=sum(removed.values()), leaf_no=leaf_no
    )
