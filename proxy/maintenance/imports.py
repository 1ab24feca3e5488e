"""Imports a jsonl export: existing rows are kept, missing ones are added.

The file may come from someone else: an invalid line, or one that refers to another session's data, is skipped and
reported; all other lines are imported.
"""

from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from proxy.maintenance.export import VERSION
from proxy.maintenance.import_rows import RowError, checked
from proxy.settings import ConfigurationError
from proxy.storage import ancestry, queries
from proxy.storage.connection import Connection
from proxy.storage.errors import StorageError, is_trouble
from proxy.storage.exchange_columns import asked_model
from proxy.storage.parameters import split
from proxy.storage.queries.imports import Place
from proxy.storage.usage import usage_of
from proxy.wire import json_text

# Chats wait for each transaction of an import, so batches are small.
_BATCH_LINES = 200
_BATCH_BYTES = 4 * 2**20
# A file without line ends, such as a backup, must not be read into memory whole.
LINE_BYTES_MAX = 512 * 2**20
_REFUSED_NAMED = 20  # lines; the others are only counted
_REASON_LENGTH = 200
# The first bytes of every SQLite file: https://sqlite.org/fileformat.html#magic_header_string
_SQLITE = b"SQLite format 3\0"

Row = dict[str, Any]

# Defaults for columns that older exports do not have.
_NEWER_MESSAGE_COLUMNS: Row = dict.fromkeys(queries.messages.Message.__slots__)
_NEWER_EXCHANGE_COLUMNS: Row = dict.fromkeys(queries.exchanges.ExchangeRow.__slots__)


@dataclass(slots=True)
class Imported:
    """How many rows of each kind were added."""

    users: int = 0
    blobs: int = 0
    sessions: int = 0
    messages: int = 0
    exchanges: int = 0
    read_bytes: int = field(default=0, compare=False)
    refused: list[str] = field(default_factory=list, compare=False)  # the first skipped lines with their reasons
    refused_count: int = 0


def load(connection: Connection, lines: Iterable[bytes], *, progress: Callable[[Imported], None]) -> Imported:
    """Imports an export line by line; no transaction may be open.

    Raises ConfigurationError if the file is not an export, or if the database cannot be written.
    """
    reader = _Reader(connection)
    for batch in _batches(lines):
        with connection.transaction():
            for number, line in batch:
                reader.take(number, line)
            reader.settle()
        progress(reader.imported)
    if not reader.has_header:
        raise ConfigurationError("this is not an export of StellarChat: it is empty")
    return reader.imported


