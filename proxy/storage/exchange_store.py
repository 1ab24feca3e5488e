"""Writes exchanges: the messages of a request and its reply into the session's tree, and what became of it.

Everything here runs inside the writer's transaction. The place is looked for again at that moment, so that two chats
that race from the same point cannot store a message twice.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from proxy.ids import timestamp
from proxy.storage import message_tree, placement, queries, removal, session_lookup, tombstones
from proxy.storage.connection import Connection
from proxy.storage.exchange import Exchange, Origin, Outcome
from proxy.storage.exchange_columns import IN_PROGRESS, outcome_columns, request_columns
from proxy.storage.queries.exchanges import Unfinished
from proxy.storage.queries.sessions import Session
from proxy.storage.write_batch import Columns, SessionDelta, WriteBatch
from proxy.wire import hash_chain, json_text
from proxy.wire.dialect import item_ids_of
from proxy.wire.endpoint import Choice
from proxy.wire.endpoints import endpoint_of
from proxy.wire.message import is_message
from proxy.wire.sse import Decoder

# How long the events of responses stay that began in a process which is gone.
KEPT_SECONDS = 3600.0


def begin(rows: WriteBatch, exchange: Exchange, *, worker_id: str | None) -> bool | None:
    """Store the request of an exchange whose reply is still coming. None where it was deleted meanwhile."""
    if was_deleted(rows, exchange.origin):
        return None
    stored = _store_request(rows, exchange)
    rows.add_exchange({**stored.columns, **IN_PROGRESS, "worker_id": worker_id})
    rows.touch_session(stored.place.session_id, stored.delta)
    return True


def append_fragment(rows: WriteBatch, origin: Origin, *, exchange_id: str, sequence: int, data: bytes) -> None:
    """Store what a reply in progress has streamed since the last time, unless its chat was deleted meanwhile.

    Raises StorageError when the rows are flushed, where the beginning of its exchange was refused.
    """
    if not was_deleted(rows, origin):
        rows.add_fragment(exchange_id=exchange_id, sequence=sequence, data=data)


def delete_fragments(rows: WriteBatch, exchange_ids: Iterable[str]) -> None:
    """Delete what exchanges had streamed, of which the replies are stored now."""
    queries.fragments.delete_fragments(rows.connection, exchange_ids)


def finish(rows: WriteBatch, exchange: Exchange, outcome: Outcome) -> bool:
    """Store an exchange that was not begun and has ended. False where it was deleted meanwhile."""
    if was_deleted(rows, exchange.origin):
        return False
    if _is_empty_and_refused(rows, exchange, outcome):
        return True
    stored = _store_request(rows, exchange)
    asked_model, created_at = stored.columns["asked_model"], exchange.created_at
    columns = {**stored.columns, **outcome_columns(outcome, asked_model=asked_model, created_at=created_at)}
    rows.add_exchange(columns)
    rows.count_usage(columns)
    may_be_there = not stored.delta.messages  # the request itself was
    _store_reply(rows, columns, stored.place, outcome, stored.delta, may_be_there=may_be_there)
    rows.touch_session(stored.place.session_id, stored.delta)
    return True


def finish_begun(rows: WriteBatch, exchange: Exchange, outcome: Outcome) -> bool:
    """Store the end of an exchange in progress, once. False where it was deleted meanwhile.

    It takes the place of an end that recovery has guessed while this process seemed gone. An exchange that is gone was
    deleted with its session, or its database was replaced: then it is stored whole.
    """
    begun = _begun(rows, exchange.exchange_id)
    if begun is not None:
        _end(rows, begun, outcome)
    elif queries.exchanges.reopen_recovered(rows.connection, exchange.exchange_id):
        _end_anew(rows, exchange.exchange_id, outcome)
    elif not has_row(rows, exchange.exchange_id):
        return finish(rows, exchange, outcome)
    return True


def _begun(rows: WriteBatch, exchange_id: str) -> Unfinished | None:
    begun = queries.exchanges.get_exchange_in_progress(rows.about(exchange_id), exchange_id)
    if begun is not None and rows.waits_for(begun.session_id):
        begun = queries.exchanges.get_exchange_in_progress(rows.about(begun.session_id), exchange_id)
    return begun


def _end_anew(rows: WriteBatch, exchange_id: str, outcome: Outcome) -> None:
    begun = _begun(rows, exchange_id)
    assert begun is not None
    removal.remove_guessed_replies(rows.connection, begun)
    begun = _begun(rows, exchange_id)
    assert begun is not None
    _end(rows, begun, outcome, was_counted=True)


def _end(rows: WriteBatch, begun: Unfinished, outcome: Outcome, *, was_counted: bool = False) -> None:
    exchange_id = begun.exchange_id
    place = (
        message_tree.top(begun)
        if begun.leaf_no is None
        else message_tree.below(rows.about(exchange_id), begun, begun.leaf_no)
    )
    columns = {
        **outcome_columns(outcome, asked_model=begun.asked_model, created_at=begun.created_at),
        "asked_model": begun.asked_model,
        "exchange_no": begun.exchange_no,
        "exchange_id": exchange_id,
        "session_id": begun.session_id,
    }
    rows.finish_exchange(columns)
    about = {"user_no": begun.user_no, "endpoint": begun.endpoint, "created_at": begun.created_at}
    rows.count_usage(columns | about, was_incomplete=was_counted)
    delta = SessionDelta(timestamp())
    _store_reply(rows, columns, place, outcome, delta, may_be_there=begun.goes_on)
    rows.touch_session(begun.session_id, delta)


def recover(rows: WriteBatch, worker_id: str) -> int:
    """End the exchanges of a process that is gone as `incomplete`, with what they had streamed. How many there were."""
    left = queries.exchanges.list_exchanges_in_progress(rows.connection, worker_id)
    for exchange_id, endpoint in left:
        begun = _begun(rows, exchange_id)
        assert begun is not None
        _end(rows, begun, _interrupted(rows.connection, exchange_id, endpoint))
        queries.exchanges.mark_recovered(rows.connection, exchange_id, worker_id=worker_id)
    delete_stray_fragments(rows, before=timestamp(time.time() - KEPT_SECONDS))
    return len(left)


def delete_stray_fragments(rows: WriteBatch, *, before: str) -> None:
    """Delete what exchanges that began before a moment, and have ended, had streamed: their process may be gone."""
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
    """Store a message posted by hand at the end of a session's main branch; its number."""
    rows, delta = WriteBatch(connection), SessionDelta(timestamp())
    place = message_tree.end_of(connection, session)
    number = message_tree.store(rows, place, message, delta, tokens=tokens, model=model, metadata=metadata)
    rows.touch_session(session.session_id, delta)
    rows.flush()
    return number


