"""OpenAI's Conversations API on top of sessions: a conversation is a session, its messages are shown as items."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import ceil, floor
from typing import Any

from proxy.errors import InvalidRequestError, NotFoundError
from proxy.history import branches, conversation_items, sessions
from proxy.history.branches import find_session
from proxy.history.conversation_items import ItemId, items_of
from proxy.history.positions import Order, Positions, read_from
from proxy.history.serializers import JSON
from proxy.history.stored_completions import page_json, page_of, pairs_of, unix_seconds
from proxy.ids import timestamp, uuid7
from proxy.storage import exchange_store, queries, removal
from proxy.storage.connection import Connection
from proxy.storage.page import Page
from proxy.storage.queries.messages import Message
from proxy.storage.queries.sessions import Session
from proxy.wire import json_text
from proxy.wire.message import title_of, to_columns, to_openai

ID_PREFIX = "conv_"  # OpenAI's


def find_conversation(connection: Connection, id_: str, *, user_id: str | None) -> Session:
    """The session of a conversation. Raises NotFoundError."""
    try:
        return find_session(connection, id_, user_id=user_id)
    except NotFoundError as exc:
        raise NotFoundError("No such conversation.") from exc


def conversation_json(session: Session) -> JSON:
    """A session as an OpenAI conversation object."""
    return {
        "id": ID_PREFIX + session.session_id,
        "object": "conversation",
        "created_at": unix_seconds(session.created_at),
        "metadata": pairs_of(session.metadata),
    }


# --- reading


def get_conversation(connection: Connection, id_: str, *, user_id: str | None) -> JSON:
    """The conversation. Raises NotFoundError."""
    return conversation_json(find_conversation(connection, id_, user_id=user_id))


def list_items(
    connection: Connection,
    id_: str,
    *,
    user_id: str | None,
    page: Page,
    order: Order,
    include: Collection[str] = (),
) -> JSON:
    """One page of the items of the newest branch. Only the messages of the page are loaded."""
    session = find_conversation(connection, id_, user_id=user_id)
    after, after_no = _cursor(connection, session, page.after)

    def items(branch: Positions) -> Iterator[JSON]:
        start = 0
        if after_no is not None:
            # The message itself is read again: some of its items may follow.
            start = branch.total - branch.count_through(floor(after_no))
            start = branch.count_through(ceil(after_no) - 1) if order == "asc" else start
        for number in read_from(branch, start, step=page.limit + 2, order=order):
            shown = _items(connection, number, include=include)
            if order == "desc":
                shown.reverse()
            yield from _after(shown, after, order=order) if after is not None and number == after_no else shown

    return branches.with_stored(connection, session, None, lambda branch: page_of(items(branch), limit=page.limit))


def get_item(
    connection: Connection, id_: str, item_id: str, *, user_id: str | None, include: Collection[str] = ()
) -> JSON:
    """One item on any branch. Raises NotFoundError."""
    session = find_conversation(connection, id_, user_id=user_id)
    _, number = _find_item(connection, session, item_id)
    return next(item for item in _items(connection, number, include=include) if item["id"] == item_id)


def _items(connection: Connection, message_no: int, *, include: Collection[str] = ()) -> list[JSON]:
    found: list[JSON] = []

    def show(row: Message, blobs: dict[str, str]) -> JSON:
        found.extend(items_of(row, blobs, include=include))
        return {}

    branches.get_message(connection, message_no, show=show)
    return found


def _find_item(connection: Connection, session: Session, item_id: str) -> tuple[ItemId, int]:
    parsed = conversation_items.parse_id(item_id)
    number = None
    if parsed is not None:
        number = queries.messages.find_message_no(connection, parsed.message_id, session_id=session.session_id)
    if parsed is None or number is None or item_id not in [item["id"] for item in _items(connection, number)]:
        raise NotFoundError("No such item.")
    return parsed, number


def _cursor(connection: Connection, session: Session, after: str | None) -> tuple[ItemId | None, float | None]:
    """The item to continue after, and its message's number. For a deleted item, a position between messages."""
    if after is None:
        return None, None
    parsed = conversation_items.parse_id(after)
    if parsed is None:
        raise InvalidRequestError("There is no such item to list after.", param="after")
    number = queries.messages.find_message_no(connection, parsed.message_id, session_id=session.session_id)
    if number is not None:
        return parsed, number
    before = queries.messages.find_item_no(connection, parsed.message_id, session_id=session.session_id)
    # Half a step: the message before it is already listed in ascending order, and comes next in descending order.
    return None, (before or 0) + 0.5


