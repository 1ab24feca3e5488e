"""Collects a transaction's new rows and inserts many per statement.

Every statement releases and retakes the GIL, which costs more than inserting a row, so chats that are committed
together are inserted together. Reads in between must go through this batch, which first flushes the rows they need.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from proxy.storage import queries, usage
from proxy.storage.connection import Connection, Numbers
from proxy.storage.expected import Expected
from proxy.storage.parameters import Parameters
from proxy.storage.queries.responses import insert_response_items

Columns = dict[str, Any]

UNFINISHED: Final = object()
"""Returned by work that is long and wants to continue in another transaction."""

# A transaction starts no further write after this time, so that one caller cannot delay the others' commits.
_SLICE_SECONDS = 0.1
_LONG_SECONDS = 0.015  # the share of a single long write: storing what it gathers takes three times as long again

# SQLite copies all parameters of a statement, so large values are written in small groups.
_TOGETHER_BYTES = 4 * 2**20


@dataclass(slots=True)
class SessionDelta:
    """The messages and tokens that a transaction adds to one session, its newest leaf, and the time."""

    now: str
    messages: int = 0
    tokens: int = 0
    leaf_no: int | None = None


@dataclass(slots=True)
class _Waiting:
    """Rows not inserted yet, in the order of their foreign keys."""

    seen: dict[str, str] = field(default_factory=dict)  # users, and when they were active
    sessions: dict[str, Columns] = field(default_factory=dict)
    exchanges: list[Columns] = field(default_factory=list)
    messages: list[Columns] = field(default_factory=list)
    blobs: list[tuple[int, str, str]] = field(default_factory=list)
    items: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)  # of Responses: message number and item ids
    jumps: list[dict[str, int]] = field(default_factory=list)
    fragments: list[Columns] = field(default_factory=list)
    outcomes: list[Columns] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)  # exchanges whose fragments are not needed any more
    touched: dict[str, Columns] = field(default_factory=dict)
    usage: dict[tuple[Any, ...], Columns] = field(default_factory=dict)
    size: int = 0
    ids: set[str] = field(default_factory=set)  # sessions, by both of their ids, and exchanges with rows above


class WriteBatch:
    """The rows of one write transaction. Nothing reaches the database before `flush()`.

    Row ids are assigned here, continuing from the tables' highest ids at the start of the transaction.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._numbers: Numbers | None = None
        self._parameters: dict[tuple[str, str, str | None], int] = {}
        self._upstreams: dict[str, int] = {}
        self._active: dict[str, int] = {}
        self._newest_deletion: str | None = None
        self._waiting = _Waiting()
        now = time.monotonic()
        self.slice_ends_at = now + _SLICE_SECONDS
        self.long_ends_at = now + _LONG_SECONDS

    def read_ahead(self, expected: Callable[[], Expected]) -> None:
        """Called first with what the writes will look up."""
        self._connection.read_ahead(expected)

    @property
    def connection(self) -> Connection:
        """The connection, after a flush. The row ids are read again afterwards, because the caller may insert rows."""
        self.flush()
        self._numbers = None
        self._parameters.clear()
        self._upstreams.clear()
        self._active.clear()
        self._newest_deletion = None
        return self._connection

    def about(self, id_: str) -> Connection:
        """The connection, for reading rows below one session or exchange; flushes only if some are pending."""
        if self.waits_for(id_):
            self.flush()
        return self._connection

    def waits_for(self, id_: str) -> bool:
        """Whether rows below a session or exchange are pending."""
        return id_ in self._waiting.ids

    def flush(self) -> None:
        """Inserts the pending rows, referenced tables first."""
        waiting = self._waiting
        if not (waiting.ids or waiting.fragments or waiting.ended):
            return
        self._waiting = _Waiting()
        connection = self._connection
        queries.users.touch_users(connection, waiting.seen)
        queries.sessions.insert_sessions(connection, list(waiting.sessions.values()))
        queries.exchanges.insert_exchanges(connection, waiting.exchanges)
        queries.messages.insert_messages(connection, waiting.messages)
        for message_no, digest, data in waiting.blobs:
            queries.messages.insert_blob(connection, message_no=message_no, digest=digest, data=data)
        for message_no, item_ids in waiting.items:
            insert_response_items(connection, item_ids, message_no=message_no)
        queries.jumps.insert_jumps(connection, waiting.jumps)
        queries.fragments.insert_fragments(connection, waiting.fragments)
        queries.exchanges.finish_exchanges(connection, waiting.outcomes)
        queries.fragments.delete_fragments(connection, waiting.ended)
        queries.sessions.touch_sessions(connection, list(waiting.touched.values()))
        queries.usage.count_usage(connection, list(waiting.usage.values()))

    @property
    def newest_deletion(self) -> str:
        """The time of the last deletion on request; "" if there was none."""
        if self._newest_deletion is None:
            self._newest_deletion = queries.tombstones.newest_deletion(self._connection)
        return self._newest_deletion

    # Pending rows

    def active_user_no(self, user_id: str, *, now: str) -> int:
        """Sets the user's last activity, inserts the user if missing; returns its number."""
        number = self._active.get(user_id)
        if number is None:
            number = self._active[user_id] = self._user_no(user_id, now=now)
        return number

    def _user_no(self, user_id: str, *, now: str) -> int:
        number = queries.users.find_user_no(self._connection, user_id)
        if number is not None:
            self._waiting.seen[user_id] = now
            return number
        numbers = self._given()
        numbers.user_no += 1
        queries.users.insert_user(self._connection, user_no=numbers.user_no, user_id=user_id, now=now)
        return numbers.user_no

    def add_session(self, columns: Columns) -> int:
        """Adds a session; returns its number."""
        numbers = self._given()
        numbers.session_no += 1
        session_id = columns["session_id"]
        self._waiting.sessions[session_id] = {"session_no": numbers.session_no, **_EMPTY, **columns}
        self._waiting.ids.add(session_id)
        if columns["external_id"] is not None:
            self._waiting.ids.add(columns["external_id"])
        return numbers.session_no

    def next_exchange_no(self) -> int:
        """Reserves the number of an exchange that is added later."""
        numbers = self._given()
        numbers.exchange_no += 1
        return numbers.exchange_no

    def add_exchange(self, columns: Columns) -> None:
        """Adds an exchange; its parameters are JSON text. The columns are completed in place."""
        columns["parameters_no"] = self._parameters_no(columns)
        columns["upstream_no"] = self._upstream_no(columns)
        self._waiting.exchanges.append(columns)
        self._waiting.ids.update((columns["session_id"], columns["exchange_id"]))

    def add_message(self, columns: Columns, *, blobs: dict[str, str]) -> int:
        """Adds a message and its blobs by digest; returns its number."""
        numbers = self._given()
        numbers.message_no += 1
        columns["message_no"] = numbers.message_no
        if columns["root_no"] == 0:  # it starts a conversation
            columns["root_no"] = numbers.message_no
        self._waiting.messages.append(columns)
        self._waiting.ids.add(columns["session_id"])
        self._waiting.blobs += [(numbers.message_no, digest, data) for digest, data in blobs.items()]
        self._count_bytes(columns["content"], columns["extra"], columns["choice"], *blobs.values())
        return numbers.message_no

    def add_response_items(self, message_no: int, item_ids: tuple[str, ...]) -> None:
        """Adds the item ids of a new message."""
        if item_ids:
            self._waiting.items.append((message_no, item_ids))

    def add_jump(self, jump: dict[str, int]) -> None:
        """Adds the jump pointer of a message."""
        self._waiting.jumps.append(jump)

    def add_fragment(self, *, exchange_id: str, sequence: int, data: bytes) -> None:
        """Adds a fragment of a reply in progress."""
        self._waiting.fragments.append({"exchange_id": exchange_id, "sequence": sequence, "data": data})
        self._count_bytes(data)

    def delete_fragments(self, exchange_ids: Iterable[str]) -> None:
        """Deletes the fragments of those of the exchanges that will have ended."""
        self._waiting.ended += exchange_ids

    def finish_exchange(self, columns: Columns) -> None:
        """Adds the outcome of an exchange in progress."""
        self._waiting.outcomes.append(columns | {"upstream_no": self._upstream_no(columns)})
        self._waiting.ids.update((columns["session_id"], columns["exchange_id"]))

    def count_usage(self, columns: Columns) -> None:
        """Adds an ended exchange to the usage counts; takes its columns plus `user_no` and `endpoint`."""
        usage.add_usage(self._waiting.usage, columns)

    def uncount_usage(self, columns: Columns) -> None:
        """Subtracts from the usage counts what an exchange has added with these columns."""
        usage.subtract_usage(self._waiting.usage, columns)

    def touch_session(self, session_id: str, delta: SessionDelta) -> None:
        """Adds to a session's counts: sets them for a new session, increases them otherwise."""
        made = self._waiting.sessions.get(session_id)
        if made is not None:
            made["message_count"] += delta.messages
            made["tokens"] += delta.tokens
            made["leaf_no"] = delta.leaf_no or made["leaf_no"]
            return
        touched = self._waiting.touched.setdefault(
            session_id, {"session_id": session_id, "messages": 0, "tokens": 0, "leaf_no": None}
        )
        touched["messages"] += delta.messages
        touched["tokens"] += delta.tokens
        touched["leaf_no"] = delta.leaf_no or touched["leaf_no"]
        touched["now"] = delta.now
        self._waiting.ids.add(session_id)

    def _count_bytes(self, *values: str | bytes | None) -> None:
        waiting = self._waiting
        for value in values:
            if value:
                waiting.size += len(value)
        if waiting.size > _TOGETHER_BYTES:
            self.flush()

    def _given(self) -> Numbers:
        if self._numbers is None:
            self._numbers = self._connection.numbers()
        return self._numbers

    def _parameters_no(self, columns: Columns) -> int:
        endpoint, common, tools = key = (columns["endpoint"], columns["parameters"], columns["tools"])
        number = self._parameters.get(key)
        if number is None:
            parts = Parameters(common, tools, None)
            number = self._parameters[key] = queries.exchanges.keep_parameters(
                self._connection, parts, endpoint=endpoint, asked_model=columns["asked_model"], numbers=self._given
            )
        return number

    def _upstream_no(self, columns: Columns) -> int | None:
        name = columns["upstream"]
        if name is None:
            return None
        number = self._upstreams.get(name)
        if number is None:
            number = self._upstreams[name] = queries.exchanges.keep_upstream(
                self._connection, name, numbers=self._given
            )
        return number


@contextmanager
def write_batch(connection: Connection) -> Iterator[WriteBatch]:
    """A write transaction; its rows are inserted when the block ends."""
    with connection.transaction():
        rows = WriteBatch(connection)
        yield rows
        rows.flush()


_EMPTY: Columns = {"leaf_no": None, "message_count": 0, "tokens": 0}
