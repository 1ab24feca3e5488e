"""OpenAI's Responses API on top of exchanges: reads and deletes responses, and resolves references in requests.

A response's id is a position in the message tree.
"""

from collections.abc import Container
from dataclasses import dataclass, field

from proxy.errors import InvalidRequestError, NotFoundError
from proxy.history import branches
from proxy.history.conversation_items import parse_id
from proxy.history.dialects import items_of, row_of, rows_of, wire_of
from proxy.history.positions import Order
from proxy.history.serializers import JSON
from proxy.history.stored_completions import page_of, unix_seconds
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.context import placed_messages
from proxy.storage.page import Page
from proxy.storage.queries.exchanges import ExchangeRow
from proxy.storage.removal import remove_exchange
from proxy.wire import json_text, responses, responses_state
from proxy.wire.dialect import string

# A failed request has no response: OpenAI stores none, and clients get 404.
_SHOWN = frozenset({"completed", "incomplete"})
# Keys that OpenAI's clients expect even if null, and those that vLLM sends as null. Nulls are not stored.
_NULLS: JSON = dict.fromkeys(
    (
        "ec_transfer_params",
        "error",
        "incomplete_details",
        "input_messages",
        "instructions",
        "kv_transfer_params",
        "max_output_tokens",
        "max_tool_calls",
        "metadata",
        "output_messages",
        "previous_response_id",
        "prompt",
        "reasoning",
        "text",
        "top_logprobs",
        "usage",
        "user",
    )
)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a request refers to: the session and how it was named, the history, and single items by id."""

    session_id: str | None = None
    source: str = ""
    history: list[JSON] = field(default_factory=list)
    items: dict[str, JSON] = field(default_factory=dict)

    @property
    def is_known(self) -> bool:
        """Whether a response or conversation was found."""
        return self.session_id is not None


# --- resolving references


def resolve(connection: Connection, request: JSON, *, user_id: str) -> Resolved:
    """Resolves a request's references to this user's data; unknown references are left to upstream."""
    items = {
        item_id: item
        for item_id in responses_state.references_of(request)
        if (item := _find_item(connection, item_id, user_id=user_id)) is not None
    }
    previous_id = responses_state.previous_id_of(request)
    if previous_id is not None:
        row = _find(connection, previous_id, user_id=user_id)
        if row is not None:
            return Resolved(row.session_id, "response", _through(connection, row), items)
    conversation_id = responses_state.conversation_id_of(request)
    if conversation_id is not None and previous_id is None:
        session_id = queries.sessions.find_session_id(
            connection, id_=conversation_id.removeprefix("conv_") or conversation_id, user_id=user_id
        )
        if session_id is not None:
            return Resolved(session_id, "conversation", _newest(connection, session_id), items)
    return Resolved(items=items)


def _find(connection: Connection, id_: str, *, user_id: str | None) -> ExchangeRow | None:
    """The exchange of a response, if other requests may refer to it."""
    exchange_id = queries.completions.find_stored_exchange(connection, id_, user_id=user_id)
    row = None if exchange_id is None else queries.exchanges.get_exchange(connection, exchange_id)
    if row is None or row.endpoint != responses.PATH:
        return None
    parameters = json_text.stored_object(row.parameters, "parameters")
    # A background response that was not recorded completely may continue at upstream, which has stored it.
    is_upstreams = parameters.get("background") is True and row.status != "completed"
    return None if parameters.get("store") is False or is_upstreams else row


def _through(connection: Connection, row: ExchangeRow) -> list[JSON]:
    """The conversation up to and including a response, without instructions, which OpenAI never inherits."""
    rows = rows_of(connection, [*_asked(connection, row), *queries.messages.list_replies(connection, row)[:1]])
    # Upstream accepts only items, so a message that cannot be converted to an item is left out.
    return [item for item in items_of(rows) if isinstance(item, dict)]


def _asked(connection: Connection, row: ExchangeRow) -> list[int]:
    """A request's message numbers, without its instructions."""
    path = [] if row.leaf_no is None else queries.messages.list_path(connection, row.leaf_no)[::-1]
    numbers = branches.as_requested(branches.as_far_as_sent(path, row), row)
    return numbers[1:] if wire_of(row).get("instructions") is True else numbers


def _newest(connection: Connection, session_id: str) -> list[JSON]:
    """The conversation on a session's newest branch, without instructions."""
    session = queries.sessions.get_session(connection, session_id)
    assert session is not None
    numbers, exchange = branches.as_sent_by(connection, branches.get_branch(connection, session))
    if wire_of(exchange).get("instructions") is True:
        del numbers[:1]
    return [item for item in items_of(rows_of(connection, numbers)) if isinstance(item, dict)]


