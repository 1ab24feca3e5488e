"""Writes exchanges: finds the place of their messages in the session's tree and stores what is not there yet.

Everything here runs inside the writer's transaction. The place is looked for again at that moment, so that two chats
that race from the same point cannot store a message twice.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from proxy import jsontext, queries, thread
from proxy.completion import Choice, Completion
from proxy.exchange import Exchange, Outcome
from proxy.ids import timestamp, uuid7
from proxy.message import Columns, title_of, to_columns
from proxy.queries import ExchangeRow, Session
from proxy.sse import Decoder

# How far back from the end of a session the messages of a client that drops old turns are looked for.
_WINDOW = 256
_LARGEST_INTEGER = 2**63 - 1


@dataclass(slots=True)
class _Place:
    """Where the next message goes: below `parent_no`, with `above` as the chain hash of what is above it."""

    parent_no: int | None
    depth: int
    above: bytes


@dataclass(slots=True)
class _Tally:
    """What one transaction stored below a session."""

    messages: int = 0
    tokens: int = 0
    leaf_no: int | None = None


def begin(connection: sqlite3.Connection, exchange: Exchange, *, worker_id: str) -> None:
    """Store the request of an exchange whose reply is still coming."""
    if queries.get_exchange(connection, exchange.exchange_id) is not None:
        return  # replayed
    tally = _Tally()
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
    tally = _Tally()
    if row is None and not is_begun:
        row, place = _store_request(connection, exchange, tally)
        ended = _ended(row, outcome)
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
    place = _end_of(connection, session)
    tally = _Tally()
    number = _store(
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


def _store_request(connection: sqlite3.Connection, exchange: Exchange, tally: _Tally) -> tuple[ExchangeRow, _Place]:
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
    place, matched = _Place(None, 0, thread.root_hash(exchange.user_id)), 0
    if not is_new:
        place, matched = _find_place(connection, session_id, exchange.user_id, messages)
    context = _store_messages(connection, session_id, exchange, place, matched, tally)
    return _request_row(exchange, session_id=session_id, leaf_no=place.parent_no, context=context), place


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


def _find_place(
    connection: sqlite3.Connection, session_id: str, user_id: str, messages: list[dict[str, Any]]
) -> tuple[_Place, int]:
    """Where a request goes on in its session, and how many of its linked messages are stored above that place."""
    linked = [message for message in messages if thread.is_linked(message)]
    hashes = thread.chain(user_id, linked)
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
        return _end_of(connection, session), 0
    return _below(connection, session_id, node_no), matched


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


def _end_of(connection: sqlite3.Connection, session: Session) -> _Place:
    if session.leaf_no is None:
        return _Place(None, 0, thread.root_hash(session.user_id))
    return _below(connection, session.session_id, session.leaf_no)


def _below(connection: sqlite3.Connection, session_id: str, message_no: int) -> _Place:
    """The place under a stored message; its hash is that of the nearest linked message."""
    node = queries.get_node(connection, message_no)
    assert node is not None
    if node.role not in thread.UNLINKED_ROLES:
        return _Place(node.message_no, node.depth + 1, node.chain_hash)
    ancestors = queries.list_ancestors(connection, message_no, session_id=session_id)
    linked = [each.chain_hash for each in ancestors if each.role not in thread.UNLINKED_ROLES]
    if linked:
        return _Place(node.message_no, node.depth + 1, linked[0])
    session = queries.get_session(connection, session_id)
    assert session is not None
    return _Place(node.message_no, node.depth + 1, thread.root_hash(session.user_id))


def _store_messages(
    connection: sqlite3.Connection,
    session_id: str,
    exchange: Exchange,
    place: _Place,
    matched: int,
    tally: _Tally,
) -> str | None:
    """Store the request's messages from `place` on, but for the first `matched` linked ones, which are above it.

    System messages stay out of the link: one that the session has is not stored again, a changed one goes where the
    conversation stands. Which of them this request sent, and where, is its context: JSON text. One that stood before
    all else stands there also when the request had left older turns out.
    """
    context: list[tuple[int | None, int]] = []
    linked = to_come = sum(map(thread.is_linked, exchange.messages))
    for message in exchange.messages:
        if thread.is_linked(message):
            to_come -= 1
            matched -= 1
            if matched < 0:
                _store(connection, session_id, place, message, tally, exchange_id=exchange.exchange_id)
        else:
            number = _store_unlinked(connection, session_id, place, message, tally, exchange.exchange_id)
            context.append((None if to_come == linked else to_come, number))
    return jsontext.dumps(context) if context else None


def _store_unlinked(
    connection: sqlite3.Connection,
    session_id: str,
    place: _Place,
    message: dict[str, Any],
    tally: _Tally,
    exchange_id: str,
) -> int:
    node = queries.find_node_by_hash(connection, thread.own_hash(message), session_id=session_id)
    if node is None:
        return _store(connection, session_id, place, message, tally, exchange_id=exchange_id)
    if node.parent_no == place.parent_no:
        place.parent_no, place.depth = node.message_no, node.depth + 1
    return node.message_no


def _store(
    connection: sqlite3.Connection,
    session_id: str,
    place: _Place,
    message: dict[str, Any],
    tally: _Tally,
    **columns: Any,
) -> int:
    """Store a message at a place, and move the place below it."""
    number = _insert(connection, session_id, place, message, tally, **columns)
    if thread.is_linked(message):
        place.above = thread.chain_hash(place.above, message)
    place.parent_no, place.depth = number, place.depth + 1
    return number


def _insert(
    connection: sqlite3.Connection,
    session_id: str,
    place: _Place,
    message: dict[str, Any],
    tally: _Tally,
    *,
    exchange_id: str | None = None,
    tokens: int = 0,
    model: str | None = None,
    metadata: str | None = None,
    choice: str | None = None,
    status: str = "completed",
) -> int:
    columns = to_columns(message)
    is_linked = thread.is_linked(message)
    number = queries.insert_message(
        connection,
        {
            "message_id": uuid7(),
            "session_id": session_id,
            "parent_no": place.parent_no,
            "depth": place.depth,
            "chain_hash": thread.chain_hash(place.above, message) if is_linked else thread.own_hash(message),
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
            "created_at": timestamp(),
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


def _store_reply(
    connection: sqlite3.Connection, row: ExchangeRow, place: _Place, outcome: Outcome, tally: _Tally
) -> None:
    """Store each choice that says something as a child of the request's last message; the first is the newest leaf."""
    first_no = None
    tokens = row.completion_tokens or 0
    for choice in outcome.reply.choices if outcome.reply else ():
        if choice.finish_reason is None and not _says_something(choice):
            continue
        is_whole = outcome.status == "completed" or choice.finish_reason is not None
        number = _insert(
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
    tally = _Tally()
    ended = _ended(row, outcome)
    if row.leaf_no is None:
        place = _Place(None, 0, thread.root_hash(row.user_id))
    else:
        place = _below(connection, row.session_id, row.leaf_no)
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


def _touch(connection: sqlite3.Connection, session_id: str, tally: _Tally) -> None:
    queries.touch_session(
        connection,
        session_id=session_id,
        messages=tally.messages,
        tokens=tally.tokens,
        leaf_no=tally.leaf_no,
        now=timestamp(),
    )


def _request_row(exchange: Exchange, *, session_id: str, leaf_no: int | None, context: str | None) -> ExchangeRow:
    """The row of an exchange in progress."""
    kept_apart = {"messages", "metadata"} if exchange.messages else {"metadata"}
    parameters = {key: value for key, value in exchange.request.items() if key not in kept_apart}
    metadata = exchange.request.get("metadata")
    model = exchange.request.get("model")
    return ExchangeRow(
        exchange_id=exchange.exchange_id,
        session_id=session_id,
        user_id=exchange.user_id,
        leaf_no=leaf_no,
        context=context,
        endpoint=exchange.endpoint,
        model=_storable(model),
        status="in_progress",
        http_status=None,
        finish_reason=None,
        prompt_tokens=None,
        completion_tokens=None,
        total_tokens=None,
        reasoning_tokens=None,
        cached_tokens=None,
        time_to_first_token_ms=None,
        duration_ms=None,
        parameters=jsontext.dumps(parameters),
        metadata=None if metadata is None else jsontext.dumps(metadata),
        request_id=exchange.request_id,
        completion_id=None,
        completion=None,
        error=None,
        worker_id=None,
        created_at=exchange.created_at,
        completed_at=None,
    )


def _ended(row: ExchangeRow, outcome: Outcome) -> ExchangeRow:
    reply = outcome.reply
    usage = _dict(reply.usage if reply else None)
    choices = reply.choices if reply else []
    return replace(
        row,
        status=outcome.status,
        model=_storable(reply.model if reply else None) or row.model,
        http_status=outcome.http_status,
        finish_reason=_storable(choices[0].finish_reason) if choices else None,
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        total_tokens=_count(usage.get("total_tokens")),
        reasoning_tokens=_count(_dict(usage.get("completion_tokens_details")).get("reasoning_tokens")),
        cached_tokens=_count(_dict(usage.get("prompt_tokens_details")).get("cached_tokens")),
        time_to_first_token_ms=outcome.time_to_first_token_ms,
        duration_ms=outcome.duration_ms,
        completion_id=_storable(reply.id if reply else None),
        completion=_envelope(reply),
        error=None if outcome.error is None else jsontext.dumps(outcome.error),
        worker_id=None,
        completed_at=outcome.completed_at,
    )


def _envelope(reply: Completion | None) -> str | None:
    """The reply's own keys as JSON text, but for those that have a column; the usage stays, as it may hold more."""
    if reply is None or not reply.envelope:
        return None
    envelope = {key: value for key, value in reply.envelope.items() if key != "id"}
    if reply.usage is not None:
        envelope["usage"] = reply.usage
    return jsontext.dumps(envelope)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_INTEGER
    return value if is_count else None


def _storable(value: Any) -> str | None:
    """A text column's value; what is not text that SQLite can hold is left out here and kept in the JSON."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None
