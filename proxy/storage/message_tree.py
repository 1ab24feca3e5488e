"""The tree of a session's messages: where a request goes on in it, and the storing of what is not there yet."""

from dataclasses import dataclass
from typing import Any, Protocol

from proxy.ids import uuid7
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.exchange import Exchange
from proxy.storage.queries.responses import insert_response_items
from proxy.storage.queries.sessions import Session
from proxy.storage.write_batch import SessionDelta, WriteBatch
from proxy.wire import hash_chain, json_text
from proxy.wire.dialect import item_ids_of
from proxy.wire.message import to_columns

# How far back from the end of a session the messages of a client that drops old turns are looked for.
_WINDOW = 256


@dataclass(slots=True)
class InsertPosition:
    """Where the next message of a session goes: below `parent_no`, with `above` as the chain hash of what is above."""

    session_id: str
    session_no: int
    parent_no: int | None
    depth: int
    above: bytes


class Owner(Protocol):
    """What has a session's ids: a session, or an exchange of it."""

    @property
    def session_id(self) -> str: ...
    @property
    def session_no(self) -> int: ...
    @property
    def user_id(self) -> str: ...


def find_place(connection: Connection, session: Session, exchange: Exchange) -> tuple[InsertPosition, int]:
    """Where a request goes on in its session, and how many of its chained messages are stored above that place."""
    chained, hashes = exchange.chained, exchange.chain
    hit = (
        queries.messages.find_prefix_in_session(connection, reversed(hashes), session_no=session.session_no)
        if hashes
        else None
    )
    matched = len(hashes) - hit[0] if hit else 0
    node_no = hit[1] if hit else None
    if any(message["role"] == "assistant" for message in chained[matched:]):
        aligned = _align(connection, session, chained)
        if aligned is not None and aligned[1] > matched:
            node_no, matched = aligned
    if node_no is None:
        return end_of(connection, session), 0
    return below(connection, session, node_no), matched


def _align(connection: Connection, session: Session, chained: list[dict[str, Any]]) -> tuple[int, int] | None:
    """The run of a session's last messages that a request without the older turns begins with, if it holds a reply."""
    if session.leaf_no is None:
        return None
    nodes = queries.messages.list_ancestors(connection, session.leaf_no, session_id=session.session_id, limit=_WINDOW)
    tail = [node for node in reversed(nodes) if node.role not in hash_chain.UNCHAINED_ROLES]
    for start in range(len(tail) - 1, 0, -1):
        length = 0
        while (
            start + length < len(tail)
            and length < len(chained)
            and hash_chain.chain_hash(tail[start + length - 1].chain_hash, chained[length])
            == tail[start + length].chain_hash
        ):
            length += 1
        if any(message["role"] == "assistant" for message in chained[:length]):
            return tail[start + length - 1].message_no, length
    return None


def end_of(connection: Connection, session: Session) -> InsertPosition:
    """The place under a session's newest leaf."""
    if session.leaf_no is None:
        return top(session)
    return below(connection, session, session.leaf_no)


def top(session: Owner) -> InsertPosition:
    """The place of a session's first message."""
    return InsertPosition(session.session_id, session.session_no, None, 0, hash_chain.root_hash(session.user_id))


def below(connection: Connection, session: Owner, message_no: int) -> InsertPosition:
    """The place under a stored message; its hash is that of the nearest chained message."""
    place = top(session)
    node = queries.messages.get_node(connection, message_no)
    assert node is not None
    place.parent_no, place.depth = node.message_no, node.depth + 1
    if node.role not in hash_chain.UNCHAINED_ROLES:
        place.above = node.chain_hash
        return place
    for ancestor in queries.messages.list_ancestors(connection, message_no, session_id=session.session_id):
        if ancestor.role not in hash_chain.UNCHAINED_ROLES:
            place.above = ancestor.chain_hash
            break
    return place


