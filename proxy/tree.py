"""The tree of a session's messages: where a request goes on in it, and the storing of what is not there yet."""

import sqlite3
from dataclasses import dataclass, field
from typing import Any

from proxy import jsontext, queries, thread
from proxy.exchange import Exchange
from proxy.ids import timestamp, uuid7
from proxy.message import Columns, to_columns
from proxy.queries import Session

# How far back from the end of a session the messages of a client that drops old turns are looked for.
_WINDOW = 256


@dataclass(slots=True)
class Place:
    """Where the next message goes: below `parent_no`, with `above` as the chain hash of what is above it."""

    parent_no: int | None
    depth: int
    above: bytes


@dataclass(slots=True)
class Tally:
    """What one transaction stores below a session, and when."""

    now: str = field(default_factory=timestamp)
    messages: int = 0
    tokens: int = 0
    leaf_no: int | None = None


def find_place(connection: sqlite3.Connection, session_id: str, exchange: Exchange) -> tuple[Place, int]:
    """Where a request goes on in its session, and how many of its linked messages are stored above that place."""
    linked, hashes = exchange.linked, exchange.chain
    hit = queries.find_prefix_in_session(connection, reversed(hashes), session_id=session_id) if hashes else None
    matched = len(hashes) - hit[0] if hit else 0
    node_no = hit[1] if hit else None
    session = queries.get_session(connection, session_id)
    assert session is not None
    if any(message["role"] == "assistant" for message in linked[matched:]):
        aligned = _align(connection, session, linked)
        if aligned is not None and aligned[1] > matched:
            node_no, matched = aligned
    if node_no is None:
        return end_of(connection, session), 0
    return below(connection, session_id, node_no), matched


def _align(connection: sqlite3.Connection, session: Session, linked: list[dict[str, Any]]) -> tuple[int, int] | None:
    """The run of a session's last messages that a request without the older turns begins with, if it holds a reply."""
    if session.leaf_no is None:
        return None
    nodes = queries.list_ancestors(connection, session.leaf_no, session_id=session.session_id, limit=_WINDOW)
    tail = [node for node in reversed(nodes) if node.role not in thread.UNLINKED_ROLES]
    for start in range(len(tail) - 1, 0, -1):
        length = 0
        while (
            start + length < len(tail)
            and length < len(linked)
            and thread.chain_hash(tail[start + length - 1].chain_hash, linked[length])
            == tail[start + length].chain_hash
        ):
            length += 1
        if any(message["role"] == "assistant" for message in linked[:length]):
            return tail[start + length - 1].message_no, length
    return None


def end_of(connection: sqlite3.Connection, session: Session) -> Place:
    """The place under a session's newest leaf."""
    if session.leaf_no is None:
        return Place(None, 0, thread.root_hash(session.user_id))
    return below(connection, session.session_id, session.leaf_no)


def below(connection: sqlite3.Connection, session_id: str, message_no: int) -> Place:
    """The place under a stored message; its hash is that of the nearest linked message."""
    node = queries.get_node(connection, message_no)
    assert node is not None
    if node.role not in thread.UNLINKED_ROLES:
        return Place(node.message_no, node.depth + 1, node.chain_hash)
    ancestors = queries.list_ancestors(connection, message_no, session_id=session_id)
    linked = [each.chain_hash for each in ancestors if each.role not in thread.UNLINKED_ROLES]
    if linked:
        return Place(node.message_no, node.depth + 1, linked[0])
    session = queries.get_session(connection, session_id)
    assert session is not None
    return Place(node.message_no, node.depth + 1, thread.root_hash(session.user_id))


def store_messages(
    connection: sqlite3.Connection,
    session_id: str,
    exchange: Exchange,
    place: Place,
    matched: int,
    tally: Tally,
) -> str | None:
    """Store the request's messages from `place` on, but for the first `matched` linked ones, which are above it.

    System messages stay out of the link: one that the session has is not stored again, a changed one goes where the
    conversation stands. Which of them this request sent, and where, is its context: JSON text. One that stood before
    all else stands there also when the request had left older turns out.
    """
    if len(exchange.linked) == len(exchange.messages):
        for message in exchange.messages[matched:]:
            store(connection, session_id, place, message, tally, exchange_id=exchange.exchange_id)
        return None
    context: list[tuple[int | None, int]] = []
    linked = to_come = len(exchange.linked)
    for message in exchange.messages:
        if message["role"] not in thread.UNLINKED_ROLES:
            to_come -= 1
            if linked - to_come > matched:
                store(connection, session_id, place, message, tally, exchange_id=exchange.exchange_id)
        else:
            number = _store_unlinked(connection, session_id, place, message, tally, exchange.exchange_id)
            context.append((None if to_come == linked else to_come, number))
    return jsontext.dumps(context)


def _store_unlinked(
    connection: sqlite3.Connection,
    session_id: str,
    place: Place,
    message: dict[str, Any],
    tally: Tally,
    exchange_id: str,
) -> int:
    node = queries.find_node_by_hash(connection, thread.own_hash(message), session_id=session_id)
    if node is None:
        return store(connection, session_id, place, message, tally, exchange_id=exchange_id)
    if node.parent_no == place.parent_no:
        place.parent_no, place.depth = node.message_no, node.depth + 1
    return node.message_no


def store(
    connection: sqlite3.Connection,
    session_id: str,
    place: Place,
    message: dict[str, Any],
    tally: Tally,
    **columns: Any,
) -> int:
    """Store a message at a place, and move the place below it; its number."""
    is_linked = thread.is_linked(message)
    chain_hash = thread.chain_hash(place.above, message) if is_linked else thread.own_hash(message)
    number = insert(connection, session_id, place, message, tally, chain_hash=chain_hash, **columns)
    if is_linked:
        place.above = chain_hash
    place.parent_no, place.depth = number, place.depth + 1
    return number


def insert(
    connection: sqlite3.Connection,
    session_id: str,
    place: Place,
    message: dict[str, Any],
    tally: Tally,
    *,
    chain_hash: bytes,
    exchange_id: str | None = None,
    tokens: int = 0,
    model: str | None = None,
    metadata: str | None = None,
    choice: str | None = None,
    status: str = "completed",
) -> int:
    """Store a message at a place that stays where it is; its number."""
    columns = to_columns(message)
    number = queries.insert_message(
        connection,
        {
            "message_id": uuid7(),
            "session_id": session_id,
            "parent_no": place.parent_no,
            "depth": place.depth,
            "chain_hash": chain_hash,
            "exchange_id": exchange_id,
            "role": columns.role,
            "content": columns.content,
            "content_form": columns.content_form,
            "extra": columns.extra,
            "choice": choice,
            "model": model,
            "tokens": tokens,
            "status": status,
            "metadata": metadata,
            "created_at": tally.now,
        },
    )
    _store_blobs(connection, number, columns)
    tally.messages += 1
    tally.tokens += tokens
    tally.leaf_no = number
    return number


def _store_blobs(connection: sqlite3.Connection, message_no: int, columns: Columns) -> None:
    for digest, data in columns.blobs.items():
        queries.insert_blob(connection, message_no=message_no, digest=digest, data=data)
