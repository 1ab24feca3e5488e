"""Stores exchanges: inserts request and reply messages into the session's tree, and saves the outcome.

Everything here runs inside the writer's transaction. The insert position is looked up again in that transaction, so
that two concurrent chats from the same point cannot store a message twice.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from proxy.ids import timestamp
from proxy.storage import message_tree, placement, queries, removal, session_lookup, tombstones
from proxy.storage.connection import Connection
from proxy.storage.exchange import Exchange, Origin, Outcome
from proxy.storage.exchange_columns import IN_PROGRESS, outcome_columns, request_columns
from proxy.storage.queries.exchanges import Unfinished
from proxy.storage.queries.sessions import Session
from proxy.storage.reply_store import NONE_STAYED, store_reply
from proxy.storage.write_batch import Columns, SessionDelta, WriteBatch
from proxy.wire.endpoints import endpoint_of
from proxy.wire.sse import Decoder

# How long events of a response are kept after the process that streamed it has died.
KEPT_SECONDS = 3600.0


def begin(rows: WriteBatch, exchange: Exchange, *, worker_id: str | None) -> bool | None:
    """Stores a request whose reply is still streaming. None if its session or user was deleted meanwhile."""
    if was_deleted(rows, exchange.origin):
        return None
    stored = _store_request(rows, exchange)
    rows.add_exchange({**stored.columns, **IN_PROGRESS, "worker_id": worker_id})
    rows.touch_session(stored.place.session_id, stored.delta)
    return True


def append_fragment(rows: WriteBatch, origin: Origin, *, exchange_id: str, sequence: int, data: bytes) -> None:
    """Stores the part of a reply streamed since the last call, unless its chat was deleted meanwhile.

    Raises StorageError on flush if the exchange itself could not be stored.
    """
    if not was_deleted(rows, origin):
        rows.add_fragment(exchange_id=exchange_id, sequence=sequence, data=data)


def delete_fragments(rows: WriteBatch, exchange_ids: Iterable[str]) -> None:
    """Deletes the fragments of exchanges whose replies are now stored."""
    rows.delete_fragments(exchange_ids)


def finish(rows: WriteBatch, exchange: Exchange, outcome: Outcome) -> bool:
    """Stores a finished exchange that was not begun before. False if it was deleted meanwhile."""
    if was_deleted(rows, exchange.origin):
        return False
    if _is_empty_and_refused(rows, exchange, outcome):
        return True
    stored = _store_request(rows, exchange)
    columns = stored.columns
    asked_model, created_at = columns["asked_model"], exchange.created_at
    columns.update(outcome_columns(outcome, asked_model=asked_model, created_at=created_at, now=stored.delta.now))
    rows.add_exchange(columns)
    rows.count_usage(columns)
    may_be_there = not stored.delta.messages  # the request was stored already, so maybe also its reply
    store_reply(rows, columns, stored.place, outcome, stored.delta, may_be_there=may_be_there)
    rows.touch_session(stored.place.session_id, stored.delta)
    return True


def finish_begun(rows: WriteBatch, exchange: Exchange, outcome: Outcome) -> bool:
    """Stores the end of an exchange in progress, once. False if it was deleted meanwhile.

    It replaces the end that recovery assumed while this process seemed dead. If the exchange is missing although its
    session was not deleted, the database was replaced: then the whole exchange is stored.
    """
    begun = _begun(rows, exchange.exchange_id)
    if begun is not None:
        rows.touch_session(begun.session_id, _end(rows, begun, outcome))
    elif queries.exchanges.reopen_recovered(rows.connection, exchange.exchange_id):
        _end_again(rows, exchange.exchange_id, outcome)
    elif not has_row(rows, exchange.exchange_id):
        return finish(rows, exchange, outcome)
    return True


def _begun(rows: WriteBatch, exchange_id: str) -> Unfinished | None:
    begun = queries.exchanges.get_exchange_in_progress(rows.about(exchange_id), exchange_id)
    if begun is not None and rows.waits_for(begun.session_id):
        begun = queries.exchanges.get_exchange_in_progress(rows.about(begun.session_id), exchange_id)
    return begun


def _end_again(rows: WriteBatch, exchange_id: str, outcome: Outcome) -> None:
    begun = _begun(rows, exchange_id)
    assert begun is not None
    stayed = removal.remove_guessed_replies(rows.connection, begun)
    guessed = queries.exchanges.get_exchange(rows.connection, exchange_id)
    begun = _begun(rows, exchange_id)
    assert begun is not None
    assert guessed is not None
    rows.uncount_usage(asdict(guessed) | {"user_no": begun.user_no, "status": "incomplete"})
    _end_late(rows, begun, outcome, stayed=stayed)


def _end_late(
    rows: WriteBatch, begun: Unfinished, outcome: Outcome, *, stayed: Mapping[bytes, int] = NONE_STAYED
) -> None:
    """Ends an exchange whose process seemed dead. Its branch becomes the newest unless the session has a later chat."""
    session = queries.sessions.get_session(rows.about(begun.session_id), begun.session_id)
    assert session is not None
    leaf = None
    if session.leaf_no is not None:
        leaf = queries.messages.get_message(rows.about(begun.session_id), session.leaf_no)
    delta = _end(rows, begun, outcome, stayed=stayed)
    if stayed or (leaf is not None and (leaf.exchange_id or "") > begun.exchange_id):
        delta.leaf_no = None
    rows.touch_session(begun.session_id, delta)


def _end(
    rows: WriteBatch, begun: Unfinished, outcome: Outcome, *, stayed: Mapping[bytes, int] = NONE_STAYED
) -> SessionDelta:
    """Returns what is added to the session. `stayed`: assumed replies that the conversation went on from, by chain
    hash."""
    exchange_id = begun.exchange_id
    place = (
        message_tree.top(begun)
        if begun.leaf_no is None
        else message_tree.below(rows.about(exchange_id), begun, begun.leaf_no)
    )
    columns = {
        **outcome_columns(outcome, asked_model=begun.asked_model, created_at=begun.created_at, now=timestamp()),
        "asked_model": begun.asked_model,
        "exchange_no": begun.exchange_no,
        "exchange_id": exchange_id,
        "session_id": begun.session_id,
    }
    rows.finish_exchange(columns)
    about = {"user_no": begun.user_no, "endpoint": begun.endpoint, "created_at": begun.created_at}
    rows.count_usage(columns | about)
    delta = SessionDelta(timestamp())
    store_reply(rows, columns, place, outcome, delta, may_be_there=begun.goes_on, stayed=stayed)
    return delta


def recover_again(rows: WriteBatch, worker_id: str) -> None:
    """Adds to replies that another host has ended what this process's spill file had of them."""
    for exchange_id, endpoint in queries.exchanges.list_recovered(rows.connection, worker_id):
        outcome = _interrupted(rows.connection, exchange_id, endpoint)
        queries.exchanges.reopen_recovered(rows.connection, exchange_id)
        _end_again(rows, exchange_id, outcome)
        queries.exchanges.mark_recovered(rows.connection, exchange_id, worker_id=worker_id)


