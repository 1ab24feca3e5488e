"""Reads a branch in another dialect: as Responses items or Anthropic messages."""

from collections.abc import Sequence
from typing import Any, Literal

from proxy.history import branches
from proxy.history.positions import Order, Positions, page_of, read_from
from proxy.history.serializers import JSON, openai_message, session_json
from proxy.storage.connection import Connection
from proxy.storage.page import Page
from proxy.storage.queries.exchanges import ExchangeRow
from proxy.storage.queries.messages import Message
from proxy.wire import anthropic, json_text, responses_items
from proxy.wire.anthropic_blocks import starts_message

Dialect = Literal["responses", "anthropic"]
Row = tuple[JSON, JSON | None]
# Messages of a page's last object are looked up in pieces of this many.
_STEP = 16


def row_of(connection: Connection, message_no: int) -> Row:
    """A stored message in OpenAI's shape, and its residue."""
    found: list[JSON | None] = []

    def show(row: Message, blobs: dict[str, str]) -> JSON:
        found.append(json_text.stored_object(row.wire, "wire") or None)
        return openai_message(row, blobs)

    message = branches.get_message(connection, message_no, show=show)
    return message, found[0]


def rows_of(connection: Connection, numbers: Sequence[int]) -> list[Row]:
    """Stored messages in OpenAI's shape, each with its residue."""
    return [row_of(connection, number) for number in numbers]


def wire_of(exchange: ExchangeRow | None) -> JSON:
    """An exchange's own data that is not part of the conversation."""
    return json_text.stored_object(exchange.wire, "wire") if exchange is not None else {}


def list_messages(
    connection: Connection,
    id_: str,
    *,
    user_id: str | None,
    page: Page,
    order: Order = "asc",
    through: str | None = None,
    dialect: Dialect,
) -> JSON:
    """One page of a branch in a dialect.

    A page counts stored messages. If several of them form one object of the dialect, it is on the page of its first
    one.
    """
    session = branches.find_session(connection, id_, user_id=user_id)

    def work(branch: Positions) -> JSON:
        start, stop = page_of(connection, session, branch, page=page, order=order)
        convert = _responses if dialect == "responses" else _anthropic
        return {**convert(connection, branch, start, stop, wire_of(branch.exchange)), "total": branch.total}

    shown = branches.with_sent(connection, session, through, work)
    if order == "desc":
        shown["messages"].reverse()
    return {**shown, "session_info": session_json(session)}


def _responses(connection: Connection, branch: Positions, start: int, stop: int, wire: JSON) -> JSON:
    rows = rows_of(connection, branch.read(start, stop))
    shown: JSON = {}
    if start == 0 and rows and wire.get("instructions") is True:
        shown["instructions"] = rows.pop(0)[0].get("content")
    shown["messages"] = items_of(rows)
    return shown


def _anthropic(connection: Connection, branch: Positions, start: int, stop: int, wire: JSON) -> JSON:
    if stop <= start:
        return {"messages": []}
    rows = rows_of(connection, branch.read(start, stop))
    before = row_of(connection, branch.read(start - 1, start)[0]) if start else None
    while rows and before is not None and _goes_on(before, rows[0]):
        before = rows.pop(0)
    for number in read_from(branch, stop, step=_STEP):
        following = row_of(connection, number)
        if not rows or not _goes_on(rows[-1], following):
            break
        rows.append(following)
    return anthropic.request_of(rows, {"system": 0} if start else wire)


def _goes_on(before: Row, row: Row) -> bool:
    return not starts_message(str(row[0].get("role")), row[1], after=str(before[0].get("role")))


def items_of(rows: Sequence[Row]) -> list[Any]:
    """Converts stored messages to items."""
    return [item for message, residue in rows for item in responses_items.items_of(message, residue)]
