"""Writes exchanges: the messages of a request and its reply into the session's tree, and what became of it.

Everything here runs inside the writer's transaction. The place is looked for again at that moment, so that two chats
that race from the same point cannot store a message twice.
"""

import sqlite3
from dataclasses import dataclass
from typing import Any

from proxy import jsontext, queries, thread, tombstones, tree
from proxy.completion import Choice, Completion
from proxy.exchange import Exchange, Outcome
from proxy.exchange_row import IN_PROGRESS, Columns, outcome_columns, request_columns
from proxy.ids import timestamp
from proxy.message import is_message, title_of
from proxy.queries import Place, Session
from proxy.sse import Decoder

# How many of the newest conversations that began alike are looked at.
_ALIKE = 64


def begin(connection: sqlite3.Connection, exchange: Exchange, *, worker_id: str) -> None:
    """Store the request of an exchange whose reply is still coming."""
    if _was_deleted(connection, exchange):
        return
    stored = _store_request(connection, exchange)
    queries.insert_exchange(connection, {**stored.columns, **IN_PROGRESS, "worker_id": worker_id})
    _count(connection, stored)


def append_fragment(connection: sqlite3.Connection, *, exchange_id: str, sequence: int, data: bytes) -> None:
    """Store what a reply in progress has streamed since the last time."""
    queries.insert_fragment(connection, exchange_id=exchange_id, sequence=sequence, data=data)


def finish(connection: sqlite3.Connection, exchange: Exchange, outcome: Outcome) -> None:
    """Store an exchange that was not begun and has ended."""
    if _was_deleted(connection, exchange):
        return
    stored = _store_request(connection, exchange)
    columns = {**stored.columns, **outcome_columns(outcome, model=stored.columns["model"])}
    queries.insert_exchange(connection, columns)
    may_be_there = not stored.tally.messages  # the request itself was
    _store_reply(connection, columns, stored.place, outcome, stored.tally, may_be_there=may_be_there)
    _count(connection, stored)


def finish_begun(connection: sqlite3.Connection, exchange_id: str, outcome: Outcome) -> None:
    """Store the end of an exchange in progress, once. One that is gone was deleted with its session."""
    row = queries.get_exchange(connection, exchange_id)
    if row is None or row.status != "in_progress":
        return
    columns = outcome_columns(outcome, model=row.model)
    queries.finish_exchange(connection, exchange_id=exchange_id, outcome=columns)
    if row.leaf_no is None:
        place = tree.Place(None, 0, thread.root_hash(row.user_id))
    else:
        place = tree.below(connection, row.session_id, row.leaf_no)
    tally = tree.Tally()
    told = {**columns, "exchange_id": exchange_id, "session_id": row.session_id}
    _store_reply(connection, told, place, outcome, tally, may_be_there=True)
    queries.delete_fragments(connection, exchange_id)
    _touch(connection, row.session_id, tally)


def recover(connection: sqlite3.Connection, worker_id: str) -> int:
    """End the exchanges of a process that is gone as `incomplete`, with what they had streamed. How many there were."""
    exchange_ids = queries.list_exchanges_in_progress(connection, worker_id)
    for exchange_id in exchange_ids:
        finish_begun(connection, exchange_id, _interrupted(connection, exchange_id))
    return len(exchange_ids)


def claim_session(
    connection: sqlite3.Connection, *, user_id: str, external_id: str, session_id: str, title: str, asked_at: str
) -> str:
    """The session of a client's own id, made with `session_id` where there is none yet.

    None is made for a chat `asked_at` a moment that came before its user was deleted.
    """
    if tombstones.was_deleted(connection, user_id=user_id, session_id=session_id, asked_at=asked_at):
        return session_id
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


def list_stitched(connection: sqlite3.Connection, exchange: Exchange) -> list[Place]:
    """The places that a request continues, the best first: the longest stored prefix that holds a reply.

    Where several conversations began alike, one that nothing follows yet comes first, so that they stay apart.
    """
    roles = [message["role"] for message in exchange.linked]
    if "assistant" not in roles:
        return []
    hashes = reversed(exchange.chain[roles.index("assistant") :])
    return sorted(queries.list_prefix(connection, hashes, limit=_ALIKE), key=lambda place: place.goes_on)


