"""One typed function per named query of `sql/queries`. Each takes the connection; the caller owns the transaction."""

import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

from proxy.ids import timestamp_after
from proxy.storage.sqlite import SQL
from proxy.wire.message import Columns

DEFAULT_USER_ID = "default_user"

# WriteBatch that one statement stores at most. Fewer are stored in powers of two, so that few statements are compiled.
_ROWS_MAX = 64

# How vLLM, and StellarChat where no one else has, names a reply: by the id of its request.
COMPLETION_PREFIX = "chatcmpl-"

# What nearly all messages say, and what stands for it in the table; get_message and export_messages put it back.
_USUAL = {"content_form": ("text", None), "choice": ('{"finish_reason":"stop"}', ""), "status": ("completed", None)}


def load_queries() -> dict[str, str]:
    """The statements of `sql/queries/*.sql` by the name in the `-- name:` line above each."""
    return named_statements(
        "\n".join(file.read_text(encoding="utf-8") for file in sorted((SQL / "queries").glob("*.sql")))
    )


def named_statements(text: str) -> dict[str, str]:
    """The statements of a script by the name in the `-- name:` line above each."""
    parts = re.split(r"^-- name: *(\w+) *$", text, flags=re.MULTILINE)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


QUERIES = load_queries()


@dataclass(frozen=True, slots=True)
class User:
    """A row of `users`."""

    user_id: str
    username: str | None
    session_count: int
    active_session_count: int
    created_at: str
    last_active: str


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


@dataclass(frozen=True, slots=True)
class MessageNode:
    """Where a message stands in its tree."""

    message_no: int
    session_id: str
    parent_no: int | None
    depth: int
    role: str
    chain_hash: bytes


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


@dataclass(frozen=True, slots=True)
class ExchangeRow:
    """A row of `exchanges`; `context`, `parameters`, `metadata`, `completion` and `error` are JSON text."""

    exchange_no: int
    exchange_id: str
    session_id: str
    session_no: int
    user_id: str
    leaf_no: int | None
    context: str | None
    linked_count: int | None
    endpoint: str
    model: str | None
    status: str
    http_status: int | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    reasoning_tokens: int | None
    cached_tokens: int | None
    time_to_first_token_ms: int | None
    duration_ms: int | None
    parameters: str
    metadata: str | None
    request_id: str
    completion_id: str | None
    completion: str | None
    completion_created: int | None
    error: str | None
    worker_id: str | None
    created_at: str
    completed_at: str | None
    wire: str | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A row of `api_keys`; the key itself is not kept."""

    key_id: str
    user_id: str
    name: str | None
    key_hash: bytes
    hint: str
    is_admin: bool
    requests_per_minute: int | None
    tokens_per_day: int | None
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None


class Unfinished(NamedTuple):
    """An exchange in progress, as its end needs it."""

    exchange_no: int
    exchange_id: str
    session_id: str
    session_no: int
    user_id: str
    asked_model: str | None
    created_at: str
    leaf_no: int | None
    goes_on: bool  # something follows its request's last message
    user_no: int
    endpoint: str


@dataclass(slots=True)
class Numbers:
    """The last numbers given out."""

    session_no: int
    message_no: int
    exchange_no: int


class Candidate(NamedTuple):
    """An exchange by what a list of completions is filtered by; `metadata` is JSON text."""

    exchange_id: str
    status: str
    model: str | None
    metadata: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which part of a list: `after` is the id of the last item of the page before."""

    limit: int
    offset: int = 0
    after: str | None = None


def _one(connection: sqlite3.Connection, name: str, parameters: dict[str, Any]) -> Any:
    return connection.execute(QUERIES[name], parameters).fetchone()


def _all(connection: sqlite3.Connection, name: str, parameters: dict[str, Any]) -> list[Any]:
    return connection.execute(QUERIES[name], parameters).fetchall()


def _changes(connection: sqlite3.Connection, name: str, parameters: dict[str, Any]) -> int:
    return connection.execute(QUERIES[name], parameters).rowcount


@lru_cache(maxsize=256)
def _widened(name: str, rows: int) -> tuple[str, list[str]]:
    """A statement with one row of VALUES, for several rows whose parameters go by position, and their names."""
    before, row, after = re.split(r"(?<=VALUES )(\(.*?\))", QUERIES[name], maxsplit=1, flags=re.DOTALL)
    names = re.findall(r":(\w+)", row)
    places = "(" + ", ".join("?" * len(names)) + ")"
    return before + ", ".join([places] * rows) + after, names