def store_messages(
    rows: WriteBatch, exchange: Exchange, place: InsertPosition, matched: int, delta: SessionDelta, *, exchange_no: int
) -> str | None:
    """Store the request's messages from `place` on, but for the first `matched` chained ones, which are above it.

    System messages stay out of the link: one that the session has is not stored again, a changed one goes where the
    conversation stands. Which of them this request sent, and where, is its context: JSON text. One that stood before
    all else stands there also when the request had left older turns out.
    """
    if len(exchange.chained) == len(exchange.messages):
        for message in exchange.messages[matched:]:
            store(rows, place, message, delta, exchange_no=exchange_no)
        return None
    context: list[tuple[int | None, int]] = []
    chained = to_come = len(exchange.chained)
    for message in exchange.messages:
        if message["role"] not in hash_chain.UNCHAINED_ROLES:
            to_come -= 1
            if chained - to_come > matched:
                store(rows, place, message, delta, exchange_no=exchange_no)
        else:
            number = _store_unchained(rows, place, message, delta, exchange_no=exchange_no)
            context.append((None if to_come == chained else to_come, number))
    return json_text.dumps(context)


def _store_unchained(
    rows: WriteBatch, place: InsertPosition, message: dict[str, Any], delta: SessionDelta, *, exchange_no: int
) -> int:
    node = None
    if place.parent_no is not None:  # else the session is empty
        connection = rows.about(place.session_id)
        node = queries.messages.find_node_by_hash(connection, hash_chain.own_hash(message), session_no=place.session_no)
    if node is None:
        return store(rows, place, message, delta, exchange_no=exchange_no)
    if node.parent_no == place.parent_no:
        place.parent_no, place.depth = node.message_no, node.depth + 1
    return node.message_no


def store(rows: WriteBatch, place: InsertPosition, message: dict[str, Any], delta: SessionDelta, **columns: Any) -> int:
    """Store a message at a place, and move the place below it; its number."""
    is_chained = hash_chain.is_chained(message)
    chain_hash = hash_chain.chain_hash(place.above, message) if is_chained else hash_chain.own_hash(message)
    number = insert(rows, place, message, delta, chain_hash=chain_hash, **columns)
    if is_chained:
        place.above = chain_hash
    place.parent_no, place.depth = number, place.depth + 1
    return number


def insert(
    rows: WriteBatch,
    place: InsertPosition,
    message: dict[str, Any],
    delta: SessionDelta,
    *,
    chain_hash: bytes,
    exchange_no: int | None = None,
    tokens: int = 0,
    model: str | None = None,
    metadata: str | None = None,
    choice: str | None = None,
    status: str = "completed",
) -> int:
    """Store a message at a place that stays where it is; its number."""
    said = to_columns(message)
    number = rows.add_message(
        {
            "message_id": uuid7(),
            "session_id": place.session_id,
            "session_no": place.session_no,
            "parent_no": place.parent_no,
            "depth": place.depth,
            "chain_hash": chain_hash,
            "exchange_no": exchange_no,
            "role": said.role,
            "content": said.content,
            "content_form": said.content_form,
            "extra": said.extra,
            "wire": said.wire,
            "choice": choice,
            "model": model,
            "tokens": tokens,
            "status": status,
            "metadata": metadata,
            "created_at": delta.now,
        },
        blobs=said.blobs,
    )
    delta.messages += 1
    delta.tokens += tokens
    delta.leaf_no = number
    return number


def adopt(
    connection: Connection,
    place: InsertPosition,
    message: dict[str, Any],
    delta: SessionDelta,
    *,
    tokens: int,
    **told: Any,
) -> bool:
    """Whether a later request has stored this reply as part of its history; that copy is the reply now."""
    said = to_columns(message)
    number = queries.messages.adopt_reply(
        connection,
        {
            "session_no": place.session_no,
            "content": said.content,
            "content_form": said.content_form,
            "extra": said.extra,
            "wire": said.wire,
            "tokens": tokens,
            **told,
        },
    )
    if number is None:
        return False
    for digest, data in said.blobs.items():
        queries.messages.insert_blob(connection, message_no=number, digest=digest, data=data)
    insert_response_items(connection, item_ids_of(message), message_no=number)
    delta.tokens += tokens
    return True
