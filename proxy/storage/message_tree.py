"""The tree of a session's messages: insert positions, and inserting the messages that are not stored yet."""

from dataclasses import dataclass
from typing import Any, Protocol

from proxy.ids import uuid7
from proxy.storage import ancestry, queries
from proxy.storage.connection import Connection
from proxy.storage.exchange import Exchange
from proxy.storage.queries.responses import insert_response_items
from proxy.storage.queries.sessions import Session
from proxy.storage.write_batch import SessionDelta, WriteBatch
from proxy.wire import hash_chain, json_text
from proxy.wire.dialect import item_ids_of
from proxy.wire.message import to_columns

# Placeholder for the number of a message that is not stored yet: the next message starts a conversation.
NEW_ROOT = 0


@dataclass(slots=True)
class InsertPosition:
    """Where the next message of a session is inserted: below `parent_no`; `above` is the chain hash of its ancestors.

    `root_no` is the first message of its conversation; None for the session's first conversation.
    """

    session_id: str
    session_no: int
    parent_no: int | None
    depth: int
    above: bytes
    root_no: int | None = None


class Owner(Protocol):
    """Anything with a session's ids: a session, or an exchange in it."""

    @property
    def session_id(self) -> str: ...
    @property
    def session_no(self) -> int: ...
    @property
    def user_id(self) -> str: ...


def end_of(connection: Connection, session: Session) -> InsertPosition:
    """The position below the session's newest leaf."""
    if session.leaf_no is None:
        return top(session)
    return below(connection, session, session.leaf_no)


def top(session: Owner) -> InsertPosition:
    """The position of the session's first message."""
    return InsertPosition(session.session_id, session.session_no, None, 0, hash_chain.root_hash(session.user_id))


def beginning(session: Owner) -> InsertPosition:
    """The position of the first message of an additional conversation."""
    place = top(session)
    place.root_no = NEW_ROOT
    return place


def beginning_below(connection: Connection, session: Owner, message_no: int) -> InsertPosition:
    """The position of the first message of a conversation that is displayed below another conversation's message."""
    place, node = beginning(session), queries.messages.get_node(connection, message_no)
    assert node is not None
    place.parent_no, place.depth = node.message_no, node.depth + 1
    return place


def below(connection: Connection, session: Owner, message_no: int) -> InsertPosition:
    """The position below a stored message. `above` is the hash of the nearest chained message of its conversation."""
    place = top(session)
    node = queries.messages.get_node(connection, message_no)
    assert node is not None
    place.parent_no, place.depth, place.root_no = node.message_no, node.depth + 1, node.root_no
    if node.role not in hash_chain.UNCHAINED_ROLES:
        place.above = node.chain_hash
        return place
    for ancestor in queries.messages.list_ancestors(connection, message_no, session_id=session.session_id):
        if ancestor.root_no != node.root_no:
            break  # its parent belongs to another conversation
        if ancestor.role not in hash_chain.UNCHAINED_ROLES:
            place.above = ancestor.chain_hash
            break
    return place


def below_prefix(session: Owner, prefix: queries.tree.Prefix, chain_hash: bytes) -> InsertPosition:
    """Like `below`, for the stored message of a prefix, which was read with its position."""
    depth = prefix.depth + 1
    return InsertPosition(session.session_id, session.session_no, prefix.message_no, depth, chain_hash, prefix.root_no)


def store_messages(
    rows: WriteBatch, exchange: Exchange, place: InsertPosition, matched: int, delta: SessionDelta, *, exchange_no: int
) -> str | None:
    """Stores the request's messages from `place` on, except the first `matched` chained ones, which are stored above
    it.

    System messages are not chained: one that the session already has is not stored again, a changed one is inserted at
    the current position. Returns the request's context as JSON text: which system messages it had, and where. A leading
    system message keeps that position even if the request has dropped older turns.
    """
    # Computed before the transaction, unless the client has dropped older turns: hashing long histories is slow.
    hashes = exchange.chain_below(place.above, matched=matched)
    if len(exchange.chained) == len(exchange.messages):
        for message, chain_hash in zip(exchange.messages[matched:], hashes, strict=True):
            store(rows, place, message, delta, chain_hash=chain_hash, exchange_no=exchange_no)
        return None
    context: list[tuple[int | None, int]] = []
    own_hashes = iter(exchange.own_hashes)
    chained = to_come = len(exchange.chained)
    for message in exchange.messages:
        if message["role"] not in hash_chain.UNCHAINED_ROLES:
            to_come -= 1
            if chained - to_come > matched:
                chain_hash = hashes[chained - to_come - matched - 1]
                store(rows, place, message, delta, chain_hash=chain_hash, exchange_no=exchange_no)
        else:
            number = _store_unchained(rows, place, message, delta, own_hash=next(own_hashes), exchange_no=exchange_no)
            context.append((None if to_come == chained else to_come, number))
    return json_text.dumps(context)


def _store_unchained(
    rows: WriteBatch,
    place: InsertPosition,
    message: dict[str, Any],
    delta: SessionDelta,
    *,
    own_hash: bytes,
    exchange_no: int,
) -> int:
    node = None
    if place.parent_no is not None or place.root_no is not None:  # else the session is empty
        connection = rows.about(place.session_id)
        node = queries.messages.find_node_by_hash(connection, own_hash, session_no=place.session_no)
    if node is None:
        return store(rows, place, message, delta, chain_hash=own_hash, exchange_no=exchange_no)
    if node.parent_no == place.parent_no and place.root_no != NEW_ROOT:
        place.parent_no, place.depth = node.message_no, node.depth + 1
    return node.message_no


def store(
    rows: WriteBatch,
    place: InsertPosition,
    message: dict[str, Any],
    delta: SessionDelta,
    *,
    chain_hash: bytes | None = None,
    **columns: Any,
) -> int:
    """Inserts a message at a position and moves the position below it; returns its number.

    `chain_hash`: its hash at this position, if it is known.
    """
    is_chained = hash_chain.is_chained(message)
    if chain_hash is None:
        chain_hash = hash_chain.chain_hash(place.above, message) if is_chained else hash_chain.own_hash(message)
    number = insert(rows, place, message, delta, chain_hash=chain_hash, **columns)
    if is_chained:
        place.above = chain_hash
    if place.root_no == NEW_ROOT:
        place.root_no = number
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
    """Inserts a message without moving the position; returns its number."""
    said = to_columns(message)
    number = rows.add_message(
        {
            "message_id": uuid7(),
            "session_id": place.session_id,
            "session_no": place.session_no,
            "parent_no": place.parent_no,
            "depth": place.depth,
            "chain_hash": chain_hash,
            "root_no": place.root_no,
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
    # A page of a long branch then costs a page and not the branch.
    if ancestry.wants_jump(place.depth):
        rows.add_jump(ancestry.jump_of(number, depth=place.depth))
    return number


def adopt(
    connection: Connection,
    place: InsertPosition,
    message: dict[str, Any],
    delta: SessionDelta,
    *,
    tokens: int,
    message_no: int | None = None,
    **told: Any,
) -> bool:
    """Whether a later request has stored this reply as part of its history, or it is stored as `message_no`. That copy
    then becomes the reply."""
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
            "message_no": message_no,
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