def _after(shown: list[JSON], after: ItemId, *, order: Order) -> list[JSON]:
    """The items after `after` within its message; if it was deleted, the items that could follow it."""
    ids = [item["id"] for item in shown]
    if after.text in ids:
        return shown[ids.index(after.text) + 1 :]
    ranks = [parsed.rank if (parsed := conversation_items.parse_id(each)) else 0 for each in ids]
    if order == "asc":
        return [item for item, rank in zip(shown, ranks, strict=True) if rank >= after.rank]
    return [item for item, rank in zip(shown, ranks, strict=True) if rank <= after.rank]


# --- writing


def create_conversation(
    connection: Connection, *, user_id: str, metadata: Mapping[str, str], messages: Sequence[JSON]
) -> JSON:
    """Creates a session with initial messages."""
    now = timestamp()
    session_id = uuid7()
    queries.users.upsert_user(connection, user_id=user_id, now=now)
    queries.sessions.insert_session(
        connection,
        session_id=session_id,
        user_id=user_id,
        external_id=None,
        title=title_of(list(messages)),
        metadata=json_text.dumps(metadata) if metadata else None,
        now=now,
    )
    _append(connection, session_id, messages)
    return get_conversation(connection, session_id, user_id=user_id)


def update_conversation(connection: Connection, id_: str, *, user_id: str | None, metadata: Mapping[str, str]) -> JSON:
    """Replaces the metadata."""
    change = sessions.SessionPatch(metadata=json_text.dumps(metadata))
    shown = sessions.update_session(connection, id_, user_id=user_id, change=change)
    return get_conversation(connection, shown["session_id"], user_id=user_id)


def delete_conversation(connection: Connection, id_: str, *, user_id: str | None) -> JSON:
    """Deletes the session with all its data."""
    session_id = sessions.delete_session(connection, id_, user_id=user_id)
    return {"id": ID_PREFIX + session_id, "object": "conversation.deleted", "deleted": True}


def add_items(
    connection: Connection,
    id_: str,
    *,
    user_id: str | None,
    messages: Sequence[JSON],
    include: Collection[str] = (),
) -> JSON:
    """Appends messages to the session's main branch and returns their items."""
    session = find_conversation(connection, id_, user_id=user_id)
    numbers = _append(connection, session.session_id, messages)
    added = [item for number in numbers for item in _items(connection, number, include=include)]
    return page_json(added, has_more=False)


def delete_item(connection: Connection, id_: str, item_id: str, *, user_id: str | None) -> JSON:
    """Removes an item and returns the conversation. The message is deleted with its last item."""
    session = find_conversation(connection, id_, user_id=user_id)
    item, number = _find_item(connection, session, item_id)
    left = conversation_items.without(branches.get_message(connection, number, show=_message), item)
    if left is None:
        removal.remove_message(connection, number, session_id=session.session_id)
    else:
        queries.messages.update_message(connection, number, to_columns(left))
    return conversation_json(session)


def _append(connection: Connection, session_id: str, messages: Sequence[JSON]) -> list[int]:
    numbers = []
    for message in messages:
        session = queries.sessions.get_session(connection, session_id)
        assert session is not None
        numbers.append(exchange_store.append_message(connection, session, message))
    return numbers


def _message(row: Message, blobs: dict[str, str]) -> dict[str, Any]:
    return to_openai(role=row.role, content=row.content, content_form=row.content_form, extra=row.extra, blobs=blobs)