def _find_item(connection: Connection, item_id: str, *, user_id: str) -> JSON | None:
    """An item by upstream's id or by ours."""
    number = queries.responses.find_response_item(connection, item_id, user_id=user_id)
    if number is not None and _may_be_referred_to(connection, number):
        items = items_of([row_of(connection, number)])
        return next((item for item in items if isinstance(item, dict) and item.get("id") == item_id), None)
    parsed = parse_id(item_id)
    number = None
    if parsed is not None:
        number = queries.responses.find_message_of_user(connection, parsed.message_id, user_id=user_id)
    if number is None:
        return None
    message, residue = row_of(connection, number)
    kind = {"rs": "reasoning", "fc": "function_call", "fco": "function_call_output", "msg": "message"}
    wanted = kind.get(parsed.kind) if parsed is not None else None
    found = [item for item in items_of([(message, residue)]) if (item.get("type") or "message") == wanted]
    return found[0] if len(found) == 1 else None


def _may_be_referred_to(connection: Connection, message_no: int) -> bool:
    """False if the message's request was sent with `store: false`."""
    row = queries.messages.get_message(connection, message_no)
    exchange = (
        None if row is None or row.exchange_id is None else queries.exchanges.get_exchange(connection, row.exchange_id)
    )
    return exchange is None or json_text.stored_object(exchange.parameters, "parameters").get("store") is not False


# --- reading


def find_response(connection: Connection, id_: str, *, user_id: str | None) -> ExchangeRow:
    """The exchange of a response. Raises NotFoundError, also for another user's response."""
    row = _find(connection, id_, user_id=user_id)
    if row is None or row.status not in _SHOWN:
        raise NotFoundError("No such response.")
    return row


def has_events(connection: Connection, *, exchange_id: str) -> bool:
    """Whether the response's streamed events are still stored."""
    return bool(queries.fragments.list_fragment_range(connection, exchange_id, start=0, stop=1))


def get_response(connection: Connection, id_: str, *, user_id: str | None) -> JSON:
    """The response as upstream sent it; if it was cut, the part that arrived."""
    row = find_response(connection, id_, user_id=user_id)
    sent = json_text.stored_object(row.completion, "completion")
    output = items_of(rows_of(connection, queries.messages.list_replies(connection, row)[:1]))
    created = row.completion_created if row.completion_created is not None else unix_seconds(row.created_at)
    own: JSON = {"id": id_, "object": "response", "created_at": created, "model": row.model or "", "output": output}
    shown = {**_NULLS, **_echoed(connection, row), **sent, **own}
    # Upstream's own status came with the end of the stream, which is missing here.
    if row.status != "completed":
        error = json_text.stored(row.error)
        if sent.get("status") in ("failed", "cancelled"):
            shown["error"] = error if sent["status"] == "failed" else None
        elif isinstance(error, dict) and error.get("type") == "cancelled":
            shown |= {"status": "cancelled", "incomplete_details": None}
        else:
            shown |= {"status": "incomplete", "incomplete_details": {"reason": "interrupted"}}
    shown.setdefault("status", "completed")
    return shown


def _echoed(connection: Connection, row: ExchangeRow) -> JSON:
    """The fields that a response repeats from its request; they are not stored twice."""
    parameters = json_text.stored_object(row.parameters, "parameters")
    wire = wire_of(row)
    shown = {key: value for key, value in parameters.items() if key not in ("stream", "stream_options", "include")}
    if row.metadata:
        shown["metadata"] = json_text.stored(row.metadata)
    if "previous_response_id" in wire:
        shown["previous_response_id"] = wire["previous_response_id"]
    if wire.get("instructions") is True and (placed := placed_messages(row.context)):
        shown["instructions"] = row_of(connection, placed[0][1])[0].get("content")
    return shown


def list_input_items(connection: Connection, id_: str, *, user_id: str | None, page: Page, order: Order) -> JSON:
    """One page of the input items of a response's request, including the history it continued."""
    row = find_response(connection, id_, user_id=user_id)
    numbers = _asked(connection, row)
    items: dict[str, JSON] = {}
    for number in numbers:
        for place, item in enumerate(items_of([row_of(connection, number)])):
            if isinstance(item, dict):
                shown = _with_id(item, f"{number}_{place}" if place else str(number), taken=items)
                items[shown["id"]] = shown
    listed = list(items.values())
    if order == "desc":
        listed.reverse()
    start = 0
    if page.after is not None:
        if page.after not in items:
            raise InvalidRequestError("There is no such item to list after.", param="after")
        start = listed.index(items[page.after]) + 1
    return page_of(listed[start:], limit=page.limit)


def _with_id(item: JSON, suffix: str, *, taken: Container[str]) -> JSON:
    """An input item in OpenAI's list format: with type and id.

    Clients may send an id twice or in another form; pages need one that names a single item.
    """
    kind = item.get("type") or "message"
    said: JSON = {"type": kind, **item}
    if kind == "message":
        content = item.get("content")
        part = "output_text" if item.get("role") == "assistant" else "input_text"
        said["content"] = [{"type": part, "text": content}] if isinstance(content, str) else content
        said.setdefault("status", "completed")
    given = string(item.get("id"))
    said["id"] = given if given and given not in taken else f"{'msg' if kind == 'message' else 'item'}_{suffix}"
    return said


def delete_response(connection: Connection, id_: str, *, user_id: str | None) -> JSON:
    """Deletes the exchange and its reply. The request's messages belong to the session and stay."""
    remove_exchange(connection, find_response(connection, id_, user_id=user_id))
    return {"id": id_, "object": "response", "deleted": True}
