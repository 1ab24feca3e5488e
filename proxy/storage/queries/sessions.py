"""Queries of the `sessions` table and its counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from proxy.storage.connection import Connection, Parameters
from proxy.storage.damaged_values import built
from proxy.storage.page import Page
from proxy.storage.queries.users import DEFAULT_USER_ID, count_active_sessions, count_sessions


@dataclass(frozen=True, slots=True)
class Session:
    """A row of `sessions`; `metadata` is JSON text."""

    session_no: int
    session_id: str
    user_id: str
    external_id: str | None
    title: str
    is_active: bool
    metadata: str | None
    leaf_no: int | None
    message_count: int
    tokens: int
    created_at: str
    updated_at: str


def insert_session(
    connection: Connection,
    *,
    session_id: str,
    user_id: str,
    external_id: str | None,
    title: str,
    metadata: str | None,
    now: str,
) -> bool:
    """Inserts a session inside a write transaction; False if its id or external id already exists."""
    parameters = {
        "session_no": connection.numbers().session_no + 1,
        "session_id": session_id,
        "user_id": user_id,
        "external_id": external_id,
        "title": title,
        "metadata": metadata,
        "leaf_no": None,
        "message_count": 0,
        "tokens": 0,
        "created_at": now,
        "updated_at": now,
    }
    is_new = connection.changes("insert_session", parameters) > 0
    if is_new:
        count_sessions(connection, user_id, sessions=1, active=1)
    return is_new


def insert_sessions(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Inserts active sessions with new ids; each row has all columns."""
    connection.store("insert_session", rows)
    count_active_sessions(connection, [row["user_id"] for row in rows])


class RequestedId(str):
    """A session id as a caller sent it, and the generated user it may belong to if no user is named."""

    __slots__ = ("owner_id",)

    owner_id: str


def find_session_id(connection: Connection, *, id_: str, user_id: str | None) -> str | None:
    """The session with this own or external id; if `user_id` is None, any user's session by its own id."""
    found: str | None = connection.value("find_session_id", named_by(id_, user_id=user_id))
    return found


def named_by(id_: str, *, user_id: str | None) -> Parameters:
    """The parameters of `find_session_id`."""
    owner_id = id_.owner_id if isinstance(id_, RequestedId) else DEFAULT_USER_ID
    return {"id": str(id_), "user_id": user_id, "owner_id": owner_id}


def get_session(connection: Connection, session_id: str, *, user_id: str | None = None) -> Session | None:
    """The session by its own id, if it exists and belongs to the user."""
    row = connection.one("get_session", {"session_id": session_id, "user_id": user_id})
    return None if row is None else built(Session, row)


def list_sessions(
    connection: Connection,
    *,
    user_id: str,
    page: Page,
    active_only: bool = False,
    since: str | None = None,
    until: str | None = None,
    cursor: tuple[str, str] | None = None,
) -> list[Session]:
    """One page of a user's sessions, most recently active first; `cursor` is an update time and an id."""
    parameters = {
        "user_id": user_id,
        "active_only": active_only,
        "after_updated_at": cursor and cursor[0],
        "after_session_id": cursor and cursor[1],
        "since": since,
        "until": until,
        "limit": page.limit,
        "offset": page.offset,
    }
    return [built(Session, row) for row in connection.all("list_sessions", parameters)]


def list_session_ids(
    connection: Connection, *, user_id: str, page: Page, since: str | None = None, until: str | None = None
) -> list[str]:
    """The ids of one page of a user's sessions, most recently active first."""
    parameters = {
        "user_id": user_id,
        "since": since,
        "until": until,
        "limit": page.limit,
        "offset": page.offset,
    }
    return connection.values("list_session_ids", parameters)


def count_sessions_between(connection: Connection, *, user_id: str, since: str | None, until: str | None) -> int:
    """How many of a user's sessions were last active in a time range."""
    parameters = {"user_id": user_id, "since": since, "until": until}
    count: int = connection.value("count_sessions_between", parameters)
    return count


def update_session(
    connection: Connection,
    *,
    session_id: str,
    title: str | None,
    is_active: bool | None,
    metadata: str | None,
    now: str,
) -> bool:
    """Sets the values that are not None; returns whether the session exists."""
    parameters = {
        "session_id": session_id,
        "title": title,
        "is_active": is_active,
        "metadata": metadata,
        "now": now,
    }
    return connection.changes("update_session", parameters) > 0


def touch_sessions(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Adds stored messages to sessions' counts; each `leaf_no` is the newest of them."""
    connection.store("touch_session", rows)


def shrink_session(connection: Connection, *, session_id: str, messages: int, tokens: int, leaf_no: int | None) -> None:
    """Subtracts deleted messages from the counts; `leaf_no` is the newest remaining one."""
    parameters = {"session_id": session_id, "messages": messages, "tokens": tokens, "leaf_no": leaf_no}
    connection.changes("shrink_session", parameters)


def delete_session(connection: Connection, session_id: str) -> bool:
    """Deletes a session with its messages and exchanges; returns whether it existed."""
    return connection.changes("delete_session", {"session_id": session_id}) > 0