def _batches(lines: Iterable[bytes]) -> Iterator[list[tuple[int, bytes]]]:
    batch: list[tuple[int, bytes]] = []
    size = 0
    for number, line in enumerate(lines, 1):
        batch.append((number, line))
        size += len(line)
        if len(batch) >= _BATCH_LINES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Reader:
    """Imports lines one after another. A session's counts are updated when its lines, or the batch, end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._users: set[str] = set()
        self._blobs: set[str] = set()
        self._session: Row | None = None
        self._has_news = False
        self._session_no = 0
        self._user_no: int | None = None
        self._unclaimed: dict[str, list[int]] = {}  # messages whose exchange follows later in the file
        self.has_header = False
        self.imported = Imported()

    def take(self, number: int, line: bytes) -> None:
        """Imports one line."""
        self.imported.read_bytes += len(line)
        if not line.strip():
            return
        before = self._session, self._has_news
        try:
            with self._connection.savepoint():
                self._take_line(line)
        except (ValueError, KeyError, TypeError, OverflowError, StorageError) as exc:
            if is_trouble(exc):
                raise ConfigurationError(
                    f"line {number} and the lines after it could not be stored: {_reason_of(exc)}"
                ) from exc
            if not self.has_header:
                raise ConfigurationError(
                    f"this is not an export of StellarChat: line {number}: {_reason_of(exc)}"
                ) from exc
            self._go_back(*before)
            self._refuse(f"line {number}: {_reason_of(exc)}")

    def _go_back(self, session: Row | None, has_news: bool) -> None:  # noqa: FBT001 - the state before the line
        is_next = self._session is not session
        self._session, self._has_news = session, has_news
        if is_next:  # the line was a new session, which ended the previous one; rows after it have no session
            self.settle()
            self._session = None

    def _refuse(self, reason: str) -> None:
        self.imported.refused_count += 1
        if len(self.imported.refused) < _REFUSED_NAMED:
            self.imported.refused.append(reason)

    def _take_line(self, line: bytes) -> None:
        if line.startswith(_SQLITE):
            raise RowError("it is a database: use `stellarchat restore`")
        if len(line) > LINE_BYTES_MAX:
            raise RowError("it is too long")
        try:
            row = json_text.loads(line)
        except ValueError:
            raise RowError("it is not JSON") from None
        if not isinstance(row, dict):
            raise RowError("it is not an object")
        self._take_row(row.pop("kind", None), row)

    def settle(self) -> None:
        """Updates the session's counts and its newest leaf."""
        if self._session is not None and self._has_news:
            queries.imports.settle_session(
                self._connection, **_named(self._session, "session_id", "leaf_id", "updated_at")
            )
        self._has_news = False

    def _take_row(self, kind: Any, row: Row) -> None:
        if not self.has_header:
            if kind != "stellarchat" or row.get("version") != VERSION:
                raise RowError(f"the file does not begin like an export of version {VERSION}")
            self.has_header = True
        elif kind == "user":
            self.imported.users += self._take_user(checked(kind, row))
        elif kind == "blob":
            self.imported.blobs += queries.imports.import_blob(self._connection, **checked(kind, row))
            self._blobs.add(row["digest"])
        elif kind == "session":
            self.settle()
            self._session = None  # until it is validated: rows of a skipped session are skipped as well
            self._unclaimed.clear()
            self.imported.sessions += self._take_session(checked(kind, row))
            self._session = row
        elif kind == "message":
            self._has_news |= self._take_message(self._of_session(checked(kind, row)))
        elif kind == "exchange":
            self._take_exchange(self._of_session(checked(kind, row)))
        else:
            raise RowError("its kind is unknown")

    def _of_session(self, row: Row) -> Row:
        """Returns the row after checking that it belongs to the current session and user. Raises RowError."""
        if self._session is None or row["session_id"] != self._session["session_id"]:
            raise RowError("its session is not the one above it")
        if row.get("user_id", self._session["user_id"]) != self._session["user_id"]:
            raise RowError("its user is not its session's")
        return row

    def _take_user(self, row: Row) -> bool:
        is_new = queries.users.get_user(self._connection, row["user_id"]) is None
        queries.imports.import_user(self._connection, row)
        self._users.add(row["user_id"])
        return is_new

    def _take_session(self, row: Row) -> bool:
        if row["user_id"] not in self._users:
            raise RowError("its user is not in the file")
        active = int(row["is_active"])
        is_new = queries.imports.import_session(self._connection, _without(row, "leaf_id") | {"is_active": active})
        if is_new:
            queries.users.count_sessions(self._connection, row["user_id"], sessions=1, active=active)
        session = queries.sessions.get_session(self._connection, row["session_id"])
        assert session is not None
        if session.user_id != row["user_id"]:
            raise RowError("a session of another user has this id here")
        self._session_no = session.session_no
        self._user_no = queries.users.find_user_no(self._connection, session.user_id)
        return is_new

    def _take_message(self, row: Row) -> bool:
        exchange_id = row.pop("exchange_id")
        exchange_no = None if exchange_id is None else self._exchange_no(exchange_id)
        there = self._place(row["message_id"])
        message_no = self._add_message(row | {"exchange_no": exchange_no}) if there is None else there.message_no
        if exchange_id is not None and exchange_no is None:
            self._unclaimed.setdefault(exchange_id, []).append(message_no)
        return there is None

    def _add_message(self, row: Row) -> int:
        row = _NEWER_MESSAGE_COLUMNS | row
        blobs, parent_id = row.pop("blobs", ()), row.pop("parent_id")
        above = None if parent_id is None else self._place(parent_id)
        if parent_id is not None and above is None:
            raise RowError("its parent is missing")
        row["parent_no"] = above and above.message_no
        row["depth"] = above.depth + 1 if above else 0
        row["chain_hash"] = bytes.fromhex(row["chain_hash"])
        row["session_no"] = self._session_no
        root_id = row.pop("root_id", None)  # older exports have one conversation per session
        row["root_no"] = None if root_id in (None, row["message_id"]) else self._root_no(root_id, row)
        queries.messages.insert_messages(self._connection, [row | {"message_no": None}])
        stored = self._place(row["message_id"])
        assert stored is not None
        if ancestry.wants_jump(row["depth"]):
            queries.jumps.insert_jumps(self._connection, [ancestry.jump_of(stored.message_no, depth=row["depth"])])
        if root_id == row["message_id"]:
            queries.imports.set_root(self._connection, stored.message_no)
        for digest in blobs:
            if digest not in self._blobs:
                raise RowError("its image is not in the file")
            queries.imports.insert_message_blob(self._connection, message_no=stored.message_no, digest=digest)
        self.imported.messages += 1
        return stored.message_no

    def _root_no(self, root_id: str, row: Row) -> int:
        root = self._place(root_id)
        if root is None or root.session_id != row["session_id"]:
            raise ValueError(f"the first message {root_id} of its conversation is missing")
        return root.message_no

    def _take_exchange(self, row: Row) -> None:
        row = _NEWER_EXCHANGE_COLUMNS | row
        exchange_id = row["exchange_id"]
        if self._exchange_no(exchange_id) is not None:
            return
        fragments, leaf_id, context = row.pop("fragments", ()), row.pop("leaf_id"), row["context"]
        leaf = None if leaf_id is None else self._place(leaf_id)
        row["leaf_no"] = leaf and leaf.message_no
        if context is not None:
            places = [(position, self._place(message_id)) for position, message_id in context]
            row["context"] = json_text.dumps([[position, place.message_no] for position, place in places if place])
        row["session_no"] = self._session_no
        row["user_no"] = self._user_no
        row["exchange_no"] = None
        upstream = row["upstream"]
        numbers = self._connection.numbers
        row["upstream_no"] = upstream and queries.exchanges.keep_upstream(self._connection, upstream, numbers=numbers)
        parameters = json_text.loads(row["parameters"])
        parts = split(parameters)
        row["asked_model"], row["own_parameters"] = asked_model(parameters), parts.own
        row["parameters_no"] = queries.exchanges.keep_parameters(
            self._connection,
            parts,
            endpoint=row["endpoint"],
            asked_model=row["asked_model"],
            numbers=numbers,
        )
        if row["completed_at"] == queries.exchanges.end_of(row["created_at"], row["duration_ms"], None):
            row["completed_at"] = None
        queries.exchanges.insert_exchanges(self._connection, [row])
        if row["status"] != "in_progress":
            queries.usage.count_usage(self._connection, [usage_of(row)])
        exchange_no = queries.exchanges.find_exchange_no(self._connection, exchange_id)
        for message_no in self._unclaimed.pop(exchange_id, ()):
            assert exchange_no is not None
            queries.imports.set_exchange(self._connection, message_no=message_no, exchange_no=exchange_no)
        pieces = [
            {"exchange_id": exchange_id, "sequence": sequence, "data": b64decode(data, validate=True)}
            for sequence, data in enumerate(fragments)
        ]
        queries.fragments.insert_fragments(self._connection, pieces)
        self.imported.exchanges += 1

    def _place(self, message_id: str) -> Place | None:
        """The position of a message in this session. Raises RowError if it belongs to another one."""
        place = queries.imports.find_place(self._connection, message_id)
        if place is not None and (self._session is None or place.session_id != self._session["session_id"]):
            raise RowError("it refers to another session's message")
        return place

    def _exchange_no(self, exchange_id: str) -> int | None:
        """The number of an exchange in this session. Raises RowError if it belongs to another one."""
        number = queries.exchanges.find_exchange_no(self._connection, exchange_id)
        if number is not None and queries.imports.find_exchange_session(self._connection, number) != self._session_no:
            raise RowError("it refers to another session's exchange")
        return number


def _reason_of(exc: Exception) -> str:
    """The reason in one line, without the row's content."""
    text = f"{exc.args[0]} is missing" if isinstance(exc, KeyError) else str(exc)
    return " ".join(text.split())[:_REASON_LENGTH]


def _named(row: Row, *names: str) -> Row:
    return {name: row[name] for name in names}


def _without(row: Row, *names: str) -> Row:
    return {name: value for name, value in row.items() if name not in names}
