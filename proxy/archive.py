"""Writes exchanges: the messages of a request and its reply into the session's tree, and what became of it.

Everything here runs inside the writer's transaction. The place is looked for again at that moment, so that two chats
that race from the same point cannot store a message twice.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from proxy import jsontext, queries, thread, tree
from proxy.completion import Choice, Completion
from proxy.exchange import Exchange, Outcome
from proxy.exchange_row import ended_row, request_row
from proxy.ids import timestamp
from proxy.message import title_of
from proxy.queries import ExchangeRow, Session
from proxy.sse import Decoder


def begin(connection: sqlite3.Connection, exchange: Exchange, *, worker_id: str) -> None:
    """Store the request of an exchange whose reply is still coming."""
    if queries.get_exchange(connection, exchange.exchange_id) is not None:
        return  # replayed
    tally = tree.Tally()
    row, _ = _store_request(connection, exchange, tally)
    queries.insert_exchange(connection, replace(row, worker_id=worker_id))
    _touch(connection, row.session_id, tally)


def append_fragment(connection: sqlite3.Connection, *, exchange_id: str, sequence: int, data: bytes) -> None:
    """Store what a reply in progress has streamed since the last time."""
    row = queries.get_exchange(connection, exchange_id)
    if row is not None and row.status == "in_progress":
        queries.insert_fragment(connection, exchange_id=exchange_id, sequence=sequence, data=data)


def finish(connection: sqlite3.Connection, exchange: Exchange, outcome: Outcome, *, is_begun: bool) -> None:
    """Store an exchange that has ended, once. One that was begun and is gone since was deleted with its session."""
    row = queries.get_exchange(connection, exchange.exchange_id)
    tally = tree.Tally()
    if row is None and not is_begun:
        row, place = _store_request(connection, exchange, tally)
        ended = ended_row(row, outcome)
        queries.insert_exchange(connection, ended)
        _store_reply(connection, ended, place, outcome, tally)
        _touch(connection, row.session_id, tally)
    elif row is not None and row.status == "in_progress":
        _finish_row(connection, row, outcome)


def recover(connection: sqlite3.Connection, worker_id: str) -> int:
    """End the exchanges of a process that is gone as `incomplete`, with what they had streamed. How many there were."""
    exchange_ids = queries.list_exchanges_in_progress(connection, worker_id)
    for exchange_id in exchange_ids:
        row = queries.get_exchange(connection, exchange_id)
        assert row is not None
        _finish_row(connection, row, _interrupted(connection, exchange_id))
    return len(exchange_ids)


def claim_session(
    connection: sqlite3.Connection, *, user_id: str, external_id: str, session_id: str, title: str
) -> str:
    """The session of a client's own id, made with `session_id` where there is none yet."""
    now = timestamp()
    queries.upsert_user(connection, user_id=user_id, now=now)
    return _make_session(
        connection, user_id=user_id, external_id=external_id, session_id=session_id, title=title, now=now
    )[0]


def append_message(
    connection: sqlite3.Connection,
    session: Session,
    message: dict[str, Any],
    *,
    model: str | None = None,
    tokens: int = 0,
    metadata: str | None = None,
) -> int:
    """Store a message posted by hand at the end of a session's main branch; its number."""
    place = tree.end_of(connection, session)
    tally = tree.Tally()
    number = tree.store(
        connection, session.session_id, place, message, tally, tokens=tokens, model=model, metadata=metadata
    )
    _touch(connection, session.session_id, tally)
    return number


def find_stitched(connection: sqlite3.Connection, *, user_id: str, messages: Sequence[dict[str, Any]]) -> str | None:
    """The session that these messages continue: the longest stored prefix that holds a reply."""
    linked = [message for message in messages if thread.is_linked(message)]
    replies = [index for index, message in enumerate(linked) if message["role"] == "assistant"]
    if not replies:
        return None
    hashes = thread.chain(user_id, linked)[replies[0] :]
    hit = queries.find_prefix(connection, reversed(hashes))
    if hit is None:
        return None
    node = queries.get_node(connection, hit[1])
    assert node is not None
    return node.session_id


