"""Queries of the `messages` table: tree links, content, and blobs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from proxy.storage.connection import Connection
from proxy.storage.damaged_values import built, text_or_none
from proxy.storage.queries.exchanges import ExchangeRow, Unfinished
from proxy.wire.message import Columns

# "No limit" in a form that every engine accepts: SQLite rejects LIMIT NULL, PostgreSQL LIMIT -1.
_ALL = 2**62

# The most frequent values and their short forms in the table; get_message and export_messages expand them.
_USUAL = {"content_form": ("text", None), "choice": ('{"finish_reason":"stop"}', ""), "status": ("completed", None)}


@dataclass(frozen=True, slots=True)
class MessageNode:
    """A message's position in the tree."""

    message_no: int
    session_id: str
    parent_no: int | None
    depth: int
    role: str
    chain_hash: bytes
    root_no: int | None  # the first message of its conversation; None for the session's first conversation


class StitchCandidate(NamedTuple):
    """A message that a chat may continue."""

    message_no: int
    session_id: str
    goes_on: bool


class BranchNode(NamedTuple):
    """A message of a branch, without its content."""

    message_no: int
    role: str
    exchange_no: int | None


@dataclass(frozen=True, slots=True)
class Message:
    """A message with everything that the routes return; `extra`, `wire`, `choice` and `metadata` are JSON text."""

    message_id: str
    session_id: str
    parent_id: str | None
    exchange_id: str | None
    role: str
    content: str
    content_form: str
    extra: str | None
    choice: str | None
    model: str | None
    tokens: int
    status: str
    metadata: str | None
    created_at: str
    message_no: int
    siblings: int
    wire: str | None = None


def insert_messages(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Inserts messages; each row has all columns."""
    for row in rows:
        # Usual values are NULL or "" in the table, which take no space there: most messages are completed texts.
        leave_out_usual(row)
    connection.store("insert_message", rows)


def leave_out_usual(columns: dict[str, Any]) -> None:
    """Replaces a message's most frequent values by their short forms, in place."""
    for name, (usual, short) in _USUAL.items():
        if columns.get(name) == usual:
            columns[name] = short


def list_prefix(connection: Connection, hashes: Iterable[bytes], *, limit: int) -> list[StitchCandidate]:
    """Given chain hashes, longest prefix first: the messages with the first hash found, in any session, newest
    first."""
    return [
        StitchCandidate(**row) for row in connection.all("list_prefix", {"hashes": b"".join(hashes), "limit": limit})
    ]


def get_node(connection: Connection, message_no: int) -> MessageNode | None:
    row = connection.one("get_node", {"message_no": message_no})
    return None if row is None else built(MessageNode, row)


def find_node_by_hash(connection: Connection, chain_hash: bytes, *, session_no: int) -> MessageNode | None:
    row = connection.one("find_node_by_hash", {"chain_hash": chain_hash, "session_no": session_no})
    return None if row is None else built(MessageNode, row)


def list_ancestors(connection: Connection, node_no: int, *, session_id: str, limit: int = _ALL) -> list[MessageNode]:
    """A message and its ancestors, nearest first."""
    parameters = {"message_no": node_no, "session_id": session_id, "limit": limit}
    return [built(MessageNode, row) for row in connection.all("list_ancestors", parameters)]


def list_path(connection: Connection, leaf_no: int, *, limit: int = _ALL) -> list[BranchNode]:
    """A message and its ancestors, nearest first."""
    return [built(BranchNode, row) for row in connection.all("list_path", {"message_no": leaf_no, "limit": limit})]


def newest_leaf_below(connection: Connection, message_no: int, *, session_no: int) -> int:
    """The newest leaf below a message."""
    found: int = connection.value("newest_leaf_below", {"message_no": message_no, "session_no": session_no})
    return found


def newest_message_no(connection: Connection, session_id: str) -> int | None:
    """The newest message of a session."""
    number: int | None = connection.value("newest_message_no", {"session_id": session_id})
    return number


def get_message(connection: Connection, message_no: int) -> Message | None:
    row = connection.one("get_message", {"message_no": message_no})
    return None if row is None else built(Message, row)


def find_message_no(connection: Connection, message_id: str, *, session_id: str) -> int | None:
    """The row number of a session's message."""
    found: int | None = connection.value("find_message_no", {"message_id": message_id, "session_id": session_id})
    return found


def find_message_no_before(connection: Connection, message_id: str, *, session_no: int) -> int | None:
    """The row number of the session's last message with a smaller id."""
    parameters = {"message_id": message_id, "session_no": session_no}
    found: int | None = connection.value("find_message_no_before", parameters)
    return found


def list_replies(connection: Connection, row: ExchangeRow | Unfinished) -> list[int]:
    """The row numbers of an exchange's replies, ordered by choice."""
    parameters = {"session_no": row.session_no, "leaf_no": row.leaf_no, "exchange_no": row.exchange_no}
    return connection.values("list_replies", parameters)


def delete_message_at_end(connection: Connection, message_no: int, *, session_no: int) -> int | None:
    """Deletes a message without children; returns its tokens, or None if it was kept."""
    found: int | None = connection.value("delete_message_at_end", {"message_no": message_no, "session_no": session_no})
    return found


def find_item_no(connection: Connection, message_id: str, *, session_id: str) -> int | None:
    """The row number of a session's message; if it is missing, of the last one before it."""
    found: int | None = connection.value("find_item_no", {"message_id": message_id, "session_id": session_id})
    return found


def reparent(connection: Connection, message_no: int, *, session_id: str, parent_no: int | None) -> None:
    """Moves a message's children to another parent."""
    parameters = {"message_no": message_no, "session_id": session_id, "parent_no": parent_no}
    connection.changes("reparent", parameters)


def delete_message(connection: Connection, message_no: int) -> int:
    """Deletes an existing message without children; returns its tokens."""
    tokens: int = connection.value("delete_message", {"message_no": message_no})
    return tokens


def update_message(connection: Connection, message_no: int, columns: Columns) -> None:
    """Sets a message's content. Its blobs stay until the message is deleted."""
    parameters: dict[str, Any] = {
        "message_no": message_no,
        "content": columns.content,
        "content_form": columns.content_form,
        "extra": columns.extra,
        "wire": columns.wire,
    }
    leave_out_usual(parameters)
    connection.changes("update_message", parameters)


def list_message_blobs(connection: Connection, message_no: int) -> dict[str, str]:
    """A message's blobs by digest."""
    rows = connection.all("list_message_blobs", {"message_no": message_no})
    return {row["digest"]: text_or_none(row["data"]) or "" for row in rows}


def adopt_reply(connection: Connection, columns: dict[str, Any]) -> int | None:
    """Marks the copy of a reply, stored by a later request or as `message_no`, as the reply itself; returns its number,
    if there is one."""
    leave_out_usual(columns)
    found: int | None = connection.value("adopt_reply", columns)
    return found


def insert_blob(connection: Connection, *, message_no: int, digest: str, data: str) -> None:
    """Stores a blob once per database and links it to the message."""
    connection.store("insert_blob", [{"digest": digest, "data": data}])
    connection.store("insert_message_blob", [{"message_no": message_no, "digest": digest}])
