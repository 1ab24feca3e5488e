"""Queries of a session's tree of conversations: where each begins, and which is displayed below which."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from proxy.storage.connection import Connection
from proxy.storage.damaged_values import built


class Prefix(NamedTuple):
    """The longest prefix of a request stored in a session."""

    position: int  # index in the given hashes
    message_no: int
    depth: int
    root_no: int | None
    has_detached: bool  # a conversation of the session is displayed below another


class Context(NamedTuple):
    """The system messages of a message's request, as JSON text."""

    text: str | None


class Leaf(NamedTuple):
    """The last message of a branch."""

    message_no: int
    message_id: str
    depth: int
    root_no: int | None
    created_at: str


class Beginning(NamedTuple):
    """The first message of a conversation."""

    message_id: str
    parent_no: int | None  # a message of another conversation, below which this one is displayed
    question_no: int | None  # the first user message


def find_prefix(connection: Connection, hashes: Iterable[bytes], *, session_no: int) -> Prefix | None:
    """Given chain hashes, longest prefix first: the first one stored in the session."""
    row = connection.one("find_prefix_in_session", {"hashes": b"".join(hashes), "session_no": session_no})
    return None if row is None else built(Prefix, row)


def has_children(connection: Connection, message_no: int, *, session_no: int) -> bool:
    return bool(connection.value("has_children", {"message_no": message_no, "session_no": session_no}))


def has_detached(connection: Connection, *, session_no: int) -> bool:
    """Whether any conversation of the session is displayed below another."""
    return bool(connection.value("has_detached", {"session_no": session_no}))


def list_detached(connection: Connection, *, session_no: int, limit: int) -> list[int]:
    """The first messages of the newest conversations that are displayed below another."""
    return connection.values("list_detached", {"session_no": session_no, "limit": limit})


def list_subtree(connection: Connection, message_no: int, *, session_no: int, limit: int) -> list[int]:
    """A message and its descendants, unordered."""
    return connection.values("list_subtree", {"message_no": message_no, "session_no": session_no, "limit": limit})


def detach_from_parent(connection: Connection, message_no: int) -> None:
    """Makes a message a root."""
    connection.changes("detach_from_parent", {"message_no": message_no})


def raise_messages(connection: Connection, numbers: Sequence[int], *, levels: int) -> None:
    """Reduces the depth of messages by `levels`."""
    connection.store("raise_message", [{"message_no": number, "levels": levels} for number in numbers])


def raise_subtree(connection: Connection, message_no: int, *, session_id: str) -> None:
    """Reduces the depth of a message and its descendants by one."""
    connection.changes("raise_subtree", {"message_no": message_no, "session_id": session_id})


def rechain_messages(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Sets `chain_hash` and `root_no` of messages given by `message_no`."""
    connection.store("rechain_message", rows)


def list_newest_ends(connection: Connection, session_id: str, *, among: int, limit: int) -> list[int]:
    """Of a session's newest messages, those that end a conversation, newest first."""
    return connection.values("list_newest_ends", {"session_id": session_id, "among": among, "limit": limit})


def find_context(connection: Connection, message_no: int) -> Context | None:
    """The system messages of the request that a message belongs to; None if it was posted manually."""
    row = connection.one("find_sent_context", {"message_no": message_no})
    return None if row is None else Context(row["context"])


def get_text(connection: Connection, message_no: int) -> str:
    """A message's text; "" if it was deleted."""
    return connection.value("get_text", {"message_no": message_no}) or ""


def list_first_texts(connection: Connection, session_id: str, *, limit: int) -> list[dict[str, Any]]:
    """The first messages of a session: `role`, `content` and `exchange_no`."""
    return connection.all("list_first_texts", {"session_id": session_id, "limit": limit})


def move_root(connection: Connection, message_no: int, *, session_id: str) -> None:
    """Makes the next message the first of its conversation, in place of this one."""
    connection.changes("move_root", {"message_no": message_no, "session_id": session_id})


def update_title(connection: Connection, session_id: str, title: str) -> None:
    """Sets a session's title without counting as activity."""
    connection.changes("update_title", {"session_id": session_id, "title": title})


def count_leaves(connection: Connection, *, session_no: int) -> int:
    """The number of branches of a session."""
    return int(connection.value("count_leaves", {"session_no": session_no}) or 0)


def page_leaves(connection: Connection, session_id: str, *, limit: int, offset: int) -> list[Leaf]:
    """One page of a session's leaves, newest first."""
    parameters = {"session_id": session_id, "limit": limit, "offset": offset}
    return [built(Leaf, row) for row in connection.all("page_leaves", parameters)]


def find_first_root(connection: Connection, *, session_no: int) -> int | None:
    """The first message of a session's first conversation."""
    found: int | None = connection.value("find_first_root", {"session_no": session_no})
    return found


def get_beginning(connection: Connection, message_no: int, *, session_no: int) -> Beginning | None:
    """How the conversation with this first message begins; None if the message was deleted."""
    row = connection.one("get_beginning", {"message_no": message_no, "session_no": session_no})
    return None if row is None else built(Beginning, row)