def _store_request(
    connection: sqlite3.Connection, exchange: Exchange, tally: tree.Tally
) -> tuple[ExchangeRow, tree.Place]:
    now = timestamp()
    ref = exchange.session
    messages = exchange.messages
    queries.upsert_user(connection, user_id=exchange.user_id, now=now)
    session_id, is_new = _make_session(
        connection,
        user_id=exchange.user_id,
        external_id=ref.external_id,
        session_id=ref.session_id,
        title=title_of(messages),
        now=now,
    )
    place, matched = tree.Place(None, 0, thread.root_hash(exchange.user_id)), 0
    if not is_new:
        place, matched = tree.find_place(connection, session_id, exchange.user_id, messages)
    context = tree.store_messages(connection, session_id, exchange, place, matched, tally)
    return request_row(exchange, session_id=session_id, leaf_no=place.parent_no, context=context), place


def _make_session(
    connection: sqlite3.Connection, *, user_id: str, external_id: str | None, session_id: str, title: str, now: str
) -> tuple[str, bool]:
    if external_id is not None:
        known = queries.find_session_id(connection, id_=external_id, user_id=user_id)
        if known is not None:
            return known, False
    is_new = queries.insert_session(
        connection,
        session_id=session_id,
        user_id=user_id,
        external_id=external_id,
        title=title,
        metadata=None,
        now=now,
    )
    return session_id, is_new


def _store_reply(
    connection: sqlite3.Connection, row: ExchangeRow, place: tree.Place, outcome: Outcome, tally: tree.Tally
) -> None:
    """Store each choice that says something as a child of the request's last message; the first is the newest leaf."""
    first_no = None
    tokens = row.completion_tokens or 0
    for choice in outcome.reply.choices if outcome.reply else ():
        if choice.finish_reason is None and not _says_something(choice):
            continue
        is_whole = outcome.status == "completed" or choice.finish_reason is not None
        number = tree.insert(
            connection,
            row.session_id,
            place,
            {**choice.message, "role": choice.message.get("role") or "assistant"},
            tally,
            exchange_id=row.exchange_id,
            tokens=tokens,
            model=row.model,
            choice=jsontext.dumps({"index": choice.index, "finish_reason": choice.finish_reason, **choice.extra}),
            status="completed" if is_whole else "incomplete",
        )
        first_no = first_no or number
        tokens = 0  # usage is of all choices together
    tally.leaf_no = first_no or tally.leaf_no


def _says_something(choice: Choice) -> bool:
    return any(value for key, value in choice.message.items() if key != "role")


def _finish_row(connection: sqlite3.Connection, row: ExchangeRow, outcome: Outcome) -> None:
    tally = tree.Tally()
    ended = ended_row(row, outcome)
    if row.leaf_no is None:
        place = tree.Place(None, 0, thread.root_hash(row.user_id))
    else:
        place = tree.below(connection, row.session_id, row.leaf_no)
    queries.finish_exchange(connection, ended)
    _store_reply(connection, ended, place, outcome, tally)
    queries.delete_fragments(connection, row.exchange_id)
    _touch(connection, row.session_id, tally)


def _interrupted(connection: sqlite3.Connection, exchange_id: str) -> Outcome:
    """The outcome of an exchange whose process is gone, folded from what it had written down."""
    decoder, reply, has_streamed = Decoder(), Completion(), False
    for data in queries.iterate_fragments(connection, exchange_id):
        has_streamed = True
        for event in decoder.feed(data):
            reply.feed(event.data)
    return Outcome(
        status="incomplete",
        http_status=200 if has_streamed else None,
        reply=reply,
        error=reply.error or {"message": "The proxy was stopped before the reply had ended.", "type": "interrupted"},
    )


def _touch(connection: sqlite3.Connection, session_id: str, tally: tree.Tally) -> None:
    queries.touch_session(
        connection,
        session_id=session_id,
        messages=tally.messages,
        tokens=tally.tokens,
        leaf_no=tally.leaf_no,
        now=timestamp(),
    )