def _store(connection: sqlite3.Connection, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Run a statement that has one row of VALUES for many rows. Each statement hands Python's lock over and back."""
    start = 0
    while left := len(rows) - start:
        size = min(_ROWS_MAX, 1 << (left.bit_length() - 1))
        statement, names = _widened(name, size)
        connection.execute(statement, [row[name] for row in rows[start : start + size] for name in names])
        start += size


# --- users


def upsert_user(connection: sqlite3.Connection, *, user_id: str, now: str) -> None:
    """Make the user where there is none; it was active now."""
    _changes(connection, "upsert_user", {"user_id": user_id, "now": now})


def find_user_no(connection: sqlite3.Connection, user_id: str) -> int | None:
    """The number of the user, if there is one."""
    row = _one(connection, "find_user_no", {"user_id": user_id})
    return None if row is None else row[0]


def get_user(connection: sqlite3.Connection, user_id: str) -> User | None:
    """The user, if there is one."""
    row = _one(connection, "get_user", {"user_id": user_id})
    return None if row is None else User(*row)


def delete_user(connection: sqlite3.Connection, user_id: str) -> bool:
    """Delete the user and all that is its; whether there was one."""
    return _changes(connection, "delete_user", {"user_id": user_id}) > 0


def delete_some_of_user(connection: sqlite3.Connection, user_id: str, *, limit: int) -> int:
    """Delete some of what is a user's, what depends on others first; how much was found."""
    parameters = {"user_id": user_id, "limit": limit}
    for name in ("delete_messages_of_user", "delete_exchanges_of_user", "delete_empty_sessions_of_user"):
        if deleted := _changes(connection, name, parameters):
            return deleted
    return 0


def count_sessions(connection: sqlite3.Connection, user_id: str, *, sessions: int, active: int) -> None:
    """Count sessions that were made."""
    _changes(connection, "count_sessions", {"user_id": user_id, "sessions": sessions, "active": active})


# --- tombstones


def upsert_tombstone(connection: sqlite3.Connection, *, digest: bytes, kind: str, now: str) -> None:
    """Something was deleted now."""
    _changes(connection, "upsert_tombstone", {"digest": digest, "kind": kind, "now": now})


def get_boot_clock(connection: sqlite3.Connection) -> tuple[str, float] | None:
    """Which start of the machine the clock counts from, and when that was."""
    row: tuple[str, float] | None = _one(connection, "get_boot_clock", {})
    return row


def replace_boot_clock(connection: sqlite3.Connection, *, boot_id: str, started_at: float) -> None:
    """The machine was started anew."""
    _changes(connection, "delete_boot_clock", {})
    _changes(connection, "insert_boot_clock", {"boot_id": boot_id, "started_at": started_at})


def get_idempotency_key(connection: sqlite3.Connection, digest: bytes) -> tuple[bytes, str] | None:
    """The digest of the request with this key, and the id of what was made for it."""
    row: tuple[bytes, str] | None = _one(connection, "get_idempotency_key", {"digest": digest})
    return row


def insert_idempotency_key(
    connection: sqlite3.Connection, digest: bytes, *, request_digest: bytes, made_id: str, now: str
) -> None:
    """Remember what was made for a request with a key."""
    parameters = {"digest": digest, "request_digest": request_digest, "made_id": made_id, "now": now}
    _changes(connection, "insert_idempotency_key", parameters)


def delete_old_idempotency_keys(connection: sqlite3.Connection, *, before: str) -> int:
    """Forget the keys of retries that nobody makes any more; how many."""
    return _changes(connection, "delete_old_idempotency_keys", {"before": before})


def newest_deletion(connection: sqlite3.Connection) -> str:
    """When something was deleted last; empty where nothing was."""
    moment: str = _one(connection, "newest_deletion", {})[0]
    return moment


def was_deleted(connection: sqlite3.Connection, user_digest: bytes, session_digest: bytes, *, asked_at: str) -> bool:
    """Whether one of the two was deleted at that moment or later."""
    parameters = {"user_digest": user_digest, "session_digest": session_digest, "asked_at": asked_at}
    return bool(_one(connection, "was_deleted", parameters)[0])


def delete_old_tombstones(connection: sqlite3.Connection, *, before: str, limit: int) -> int:
    """Forget some deletions that are older; how many."""
    return _changes(connection, "delete_old_tombstones", {"before": before, "limit": limit})


# --- keys


def insert_key(connection: sqlite3.Connection, key: ApiKey) -> None:
    """Store a new key."""
    _changes(connection, "insert_key", {name: getattr(key, name) for name in ApiKey.__slots__})


def find_key(connection: sqlite3.Connection, key_hash: bytes) -> ApiKey | None:
    """The key with this hash, also one that is revoked or has expired."""
    row = _one(connection, "find_key", {"key_hash": key_hash})
    return None if row is None else ApiKey(*row)


def list_keys(connection: sqlite3.Connection, *, user_id: str | None = None) -> list[ApiKey]:
    """Every key, or a user's, oldest first."""
    return [ApiKey(*row) for row in _all(connection, "list_keys", {"user_id": user_id})]


def key_exists(connection: sqlite3.Connection) -> bool:
    """Whether there is any key, revoked ones included."""
    return bool(_one(connection, "key_exists", {})[0])


def revoke_key(connection: sqlite3.Connection, key: str, *, now: str) -> list[str]:
    """Revoke the keys with this id, or these first characters; the ids of those that were not revoked yet."""
    return [row[0] for row in _all(connection, "revoke_key", {"key": key, "now": now})]


def revoke_keys_of_user(connection: sqlite3.Connection, user_id: str, *, now: str) -> int:
    """Revoke a user's keys; how many were not revoked yet."""
    return _changes(connection, "revoke_keys_of_user", {"user_id": user_id, "now": now})


def touch_key(connection: sqlite3.Connection, key_id: str, *, used_at: str) -> None:
    """The key was used then."""
    _changes(connection, "touch_key", {"key_id": key_id, "used_at": used_at})


def sum_tokens(connection: sqlite3.Connection, *, user_id: str, since_id: str) -> int:
    """Tokens of a user's recorded chats from an identifier on."""
    total: int = _one(connection, "sum_tokens", {"user_id": user_id, "since_id": since_id})[0]
    return total


# --- usage


def count_usage(connection: sqlite3.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Count exchanges that have ended; each row is of another day, user, model or endpoint."""
    _store(connection, "count_usage", rows)


# --- sessions


def insert_session(
    connection: sqlite3.Connection,
    *,
    session_id: str,
    user_id: str,
    external_id: str | None,
    title: str,
    metadata: str | None,
    now: str,
) -> bool:
    """Make the session; false where its id, or its external id, is there already."""
    parameters = {
        "session_no": None,
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
    is_new = _changes(connection, "insert_session", parameters) > 0
    if is_new:
        count_sessions(connection, user_id, sessions=1, active=1)
    return is_new


def insert_sessions(connection: sqlite3.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Make active sessions whose ids are new, given by all their columns."""
    _store(connection, "insert_session", rows)
    users = [row["user_id"] for row in rows]
    for user_id in dict.fromkeys(users):
        count = users.count(user_id)
        count_sessions(connection, user_id, sessions=count, active=count)


def find_session_id(connection: sqlite3.Connection, *, id_: str, user_id: str | None) -> str | None:
    """The session with this id, its own or its client's; of any user where `user_id` is None."""
    parameters = {"id": id_, "user_id": user_id, "default_user_id": DEFAULT_USER_ID}
    row = _one(connection, "find_session_id", parameters)
    return None if row is None else row[0]


def get_session(connection: sqlite3.Connection, session_id: str, *, user_id: str | None = None) -> Session | None:
    """The session by its own id, if it is there and the user's."""
    row = _one(connection, "get_session", {"session_id": session_id, "user_id": user_id})
    return None if row is None else Session(*row)


def list_sessions(
    connection: sqlite3.Connection,
    *,
    user_id: str,
    page: Page,
    active_only: bool = False,
    since: str | None = None,
    until: str | None = None,
) -> list[Session]:
    """One page of a user's sessions, newest activity first."""
    before = None if page.after is None else get_session(connection, page.after, user_id=user_id)
    parameters = {
        "user_id": user_id,
        "active_only": active_only,
        "after_updated_at": before and before.updated_at,
        "after_session_id": before and before.session_id,
        "since": since,
        "until": until,
        "limit": page.limit,
        "offset": page.offset,
    }
    return [Session(*row) for row in _all(connection, "list_sessions", parameters)]


def list_session_ids(
    connection: sqlite3.Connection, *, user_id: str, page: Page, since: str | None = None, until: str | None = None
) -> list[str]:
    """The ids of one page of a user's sessions, newest activity first."""
    parameters = {
        "user_id": user_id,
        "since": since,
        "until": until,
        "limit": page.limit,
        "offset": page.offset,
    }
    return [row[0] for row in _all(connection, "list_session_ids", parameters)]


def count_sessions_between(
    connection: sqlite3.Connection, *, user_id: str, since: str | None, until: str | None
) -> int:
    """How many of a user's sessions were last active in a time span."""
    parameters = {"user_id": user_id, "since": since, "until": until}
    count: int = _one(connection, "count_sessions_between", parameters)[0]
    return count


def update_session(
    connection: sqlite3.Connection,
    *,
    session_id: str,
    title: str | None,
    is_active: bool | None,
    metadata: str | None,
    now: str,
) -> bool:
    """Change what is not None; whether the session is there."""
    parameters = {
        "session_id": session_id,
        "title": title,
        "is_active": is_active,
        "metadata": metadata,
        "now": now,
    }
    return _changes(connection, "update_session", parameters) > 0


def touch_sessions(connection: sqlite3.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Count messages that were stored below sessions; each `leaf_no` is the newest of them."""
    _store(connection, "touch_session", rows)


def shrink_session(
    connection: sqlite3.Connection, *, session_id: str, messages: int, tokens: int, leaf_no: int | None
) -> None:
    """Count messages that were deleted; `leaf_no` is the newest of those that are left."""
    parameters = {"session_id": session_id, "messages": messages, "tokens": tokens, "leaf_no": leaf_no}
    _changes(connection, "shrink_session", parameters)


def delete_session(connection: sqlite3.Connection, session_id: str) -> bool:
    """Delete the session, its messages and exchanges; whether it was there."""
    return _changes(connection, "delete_session", {"session_id": session_id}) > 0


# --- messages


def last_numbers(connection: sqlite3.Connection) -> Numbers:
    """The last numbers given out; to be read in the transaction that gives out the next ones."""
    return Numbers(*_one(connection, "last_numbers", {}))


def insert_messages(connection: sqlite3.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Store messages given by all their columns."""
    for row in rows:
        leave_out_usual(row)
    _store(connection, "insert_message", rows)


def leave_out_usual(columns: dict[str, Any]) -> None:
    """Have columns of a message say nothing of what nearly all say, in place."""
    for name, (usual, short) in _USUAL.items():
        if columns.get(name) == usual:
            columns[name] = short


def list_prefix(connection: sqlite3.Connection, hashes: Iterable[bytes], *, limit: int) -> list[StitchCandidate]:
    """Of chain hashes, longest prefix first: where the first that is stored is, in any session, newest first."""
    return [
        StitchCandidate(*row) for row in _all(connection, "list_prefix", {"hashes": b"".join(hashes), "limit": limit})
    ]


def find_prefix_in_session(
    connection: sqlite3.Connection, hashes: Iterable[bytes], *, session_no: int
) -> tuple[int, int] | None:
    """The same inside one session: position and message of the first that is stored."""
    row = _one(connection, "find_prefix_in_session", {"hashes": b"".join(hashes), "session_no": session_no})
    return None if row is None else (row[0], row[1])


def get_node(connection: sqlite3.Connection, message_no: int) -> MessageNode | None:
    """Where a message stands, if it is there."""
    row = _one(connection, "get_node", {"message_no": message_no})
    return None if row is None else MessageNode(*row)


def find_node_by_hash(connection: sqlite3.Connection, chain_hash: bytes, *, session_no: int) -> MessageNode | None:
    """A message of the session by its hash."""
    row = _one(connection, "find_node_by_hash", {"chain_hash": chain_hash, "session_no": session_no})
    return None if row is None else MessageNode(*row)


def list_ancestors(
    connection: sqlite3.Connection, node_no: int, *, session_id: str, limit: int = -1
) -> list[MessageNode]:
    """A message and those above it, nearest first."""
    parameters = {"message_no": node_no, "session_id": session_id, "limit": limit}
    return [MessageNode(*row) for row in _all(connection, "list_ancestors", parameters)]


def list_path(connection: sqlite3.Connection, leaf_no: int) -> list[BranchNode]:
    """A message and those above it, nearest first."""
    return [BranchNode(*row) for row in _all(connection, "list_path", {"message_no": leaf_no})]


def newest_leaf_below(connection: sqlite3.Connection, message_no: int, *, session_no: int) -> int:
    """The end of the newest branch through a message."""
    row = _one(connection, "newest_leaf_below", {"message_no": message_no, "session_no": session_no})
    return int(row[0])


def newest_message_no(connection: sqlite3.Connection, session_id: str) -> int | None:
    """The message stored last in a session."""
    number: int | None = _one(connection, "newest_message_no", {"session_id": session_id})[0]
    return number


def get_message(connection: sqlite3.Connection, message_no: int) -> Message | None:
    """The message, if it is there."""
    row = _one(connection, "get_message", {"message_no": message_no})
    return None if row is None else Message(*row)


def find_message_no(connection: sqlite3.Connection, message_id: str, *, session_id: str) -> int | None:
    """The number of a session's message."""
    row = _one(connection, "find_message_no", {"message_id": message_id, "session_id": session_id})
    return None if row is None else row[0]


def list_replies(connection: sqlite3.Connection, row: "ExchangeRow | Unfinished") -> list[int]:
    """The numbers of an exchange's replies, in the order of their choices."""
    parameters = {"session_no": row.session_no, "leaf_no": row.leaf_no, "exchange_no": row.exchange_no}
    return [found[0] for found in _all(connection, "list_replies", parameters)]


def delete_message_at_end(connection: sqlite3.Connection, message_no: int, *, session_no: int) -> int | None:
    """Delete a message that nothing follows: its tokens, or None where it stays."""
    row = _one(connection, "delete_message_at_end", {"message_no": message_no, "session_no": session_no})
    return None if row is None else int(row[0])


def find_item_no(connection: sqlite3.Connection, message_id: str, *, session_id: str) -> int | None:
    """The number of a session's message, or of the last one before it."""
    row = _one(connection, "find_item_no", {"message_id": message_id, "session_id": session_id})
    return None if row is None else row[0]


def reparent(connection: sqlite3.Connection, message_no: int, *, session_id: str, parent_no: int | None) -> None:
    """Let what follows a message follow another."""
    parameters = {"message_no": message_no, "session_id": session_id, "parent_no": parent_no}
    _changes(connection, "reparent", parameters)


def delete_message(connection: sqlite3.Connection, message_no: int) -> int:
    """Delete a message that is there and that none follows; its tokens."""
    tokens: int = _one(connection, "delete_message", {"message_no": message_no})[0]
    return tokens


def update_message(connection: sqlite3.Connection, message_no: int, columns: Columns) -> None:
    """Set what a message says. Its large parts stay until it is deleted."""
    parameters: dict[str, Any] = {
        "message_no": message_no,
        "content": columns.content,
        "content_form": columns.content_form,
        "extra": columns.extra,
        "wire": columns.wire,
    }
    leave_out_usual(parameters)
    _changes(connection, "update_message", parameters)


def list_message_blobs(connection: sqlite3.Connection, message_no: int) -> dict[str, str]:
    """The large parts of a message by digest."""
    return dict(_all(connection, "list_message_blobs", {"message_no": message_no}))


def adopt_reply(connection: sqlite3.Connection, columns: dict[str, Any]) -> int | None:
    """Make the copy of a reply that a later request brought along the reply itself; its number, where there is one."""
    leave_out_usual(columns)
    row = _one(connection, "adopt_reply", columns)
    return None if row is None else int(row[0])


def insert_blob(connection: sqlite3.Connection, *, message_no: int, digest: str, data: str) -> None:
    """Store a large part of a message, once a database."""
    _changes(connection, "insert_blob", {"digest": digest, "data": data})
    _changes(connection, "insert_message_blob", {"message_no": message_no, "digest": digest})


# --- exchanges


def keep_parameters(connection: sqlite3.Connection, data: str, *, endpoint: str, asked_model: str | None) -> int:
    """The number of a request's parameters, JSON text, stored once. `asked_model` is the one they name."""
    digest = sha256(f"{endpoint}\n{data}".encode()).digest()
    row = _one(connection, "find_parameters", {"digest": digest})
    if row is not None:
        return int(row[0])
    # Half as dear as RETURNING; PostgreSQL would return it.
    parameters = {"digest": digest, "endpoint": endpoint, "model": asked_model, "data": data}
    number = connection.execute(QUERIES["insert_parameters"], parameters).lastrowid
    assert number is not None
    return number


def insert_exchanges(connection: sqlite3.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Store exchanges given by all their columns."""
    _store(connection, "insert_exchange", [_shortened(row) for row in rows])


def finish_exchanges(connection: sqlite3.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Store the outcomes of exchanges in progress, given by their ids and the columns that their end sets."""
    _store(connection, "finish_exchange", [_shortened(row) for row in rows])


def get_exchange_in_progress(connection: sqlite3.Connection, exchange_id: str) -> Unfinished | None:
    """The exchange, if it is there and has not ended."""
    row = _one(connection, "get_exchange_in_progress", {"exchange_id": exchange_id})
    return None if row is None else Unfinished(*row)


def mark_recovered(connection: sqlite3.Connection, exchange_id: str, *, worker_id: str) -> None:
    """Its end was guessed, since this process seemed gone."""
    _changes(connection, "mark_recovered", {"exchange_id": exchange_id, "worker_id": worker_id})


def reopen_recovered(connection: sqlite3.Connection, exchange_id: str) -> bool:
    """Whether the exchange's end was guessed; then it is in progress again."""
    return _changes(connection, "reopen_recovered", {"exchange_id": exchange_id}) > 0


def find_exchange_id(connection: sqlite3.Connection, exchange_no: int) -> str | None:
    """The id of the exchange with this number, if it is there."""
    row = _one(connection, "find_exchange_id", {"exchange_no": exchange_no})
    return None if row is None else row[0]


def find_exchange_no(connection: sqlite3.Connection, exchange_id: str) -> int | None:
    """The number of the exchange with this id, if it is there."""
    row = _one(connection, "find_exchange_no", {"exchange_id": exchange_id})
    return None if row is None else row[0]


def _shortened(row: dict[str, Any]) -> dict[str, Any]:
    """Ids that follow from the exchange's own are not written out, nor is a model that is the one asked for."""
    exchange_id, request_id, completion_id = row["exchange_id"], row.get("request_id"), row["completion_id"]
    return row | {
        "request_id": None if request_id == exchange_id else request_id,
        "completion_id": "" if completion_id == COMPLETION_PREFIX + exchange_id else completion_id,
        "model": None if row["model"] == row["asked_model"] else row["model"],
    }


def get_exchange(connection: sqlite3.Connection, exchange_id: str) -> ExchangeRow | None:
    """The exchange, if it is there."""
    row = _one(connection, "get_exchange", {"exchange_id": exchange_id})
    return None if row is None else _exchange(row)


def list_exchanges(connection: sqlite3.Connection, *, session_id: str, page: Page) -> list[ExchangeRow]:
    """One page of a session's exchanges in the order they were stored."""
    parameters = {"session_id": session_id, "limit": page.limit, "offset": page.offset, "after": page.after}
    return [_exchange(row) for row in _all(connection, "list_exchanges", parameters)]


def _exchange(row: Sequence[Any]) -> ExchangeRow:
    exchange = ExchangeRow(*row)
    return replace(exchange, completed_at=end_of(exchange.created_at, exchange.duration_ms, exchange.completed_at))


def end_of(created_at: str, duration_ms: int | None, completed_at: str | None) -> str | None:
    """When an exchange ended, by its columns: where that is not written, the duration says it."""
    if completed_at is not None or duration_ms is None:
        return completed_at
    return timestamp_after(created_at, duration_ms)


def count_exchanges(connection: sqlite3.Connection, session_id: str) -> int:
    """How many exchanges a session has."""
    count: int = _one(connection, "count_exchanges", {"session_id": session_id})[0]
    return count


def find_stored_exchange(connection: sqlite3.Connection, completion_id: str, *, user_id: str | None) -> str | None:
    """The newest ended exchange with upstream's id; of any user where `user_id` is None."""
    parameters = {"completion_id": completion_id, "user_id": user_id}
    name = "find_stored_exchange" if user_id is not None else "find_stored_exchange_of_anyone"
    row = _one(connection, name, parameters)
    return None if row is None else row[0]


def scan_exchanges_of_user(
    connection: sqlite3.Connection, user_id: str, *, after: str, limit: int, newest_first: bool
) -> list[Candidate]:
    """The next exchanges of a user after one."""
    parameters = {"user_id": user_id, "after": after, "limit": limit}
    name = "scan_exchanges_of_user_newest_first" if newest_first else "scan_exchanges_of_user"
    return [Candidate(*row) for row in _all(connection, name, parameters)]


def scan_exchanges_of_session(
    connection: sqlite3.Connection, session_id: str, *, after: str, limit: int, newest_first: bool
) -> list[Candidate]:
    """The next exchanges of a session after one."""
    parameters = {"session_id": session_id, "after": after, "limit": limit}
    name = "scan_exchanges_of_session_newest_first" if newest_first else "scan_exchanges_of_session"
    return [Candidate(*row) for row in _all(connection, name, parameters)]


def update_exchange_metadata(connection: sqlite3.Connection, *, exchange_id: str, metadata: str | None) -> None:
    """Set the metadata of an exchange."""
    _changes(connection, "update_exchange_metadata", {"exchange_id": exchange_id, "metadata": metadata})


def delete_exchange(connection: sqlite3.Connection, exchange_id: str) -> None:
    """Delete an exchange; its messages stay."""
    _changes(connection, "delete_exchange", {"exchange_id": exchange_id})


def move_requests(connection: sqlite3.Connection, message_no: int, *, session_id: str, parent_no: int | None) -> None:
    """Let the requests that end with a message end with another."""
    parameters = {"message_no": message_no, "session_id": session_id, "parent_no": parent_no}
    _changes(connection, "move_requests", parameters)


def list_contexts(connection: sqlite3.Connection, session_id: str) -> list[tuple[str, str]]:
    """The exchanges of a session whose requests had system messages, and which."""
    return _all(connection, "list_contexts", {"session_id": session_id})


def update_context(connection: sqlite3.Connection, exchange_id: str, context: str | None) -> None:
    """Set the system messages of a request."""
    _changes(connection, "update_context", {"exchange_id": exchange_id, "context": context})


def list_workers_in_progress(connection: sqlite3.Connection) -> list[str]:
    """The processes that have exchanges in progress."""
    return [row[0] for row in _all(connection, "list_workers_in_progress", {})]


def list_exchanges_in_progress(connection: sqlite3.Connection, worker_id: str) -> list[tuple[str, str]]:
    """The exchanges a process has in progress, each with its endpoint."""
    return _all(connection, "list_exchanges_in_progress", {"worker_id": worker_id})


def insert_fragments(connection: sqlite3.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Store the next pieces of replies in progress, each with `exchange_id`, `sequence` and `data`."""
    _store(connection, "insert_fragment", rows)


def iterate_fragments(connection: sqlite3.Connection, exchange_id: str) -> Iterator[bytes]:
    """What a reply in progress had streamed, in order."""
    for row in connection.execute(QUERIES["list_fragments"], {"exchange_id": exchange_id}):
        yield row[0]


def list_fragments_from(
    connection: sqlite3.Connection, exchange_id: str, *, start: int, stop: int | None
) -> list[bytes]:
    """What a reply has streamed, from one piece on up to another, or to the last."""
    parameters = {"exchange_id": exchange_id, "start": start, "stop": 2**62 if stop is None else stop}
    return [row[0] for row in _all(connection, "list_fragments_from", parameters)]


def delete_fragments(connection: sqlite3.Connection, exchange_ids: Iterable[str]) -> None:
    """Delete the pieces of those of the exchanges that have ended."""
    _store(connection, "delete_fragments", [{"exchange_id": exchange_id} for exchange_id in exchange_ids])


def delete_stray_fragments(connection: sqlite3.Connection, *, before: str) -> None:
    """Delete the pieces of all exchanges that have ended, but those of responses that began after a moment."""
    _changes(connection, "delete_stray_fragments", {"before": before})
