"""Finds, creates or renames the session that an exchange belongs to."""

import time

from proxy.ids import timestamp
from proxy.storage import message_tree, queries, tombstones
from proxy.storage.connection import Connection
from proxy.storage.exchange import Exchange
from proxy.storage.queries.messages import StitchCandidate
from proxy.storage.queries.sessions import Session
from proxy.storage.write_batch import WriteBatch
from proxy.wire import hash_chain
from proxy.wire.message import DEFAULT_TITLE, title_of
from proxy.wire.system_messages import is_title_request

# How many of the newest conversations with the same beginning are compared.
_ALIKE = 64
# A title request has at most this many messages.
_BEGINNING = 8


def list_stitched(connection: Connection, exchange: Exchange) -> list[StitchCandidate]:
    """Candidate positions that a request continues, best first: the longest stored prefix that ends with a reply.

    If several conversations share the prefix, one without later messages comes first, so that they stay separate even
    if another one continued with the same question.
    """
    exact = hash_chain.exact_chain(exchange.user_id, exchange.chained)
    chains = zip(exchange.chain, exchange.chain if exact is None else exact, strict=True)
    ends = [pair for message, pair in zip(exchange.chained, chains, strict=True) if message["role"] == "assistant"]
    hashes = (hash_ for pair in reversed(ends) for hash_ in dict.fromkeys(pair))
    return sorted(queries.messages.list_prefix(connection, hashes, limit=_ALIKE), key=lambda place: place.goes_on)


def find_failed(connection: Connection, exchange: Exchange, *, seconds: float) -> str | None:
    """The session in which the same request recently failed, in any worker."""
    if not exchange.chained:
        return None
    since = timestamp(time.time() - seconds)
    return queries.exchanges.find_failed_request(connection, exchange.chain[-1], since=since, limit=_ALIKE)


def find_named(connection: Connection, exchange: Exchange) -> str | None:
    """The session named by the id in the request."""
    exchange.chain  # noqa: B018 - computed here, in parallel with upstream, instead of in the writer
    return queries.sessions.find_session_id(
        connection, id_=exchange.session.external_id or "", user_id=exchange.user_id
    )


def find_session(rows: WriteBatch, exchange: Exchange) -> Session | None:
    """The exchange's session, if it exists."""
    ref = exchange.session
    if ref.external_id is not None:
        connection = rows.about(ref.external_id)
        session_id = queries.sessions.find_session_id(connection, id_=ref.external_id, user_id=exchange.user_id)
    else:
        session_id = None if exchange.is_session_new else ref.session_id
    return None if session_id is None else queries.sessions.get_session(rows.about(session_id), session_id)


def make_session(rows: WriteBatch, exchange: Exchange, *, now: str) -> message_tree.InsertPosition:
    """Creates the exchange's session; returns the position of its first message."""
    ref = exchange.session
    session_no = rows.add_session(
        {
            "session_id": ref.session_id,
            "user_id": exchange.user_id,
            "external_id": ref.external_id,
            "title": title_of(exchange.messages),
            "metadata": None,
            "created_at": now,
            "updated_at": now,
        }
    )
    return message_tree.InsertPosition(ref.session_id, session_no, None, 0, hash_chain.root_hash(exchange.user_id))


def get_or_create_session(
    connection: Connection, *, user_id: str, external_id: str, session_id: str, title: str, asked_at: str
) -> str:
    """Returns the session with a client-defined id; inserts it with `session_id` if missing.

    Inserts nothing if the user was deleted after the chat was requested (`asked_at`).
    """
    if tombstones.was_deleted(connection, user_id=user_id, session_id=session_id, asked_at=asked_at):
        return session_id
    now = timestamp()
    known = queries.sessions.find_session_id(connection, id_=external_id, user_id=user_id)
    if known is not None:
        return known
    queries.users.upsert_user(connection, user_id=user_id, now=now)
    queries.sessions.insert_session(
        connection,
        session_id=session_id,
        user_id=user_id,
        external_id=external_id,
        title=title,
        metadata=None,
        now=now,
    )
    return session_id


def retitle(connection: Connection, session: Session, exchange: Exchange) -> None:
    """Renames a session that got its title from a title request, once a real conversation begins in it."""
    title = title_of(exchange.messages)
    if title in (session.title, DEFAULT_TITLE) or is_title_request(exchange.messages):
        return
    first = queries.tree.list_first_texts(connection, session.session_id, limit=_BEGINNING)
    asked = [message for message in first if message["exchange_no"] == first[0]["exchange_no"]]
    named_by = [[{"role": "user", "content": session.title}]]
    if title_of(asked) == session.title:
        named_by.append(asked)
    if any(map(is_title_request, named_by)):
        queries.tree.update_title(connection, session.session_id, title)
