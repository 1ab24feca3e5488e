"""Finds rows with values that the program never stores; reports table, row and column."""

from collections.abc import Iterator
from itertools import islice

from proxy.storage import queries
from proxy.storage.connection import Connection, Row
from proxy.storage.damaged_values import Undecodable
from proxy.wire import json_text

TABLES = ("users", "sessions", "messages", "exchanges", "parameters", "tools", "blobs")
# Columns that are not text. JSON columns must contain valid JSON: an object, unless a list is specified.
_NUMBERS = frozenset(
    (
        *("session_count", "active_session_count", "is_active", "leaf_no", "message_count", "tokens", "parent_no"),
        *("depth", "exchange_no", "root_no", "linked_count", "http_status", "prompt_tokens", "completion_tokens"),
        *("total_tokens", "reasoning_tokens", "cached_tokens", "time_to_first_token_ms", "duration_ms"),
        *("queued_ms", "head_ms", "stored_ms"),
        "completion_created",
    )
)
_JSON = {
    "sessions": frozenset(("metadata",)),
    "messages": frozenset(("extra", "choice", "metadata", "wire")),
    "exchanges": frozenset(("context", "own_parameters", "metadata", "completion", "error", "wire")),
    "parameters": frozenset(("data",)),
    "tools": frozenset(("data",)),
}
# Columns that are NOT NULL: SQLite checks that when it writes, not when a damaged file is read.
_NEVER_NULL = frozenset(
    ("title", "role", "content", "created_at", "updated_at", "last_active", "data", "endpoint", "depth", "tokens")
)
_FORMS = {"messages": {"content_form": (None, "json", "none"), "status": (None, "incomplete", "failed")}}
_STATUS = ("in_progress", "completed", "incomplete", "failed")


def find_broken_rows(
    connection: Connection, *, limit: int, user_id: str | None = None, session_id: str | None = None
) -> list[str]:
    """The first broken rows as `table row column: reason`; only those of a user or session if one is given."""
    return list(islice(_broken(connection, user_id=user_id, session_id=session_id), limit))


def _broken(connection: Connection, *, user_id: str | None, session_id: str | None) -> Iterator[str]:
    is_whole = user_id is None and session_id is None
    for table in TABLES if is_whole else _OWNED_TABLES:
        for row in queries.check.iterate_values(connection, table):
            id_ = row.pop("id")
            reasons = list(_wrong(table, row))
            if reasons and (is_whole or _is_within(_owner(connection, table, id_), user_id, session_id)):
                yield from (f"{table} {id_} {column}: {reason}" for column, reason in reasons)


# Rows of the other tables are shared between users.
_OWNED_TABLES = ("users", "sessions", "messages", "exchanges")


def _owner(connection: Connection, table: str, id_: object) -> tuple[str | None, str | None]:
    """The user and session that a row belongs to."""
    if not isinstance(id_, str):
        return None, None
    if table == "users":
        return id_, None
    session_id: str | None = id_
    if table == "messages":
        place = queries.imports.find_place(connection, id_)
        session_id = None if place is None else place.session_id
    elif table == "exchanges":
        exchange = queries.exchanges.get_exchange(connection, id_)
        session_id = None if exchange is None else exchange.session_id
    session = None if session_id is None else queries.sessions.get_session(connection, session_id)
    return None if session is None else session.user_id, session_id


def _is_within(owner: tuple[str | None, str | None], user_id: str | None, session_id: str | None) -> bool:
    return user_id in (None, owner[0]) and session_id in (None, owner[1])


def _wrong(table: str, row: Row) -> Iterator[tuple[str, str]]:
    number = row.pop("message_no", None)
    if number is not None and isinstance(parent := row.get("parent_no"), int) and parent >= number:
        yield "parent_no", "its parent is newer"
    for column, value in row.items():
        if column.startswith("no_"):
            if value:
                yield column.removeprefix("no_"), "it refers to a missing row"
        elif reason := _reason(table, column, value):
            yield column, reason


def _reason(table: str, column: str, value: object) -> str | None:
    if value is None:
        return "it is empty" if column in _NEVER_NULL or (table, column) == ("exchanges", "status") else None
    if column == "chain_hash":
        return None if isinstance(value, bytes) else "it is not a hash"
    if column in _NUMBERS:
        if not isinstance(value, int):
            return "it is not a number"
        return "it is negative" if value < 0 else None
    if isinstance(value, Undecodable):
        return "it is not UTF-8"
    if not isinstance(value, str):
        return "it is not a text"
    return _wrong_text(table, column, value)


def _wrong_text(table: str, column: str, value: str) -> str | None:
    if column in _JSON.get(table, ()) and value:
        try:
            json_text.loads(value)
        except ValueError:
            return "it is not JSON"
    if table == "exchanges" and column == "status" and value not in _STATUS:
        return "there is no such status"
    allowed = _FORMS.get(table, {}).get(column)
    return "there is no such value" if allowed is not None and value not in allowed else None