def recover(rows: WriteBatch, worker_id: str) -> int:
    """Ends a dead process's exchanges as `incomplete`, with what they had streamed. Returns how many there were."""
    left = queries.exchanges.list_exchanges_in_progress(rows.connection, worker_id)
    for exchange_id, endpoint in left:
        begun = _begun(rows, exchange_id)
        assert begun is not None
        _end_late(rows, begun, _interrupted(rows.connection, exchange_id, endpoint))
        queries.exchanges.mark_recovered(rows.connection, exchange_id, worker_id=worker_id)
    delete_stray_fragments(rows, before=timestamp(time.time() - KEPT_SECONDS))
    return len(left)


def delete_stray_fragments(rows: WriteBatch, *, before: str) -> None:
    """Deletes fragments of exchanges that began before `before` and have ended; their process may have died."""
    queries.fragments.delete_stray_fragments(rows.connection, before=before)


def append_message(
    connection: Connection,
    session: Session,
    message: dict[str, Any],
    *,
    model: str | None = None,
    tokens: int = 0,
    metadata: str | None = None,
) -> int:
    """Appends a manually posted message to the session's main branch; returns its number."""
    rows, delta = WriteBatch(connection), SessionDelta(timestamp())
    place = message_tree.end_of(connection, session)
    number = message_tree.store(rows, place, message, delta, tokens=tokens, model=model, metadata=metadata)
    rows.touch_session(session.session_id, delta)
    rows.flush()
    return number


def was_deleted(rows: WriteBatch, origin: Origin) -> bool:
    """Whether the chat's user or session was deleted after the request arrived, or in the same millisecond."""
    if rows.newest_deletion < origin.asked_at:
        return False  # the usual case
    return tombstones.was_deleted(
        rows.connection, user_id=origin.user_id, session_id=origin.session_id, asked_at=origin.asked_at
    )


def has_row(rows: WriteBatch, exchange_id: str) -> bool:
    """Whether the exchange is stored, in progress or ended."""
    return queries.exchanges.find_exchange_no(rows.about(exchange_id), exchange_id) is not None


def _is_empty_and_refused(rows: WriteBatch, exchange: Exchange, outcome: Outcome) -> bool:
    """Whether this is a rejected request without messages, which would only create an empty session."""
    is_empty = not exchange.messages and outcome.status == "failed"
    return is_empty and session_lookup.find_session(rows, exchange) is None


@dataclass(slots=True)
class _Stored:
    """A request whose messages are stored but whose exchange row is not."""

    columns: Columns
    place: message_tree.InsertPosition
    delta: SessionDelta


def _store_request(rows: WriteBatch, exchange: Exchange) -> _Stored:
    delta = SessionDelta(timestamp())
    user_no = rows.active_user_no(exchange.user_id, now=delta.now)
    session, matched = session_lookup.find_session(rows, exchange), 0
    if session is None:
        place = session_lookup.make_session(rows, exchange, now=delta.now)
    else:
        place, matched = placement.find_place(rows.about(session.session_id), session, exchange)
        if not matched:
            session_lookup.retitle(rows.about(session.session_id), session, exchange)
    exchange_no = rows.next_exchange_no()
    context = message_tree.store_messages(rows, exchange, place, matched, delta, exchange_no=exchange_no)
    columns = request_columns(exchange, leaf_no=place.parent_no, context=context)
    columns |= {
        "exchange_no": exchange_no,
        "session_id": place.session_id,
        "session_no": place.session_no,
        "user_no": user_no,
    }
    return _Stored(columns, place, delta)


def _interrupted(connection: Connection, exchange_id: str, endpoint: str) -> Outcome:
    """The outcome of an exchange whose process has died, folded from the stored fragments."""
    decoder, reply, has_streamed = Decoder(), endpoint_of(endpoint).reply(), False
    for data in queries.fragments.iterate_fragments(connection, exchange_id):
        has_streamed = True
        for event in decoder.feed(data):
            reply.feed(event)
    return Outcome(
        status="incomplete",
        http_status=200 if has_streamed else None,
        reply=reply,
        error=reply.error or {"message": "The proxy was stopped before the reply had ended.", "type": "interrupted"},
    )