def was_deleted(rows: WriteBatch, origin: Origin) -> bool:
    """Whether a chat's user or session was deleted after the request had come, or in the same millisecond."""
    if rows.newest_deletion < origin.asked_at:
        return False  # nearly always
    return tombstones.was_deleted(
        rows.connection, user_id=origin.user_id, session_id=origin.session_id, asked_at=origin.asked_at
    )


def has_row(rows: WriteBatch, exchange_id: str) -> bool:
    """Whether an exchange is stored, begun or ended."""
    return queries.exchanges.find_exchange_no(rows.about(exchange_id), exchange_id) is not None


def _is_empty_and_refused(rows: WriteBatch, exchange: Exchange, outcome: Outcome) -> bool:
    """Whether it is a refused request without messages, which would leave an empty session."""
    is_empty = not exchange.messages and outcome.status == "failed"
    return is_empty and session_lookup.find_session(rows, exchange) is None


@dataclass(slots=True)
class _Stored:
    """A request whose messages are stored, and whose exchange is not yet."""

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


def _store_reply(
    rows: WriteBatch,
    columns: Columns,
    place: message_tree.InsertPosition,
    outcome: Outcome,
    delta: SessionDelta,
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
            "chain_hash": hash_chain.chain_hash(place.above, message),
            "exchange_no": columns["exchange_no"],
            "tokens": tokens,
            "model": columns["model"],
            "choice": _choice_json(choice),
            "status": "completed" if is_whole else "incomplete",
        }
        tokens = 0  # usage is of all choices together
        if may_be_there and message_tree.adopt(rows.about(place.session_id), place, message, delta, **told):
            continue
        number = message_tree.insert(rows, place, message, delta, **told)
        rows.add_response_items(number, item_ids_of(message))
        first_no = first_no or number
    delta.leaf_no = first_no or delta.leaf_no


def _says_something(choice: Choice) -> bool:
    return any(value for key, value in choice.message.items() if key != "role")


def _message(choice: Choice) -> dict[str, Any]:
    """The message of a choice. vLLM sends an empty list of tool calls with each; OpenAI takes none of these back."""
    message = choice.message
    if message.get("tool_calls") == []:
        message = {key: value for key, value in message.items() if key != "tool_calls"}
    return message if is_message(message) else message | {"role": "assistant"}


def _choice_json(choice: Choice) -> str:
    said = {"index": choice.index or None, "finish_reason": choice.finish_reason, **choice.extra}
    return json_text.dumps({key: value for key, value in said.items() if value is not None})


def _interrupted(connection: Connection, exchange_id: str, endpoint: str) -> Outcome:
    """The outcome of an exchange whose process is gone, folded from what it had written down."""
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
