"""Queries of the history page: sessions, messages, usage, keys, and logins."""

from collections.abc import Iterator
from typing import NamedTuple, TypedDict

from proxy.storage.connection import Connection, Row
from proxy.storage.damaged_values import sound, text_or_none
from proxy.storage.queries.keys import ApiKey

_SUMS = {  # of all users, and of one
    "day": ("sum_usage_by_day", "sum_usage_by_day_of_user"),
    "model": ("sum_usage_by_model", "sum_usage_by_model_of_user"),
    "user": ("sum_usage_by_user", "sum_usage_by_user_of_user"),
    "endpoint": ("sum_usage_by_endpoint", "sum_usage_by_endpoint_of_user"),
}


# Up to so many models or endpoints are summed one by one, in half the time: SQLite sorts all rows to group them.
_FEW = 8
_SUMS_OF_FEW = {
    "model": ("list_usage_models", "sum_usage_of_model"),
    "endpoint": ("list_usage_endpoints", "sum_usage_of_endpoint"),
}


class PageSession(TypedDict):
    """A session in the list."""

    session_no: int
    session_id: str
    user_id: str
    title: str
    is_active: bool
    message_count: int
    tokens: int
    updated_at: str
    exchange_no: int
    fits: bool


class PageExchange(TypedDict):
    """What a list shows of an exchange."""

    exchange_id: str
    endpoint: str
    model: str | None
    status: str
    leaf_no: int | None
    created_at: str


class PageMessage(TypedDict):
    """A message of a conversation."""

    message_no: int
    message_id: str
    exchange_id: str | None
    role: str
    content: str
    length: int
    content_form: str
    extra: str | None
    is_extra_left_out: bool
    is_reply: bool
    model: str | None
    tokens: int
    status: str
    created_at: str
    wire: str | None
    error: str | None


class PageBranch(TypedDict):
    """The end of a branch."""

    message_no: int
    message_id: str
    message_count: int
    title: str
    updated_at: str


class WebSession(NamedTuple):
    """A logged-in browser and its key; None if the database does not have the key."""

    key_hash: bytes
    created_at: str
    expires_at: str
    key_id: str | None
    user_id: str | None
    is_admin: bool | None
    key_expires_at: str | None
    revoked_at: str | None


def list_sessions(
    connection: Connection, *, user_id: str | None, model: str | None, since: str, before: tuple[str, str], limit: int
) -> list[Row]:
    """Sessions before a time and id, most recently active first; all users' if `user_id` is None.

    A row's `fits` tells whether the session ever used the model.
    """
    below = {"model": model, "since": since, "before": before[0], "before_id": before[1], "limit": limit}
    if user_id is not None:
        rows = connection.all("list_page_sessions_of_user", {"user_id": user_id, **below})
        return [sound(PageSession, row) for row in rows]
    both = [
        sound(PageSession, row)
        for active in (True, False)
        for row in connection.all("list_page_sessions", {"is_active": active, **below})
    ]
    return sorted(both, key=lambda row: (row["updated_at"], row["session_id"]), reverse=True)[:limit]


def list_sessions_by_status(
    connection: Connection,
    status: str,
    *,
    user_id: str | None,
    model: str | None,
    since: str,
    until: str,
    before: int,
    limit: int,
) -> list[Row]:
    """Sessions of exchanges with a status and numbers below `before`, newest first. `fits`: whether to show the row."""
    parameters = {"user_id": user_id, "model": model, "since": since, "until": until, "before": before, "limit": limit}
    if status == "in_progress":
        rows = connection.all("list_page_sessions_in_progress", parameters)
    else:
        rows = connection.all("list_page_sessions_in_trouble", {"status": status, **parameters})
    return [sound(PageSession, row) for row in rows]


def session_exists(connection: Connection, *, user_id: str | None) -> bool:
    """Whether any session exists, or any of the given user."""
    return bool(connection.value("session_exists", {"user_id": user_id}))


def list_newest_exchanges(connection: Connection, session_no: int, *, limit: int) -> list[Row]:
    """A session's newest exchanges, newest first: `exchange_id endpoint model status leaf_no created_at`."""
    rows = connection.all("list_newest_exchanges", {"session_no": session_no, "limit": limit})
    return [sound(PageExchange, row) for row in rows]


def get_message(connection: Connection, message_no: int, *, characters: int, extra_characters: int) -> Row | None:
    """A message with its text truncated to `characters`, and its other keys unless longer than `extra_characters`."""
    parameters = {"message_no": message_no, "characters": characters, "extra_characters": extra_characters}
    row = connection.one("get_page_message", parameters)
    return None if row is None else sound(PageMessage, row)


def get_message_id(connection: Connection, message_no: int) -> str | None:
    return text_or_none(connection.value("find_message_id", {"message_no": message_no}))