def find_named(connection: sqlite3.Connection, exchange: Exchange) -> str | None:
    """The session that the request's id names."""
    exchange.chain  # noqa: B018 - made here, while upstream works, rather than in the writer
    return queries.find_session_id(connection, id_=exchange.session.external_id or "", user_id=exchange.user_id)


def _was_deleted(connection: sqlite3.Connection, exchange: Exchange) -> bool:
    """Whether its user or session was deleted after the request had come."""
    return tombstones.was_deleted(
        connection,
        user_id=exchange.user_id,
        session_id=exchange.session.session_id,
        asked_at=exchange.created_at,
    )


@dataclass(slots=True)
class _Stored:
    """A request whose messages are stored, and whose exchange is not yet."""

    columns: Columns
    place: tree.Place
    tally: tree.Tally
    is_new_session: bool


def _store_request(connection: sqlite3.Connection, exchange: Exchange) -> _Stored:
    tally = tree.Tally()
    ref = exchange.session
    messages = exchange.messages
    queries.upsert_user(connection, user_id=exchange.user_id, now=tally.now)
    session_id, is_new = _make_session(
        connection,
        user_id=exchange.user_id,
        external_id=ref.external_id,
        session_id=ref.session_id,
        title=title_of(messages),
        now=tally.now,
    )
    place, matched = tree.Place(None, 0, thread.root_hash(exchange.user_id)), 0
    if not is_new:
        place, matched = tree.find_place(connection, session_id, exchange)
    context = tree.store_messages(connection, session_id, exchange, place, matched, tally)
    columns = request_columns(exchange, session_id=session_id, leaf_no=place.parent_no, context=context)
    return _Stored(columns, place, tally, is_new)


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
    connection: sqlite3.Connection,
    columns: Columns,
    place: tree.Place,
    outcome: Outcome,
    tally: tree.Tally,
    *,
    may_be_there: bool,
) -> None:
    """Store each choice that says something as a child of the request's last message; the first is the newest leaf.

    `may_be_there`: a later request may have been stored first, with this reply in its history.
    """
    first_no = None
    tokens = columns["completion_tokens"] or 0
    for choice in outcome.reply.choices if outcome.reply else ():
        if choice.finish_reason is None and not _says_something(choice):
            continue
        is_whole = outcome.status == "completed" or choice.finish_reason is not None
        message = _message(choice)
        told = {
            "chain_hash": thread.chain_hash(place.above, message),
            "exchange_id": columns["exchange_id"],
            "tokens": tokens,
            "model": columns["model"],
            "choice": _choice_json(choice),
            "status": "completed" if is_whole else "incomplete",
        }
        tokens = 0  # usage is of all choices together
        if may_be_there and tree.adopt(connection, columns["session_id"], message, tally, **told):
            continue
        number = tree.insert(connection, columns["session_id"], place, message, tally, **told)
        first_no = first_no or number
    tally.leaf_no = first_no or tally.leaf_no


def _says_something(choice: Choice) -> bool:
    return any(value for key, value in choice.message.items() if key != "role")


def _message(choice: Choice) -> dict[str, Any]:
    """The message of a choice. vLLM sends an empty list of tool calls with each; OpenAI takes none of these back."""
    message = {key: value for key, value in choice.message.items() if value != [] or key != "tool_calls"}
    return message if is_message(message) else message | {"role": "assistant"}


def _choice_json(choice: Choice) -> str:
    said = {"index": choice.index, "finish_reason": choice.finish_reason, **choice.extra}
    return jsontext.dumps({key: value for key, value in said.items() if value is not None})


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


def _count(connection: sqlite3.Connection, stored: _Stored) -> None:
    """Bring the session's counts up to what was stored below it."""
    tally, session_id = stored.tally, stored.columns["session_id"]
    if stored.is_new_session:
        queries.fill_session(
            connection, session_id=session_id, messages=tally.messages, tokens=tally.tokens, leaf_no=tally.leaf_no
        )
    else:
        _touch(connection, session_id, tally)


def _touch(connection: sqlite3.Connection, session_id: str, tally: tree.Tally) -> None:
    queries.touch_session(
        connection,
        session_id=session_id,
        messages=tally.messages,
        tokens=tally.tokens,
        leaf_no=tally.leaf_no,
        now=tally.now,
    )
