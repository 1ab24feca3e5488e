"""The messages: the tree they form, what each says, and their large parts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from proxy.storage.connection import Connection
from proxy.storage.damaged_values import built
from proxy.storage.queries.exchanges import ExchangeRow, Unfinished
from proxy.wire.message import Columns

# No limit, in a way that every engine takes: SQLite has no LIMIT NULL, PostgreSQL no LIMIT -1.
_ALL = 2**62

# What nearly all messages say, and what stands for it in the table; get_message and export_messages put it back.
_USUAL = {"content_form": ("text", None), "choice": ('{"finish_reason":"stop"}', ""), "status": ("completed", None)}


@dataclass(frozen=True, slots=True)
class MessageNode:
    """Where a message stands in its tree."""

    message_no: int
    session_id: str
    parent_no: int | None
    depth: int
    role: str
    chain_hash: bytes
    root_no: int | None  # the first message of its conversation; None: of the session's first


class StitchCandidate(NamedTuple):
    """A message that a chat may continue."""

    message_no: int
    session_id: str
    goes_on: bool


class BranchNode(NamedTuple):
    """A message of a branch, without what it says."""

    message_no: int
    role: str
    exchange_no: int | None


@dataclass(frozen=True, slots=True)
class Message:
    """A message as the routes show it; `extra`, `wire`, `choice` and `metadata` are JSON text."""

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
    """Store messages given by all their columns."""
    for row in rows:
        leave_out_usual(row)
    connection.store("insert_message", rows)


def leave_out_usual(columns: dict[str, Any]) -> None:
    """Have columns of a message say nothing of what nearly all say, in place."""
    for name, (usual, short) in _USUAL.items():
        if columns.get(name) == usual:
            columns[name] = short


def list_prefix(connection: Connection, hashes: Iterable[bytes], *, limit: int) -> list[StitchCandidate]:
    """Of chain hashes, longest prefix first: where the first that is stored is, in any session, newest first."""
    return [
        StitchCandidate(**row) for row in connection.all("list_prefix", {"hashes": b"".join(hashes), "limit": limit})
    ]


def get_node(connection: Connection, message_no: int) -> MessageNode | None:
    """Where a message stands, if it is there."""
    row = connection.one("get_node", {"message_no": message_no})
    return None if row is None else built(MessageNode, row)


def find_node_by_hash(connection: Connection, chain_hash: bytes, *, session_no: int) -> MessageNode | None:
    """A message of the session by its hash."""
    row = connection.one("find_node_by_hash", {"chain_hash": chain_hash, "session_no": session_no})
    return None if row is None else built(MessageNode, row)


def list_ancestors(connection: Connection, node_no: int, *, session_id: str, limit: int = _ALL) -> list[MessageNode]:
    """A message and those above it, nearest first."""
    parameters = {"message_no": node_no, "session_id": session_id, "limit": limit}
    return [built(MessageNode, row) for row in connection.all("list_ancestors", parameters)]


def list_path(connection: Connection, leaf_no: int) -> list[BranchNode]:
    """A message and those above it, nearest first."""
    return [built(BranchNode, row) for row in connection.all("list_path", {"message_no": leaf_no})]


def newest_leaf_below(connection: Connection, message_no: int, *, session_no: int) -> int:
    """The end of the newest branch through a message."""
    found: int = connection.value("newest_leaf_below", {"message_no": message_no, "session_no": session_no})
    return found


def newest_message_no(connection: Connection, session_id: str) -> int | None:
    """The message stored last in a session."""
    number: int | None = connection.value("newest_message_no", {"session_id": session_id})
    return number


def get_message(connection: Connection, message_no: int) -> Message | None:
    """The message, if it is there."""
    row = connection.one("get_message", {"message_no": message_no})
    return None if row is None else built(Message, row)


def find_message_no(connection: Connection, message_id: str, *, session_id: str) -> int | None:
    """The number of a session's message."""
    found: int | None = connection.value("find_message_no", {"message_id": message_id, "session_id": session_id})
    return found


def find_message_no_before(connection: Connection, message_id: str, *, session_no: int) -> int | None:
    """The number of the last of a session's messages with a smaller id."""
    parameters = {"message_id": message_id, "session_no": session_no}
    found: int | None = connection.value("find_message_no_before", parameters)
    return found


def list_replies(connection: Connection, row: ExchangeRow | Unfinished) -> list[int]:
    """The numbers of an exchange's replies, in the order of their choices."""
    parameters = {"session_no": row.session_no, "leaf_no": row.leaf_no, "exchange_no": row.exchange_no}
    return connection.values("list_replies", parameters)


def delete_message_at_end(connection: Connection, message_no: int, *, session_no: int) -> int | None:
    """Delete a message that nothing follows: its tokens, or None where it stays."""
    found: int | None = connection.value("delete_message_at_end", {"message_no": message_no, "session_no": session_no})
    return found


def find_item_no(connection: Connection, message_id: str, *, session_id: str) -> int | None:
    """The number of a session's message, or of the last one before it."""
    found: int | None = connection.value("find_item_no", {"message_id": message_id, "session_id": session_id})
    return found


def reparent(connection: Connection, message_no: int, *, session_id: str, parent_no: int | None) -> None:
    """Let what follows a message follow another."""
    parameters = {"message_no": message_no, "session_id": session_id, "parent_no": parent_no}
    connection.changes("reparent", parameters)


def delete_message(connection: Connection, message_no: int) -> int:
    """Delete a message that is there and that none follows; its tokens."""
    tokens: int = connection.value("delete_message", {"message_no": message_no})
    return tokens


def update_message(connection: Connection, message_no: int, columns: Columns) -> None:
    """Set what a message says. Its large parts stay until it is deleted."""
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
    """The large parts of a message by digest."""
    rows = connection.all("list_message_blobs", {"message_no": message_no})
    return {row["digest"]: row["data"] for row in rows}


def adopt_reply(connection: Connection, columns: dict[str, Any]) -> int | None:
    """Make the copy of a reply that a later request brought along the reply itself; its number, where there is one."""
    leave_out_usual(columns)
    found: int | None = connection.value("adopt_reply", columns)
    return found


def insert_blob(connection: Connection, *, message_no: int, digest: str, data: str) -> None:
    """Store a large part of a message, once a database."""
    connection.changes("insert_blob", {"digest": digest, "data": data})
    connection.changes("insert_message_blob", {"message_no": message_no, "digest": digest})