def get_alternatives(connection: Connection, message_no: int, *, session_no: int) -> Row:
    """`count position previous next` of a message among its alternatives."""
    found = connection.one("get_alternatives", {"message_no": message_no, "session_no": session_no})
    assert found is not None
    return found


def list_branches(connection: Connection, session_id: str, *, session_no: int, limit: int) -> list[Row]:
    """The leaves of a session's newest branches: `message_no message_id message_count title updated_at`."""
    rows = connection.all("list_page_branches", {"session_id": session_id, "session_no": session_no, "limit": limit})
    return [sound(PageBranch, row) for row in rows]


def get_message_text(connection: Connection, message_id: str, *, session_id: str) -> str | None:
    """The full text of a session's message."""
    return text_or_none(connection.value("get_message_text", {"message_id": message_id, "session_id": session_id}))


def get_message_blob(connection: Connection, message_id: str, *, session_id: str, digest: str) -> str | None:
    """A blob of a session's message: a data URL, as it was sent."""
    parameters = {"message_id": message_id, "session_id": session_id, "digest": digest}
    return text_or_none(connection.value("get_message_blob", parameters))


def iterate_fragments(connection: Connection, exchange_id: str, *, start: int) -> Iterator[tuple[int, bytes]]:
    """The fragments of a reply in progress, from position `start` on."""
    parameters = {"exchange_id": exchange_id, "sequence": start}
    for row in connection.each("list_fragments_from", parameters):
        yield row["sequence"], row["data"]


def sum_usage(
    connection: Connection, *, by: str, since: str, until: str, user_id: str | None, limit: int, offset: int = 0
) -> list[Row]:
    """Sums of `usage_days` by `day`, `model`, `user` or `endpoint`, from `since` to `until` inclusive."""
    parameters: Row = {"since": since, "until": until, "limit": limit, "offset": offset}
    of_all, of_user = _SUMS[by]
    if user_id is not None:
        return connection.all(of_user, parameters | {"user_id": user_id})
    few = _sum_few(connection, by, since=since, until=until) if by in _SUMS_OF_FEW else None
    return connection.all(of_all, parameters) if few is None else few[offset : offset + limit]


def _sum_few(connection: Connection, by: str, *, since: str, until: str) -> list[Row] | None:
    """The sums of each model or endpoint, most tokens first; None if there are more than a few."""
    names_of, sums_of = _SUMS_OF_FEW[by]
    names = connection.values(names_of, {"since": since, "until": until, "limit": _FEW + 1})
    if len(names) > _FEW:
        return None
    parameters: list[Row] = [{"since": since, "until": until, "name": name} for name in names]
    rows = [row for each in parameters if (row := connection.one(sums_of, each)) is not None]
    if any(None in row.values() for row in rows):  # a damaged name, which is read as another text
        return None
    return sorted(
        rows, key=lambda row: (-row["prompt_tokens"] - row["completion_tokens"], -row["requests"], row["name"])
    )


def sum_usage_totals(connection: Connection, *, since: str, until: str, user_id: str | None, limit: int) -> list[Row]:
    """The main sums by day."""
    if user_id is None:
        return connection.all("sum_usage_totals", {"since": since, "until": until, "limit": limit, "offset": 0})
    return sum_usage(connection, by="day", since=since, until=until, user_id=user_id, limit=limit)


def list_keys(connection: Connection, *, user_id: str | None, limit: int) -> list[ApiKey]:
    """The newest keys; all users' if `user_id` is None."""
    rows = connection.all("list_page_keys", {"user_id": user_id, "limit": limit})
    return [ApiKey(**row) for row in rows]


def get_web_session(connection: Connection, token_hash: bytes, *, now: str) -> WebSession | None:
    """The login with this token, unless expired."""
    row = connection.one("get_web_session", {"token_hash": token_hash, "now": now})
    return None if row is None else WebSession(**row)


def insert_web_session(
    connection: Connection, token_hash: bytes, *, key_hash: bytes, now: str, expires_at: str, most: int
) -> None:
    """Stores a login. Deletes expired ones, and the key's oldest beyond `most`."""
    connection.changes("delete_expired_web_sessions", {"now": now})
    parameters = {"token_hash": token_hash, "key_hash": key_hash, "created_at": now, "expires_at": expires_at}
    connection.changes("insert_web_session", parameters)
    connection.changes("delete_oldest_web_sessions", {"key_hash": key_hash, "most": most})


def extend_web_session(connection: Connection, token_hash: bytes, *, expires_at: str) -> None:
    """Extends a login."""
    connection.changes("extend_web_session", {"token_hash": token_hash, "expires_at": expires_at})


def delete_web_session(connection: Connection, token_hash: bytes) -> None:
    connection.changes("delete_web_session", {"token_hash": token_hash})
