"""A connection to PostgreSQL that runs named queries.

One transaction writes at a time across all processes and hosts, as with SQLite: each takes the same advisory lock. So
insert positions and row ids are always based on committed data, and ids are committed in order. The lock is held once
per group commit, so many chats share it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
from psycopg import RawCursor
from psycopg.pq import TransactionStatus

from proxy.storage import postgresql_types
from proxy.storage.connection import Numbers, Parameters, Row
from proxy.storage.errors import (
    StorageError,
    StorageInterruptedError,
    StorageUnavailableError,
    StorageUnknownError,
)
from proxy.storage.expected import Expected
from proxy.storage.known_rows import KnownRows
from proxy.storage.postgresql_ahead import ALWAYS_READ, CHANGING, queries_of, take
from proxy.storage.postgresql_errors import storage_error, translated_errors
from proxy.storage.postgresql_sql import SEQUENCES, for_many_rows, statement

_NOTHING: Mapping[str, Any] = {}
# Rows sent per message: each batch needs memory for several copies of it.
_ROWS_MAX = 256
# Characters of rows that are queued before they are sent.
_TOGETHER = 16 * 2**20


class _Statement(NamedTuple):
    text: str
    values: Sequence[Any]
    prepare: bool | None = None


# The lock has an arbitrary id of ours. The settings: our writes look up few rows in large tables, but the planner
# assumes that a JSON text has 100 rows, so it would read a table of some 10,000 rows from end to end in each commit.
# With 4,800 sessions, that was half of the server's time for a continued chat (measured). Not `enable_seqscan`: before
# PostgreSQL 18, statements that must read a whole table (the sequences) would then seem so expensive that each is
# compiled (`jit_above_cost`).
# https://www.postgresql.org/docs/current/runtime-config-query.html#RUNTIME-CONFIG-QUERY-ENABLE
_LOCK = (
    "SELECT pg_advisory_xact_lock(1400136552), set_config('enable_hashjoin', 'off', TRUE),"
    " set_config('enable_mergejoin', 'off', TRUE)"
)
_WRITE = (_Statement("BEGIN", [], prepare=False), _Statement(_LOCK, []))
_READ = (_Statement("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", [], prepare=False),)


# Round trips decide the speed, not SQL: with 1.4 ms to the server, 107 continued chats/s with a round trip per
# statement, 2,115 with two per commit (measured with a prototype).
class PostgresqlConnection:
    """See `connection.Connection`.

    The beginning of a transaction, and `store`, are queued and sent with the next statement, in one round trip.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.raw = connection
        self.raw.cursor_factory = RawCursor
        self.raw.prepare_threshold = 0
        self.raw.prepared_max = 500
        self.raw.add_notice_handler(self._take_notice)
        postgresql_types.register(connection)
        self._pending: list[_Statement] = []
        self._pending_size = 0  # characters of their rows
        self._expected = Expected()
        self._known = KnownRows()
        self._deadline: float | None = None
        self._warning: str | None = None

    # Queries

    def one(self, name: str, parameters: Parameters = _NOTHING, /) -> Row | None:
        known = self._read_before(name, parameters)
        if known is not None:
            return dict(known[0]) if known else None
        with translated_errors():
            cursor = self._named(name, parameters)
            row = cursor.fetchone()
        return None if row is None else _row(_column_names(name, cursor), row)

    def all(self, name: str, parameters: Parameters = _NOTHING, /) -> list[Row]:
        with translated_errors():
            return _rows(name, self._named(name, parameters))

    def each(self, name: str, parameters: Parameters = _NOTHING, /) -> Iterator[Row]:
        """Reads the whole result first: a server-side cursor would cost a round trip per page."""
        yield from self.all(name, parameters)

    def value(self, name: str, parameters: Parameters = _NOTHING, /) -> Any:
        known = self._read_before(name, parameters)
        if known is not None:
            return next(iter(known[0].values())) if known else None
        with translated_errors():
            row = self._named(name, parameters).fetchone()
        return None if row is None else postgresql_types.decoded(row[0])

    def values(self, name: str, parameters: Parameters = _NOTHING, /) -> list[Any]:
        with translated_errors():
            return [postgresql_types.decoded(value) for (value,) in self._named(name, parameters)]

    def changes(self, name: str, parameters: Parameters = _NOTHING, /) -> int:
        with translated_errors():
            changed = self._named(name, parameters).rowcount
        if name in SEQUENCES:
            self._move_sequence(name, [parameters])
        return changed

    def store(self, name: str, rows: Sequence[Parameters], /) -> None:
        """Queues the rows; they are sent with the next statement."""
        self._known.stored(name, rows)
        text, names = for_many_rows(name)
        for start in range(0, len(rows), _ROWS_MAX):
            some = rows[start : start + _ROWS_MAX]
            self._pending.append(_Statement(text, [postgresql_types.rows_as_json(names, some)]))
            self._pending_size += len(self._pending[-1].values[0])
        if self._pending_size > _TOGETHER:
            self._run()
        if rows and name in SEQUENCES:
            self._move_sequence(name, rows)

    def numbers(self) -> Numbers:
        row = self.one("last_numbers")
        assert row is not None
        return Numbers(**row)

    def read_ahead(self, expected: Callable[[], Expected]) -> None:
        """Reads in one round trip, which also begins the transaction."""
        self._expected = expected()
        if self._expected != Expected():
            self._read(self._expected, ALWAYS_READ)

    def _read_before(self, name: str, parameters: Parameters) -> list[Row] | None:
        """The rows of a look-up that was read ahead. If the transaction has changed some of them, reads those again."""
        known = self._known.find(name, parameters)
        if known is not None or name not in CHANGING or not self._known.changed:
            return known
        changed = frozenset(self._known.changed)
        self._known.changed.clear()
        self._read(self._expected.about(changed))
        return self._known.find(name, parameters)

    def _read(self, wanted: Expected, always: Sequence[str] = ()) -> None:
        asked = queries_of(wanted)
        if not asked:
            return
        statements = [_Statement(statement(name).text, []) for name in always]
        for name, rows in asked:
            text, columns = for_many_rows(name)
            statements.append(_Statement(text, [postgresql_types.rows_as_json(columns, rows)]))
        names = [*always, *(name for name, _ in asked)]
        with translated_errors():
            cursors = self._send_all(statements)[-len(names) :]
            found = {name: _rows(name, cursor) for name, cursor in zip(names, cursors, strict=True)}
        take(self._known, wanted, found)

    # Transactions

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._begin(_WRITE)
        try:
            yield
            self._commit()
        except BaseException:
            self.roll_back()
            raise

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        self._run("SAVEPOINT part")
        try:
            yield
            self._run("RELEASE part")
        except BaseException:
            self._forget()
            if self.in_transaction:
                self._run("ROLLBACK TO part", "RELEASE part")
            raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        self._begin(_READ)
        try:
            yield
        finally:
            self._end("END")  # a ROLLBACK makes psycopg forget and deallocate every prepared statement

    @contextmanager
    def limited_to(self, seconds: float) -> Iterator[None]:
        """Limits the duration of a block; raises StorageInterruptedError.

        A single long statement is cancelled by the server (`statement_timeout`).
        """
        self._deadline = time.monotonic() + seconds
        try:
            yield
        finally:
            self._deadline = None

    @property
    def in_transaction(self) -> bool:
        return self.raw.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)

    @property
    def is_lost(self) -> bool:
        """Whether the connection is unusable."""
        return self.raw.closed

    def roll_back(self) -> None:
        """Rolls back. If the connection is lost, the server rolls back by itself."""
        self._end("ROLLBACK")

    def close(self) -> None:
        self.raw.close()

    def begun(self) -> psycopg.Connection[Any]:
        """The driver's connection, after everything queued has been sent."""
        self._run()
        return self.raw

    def _begin(self, statements: Sequence[_Statement]) -> None:
        self._forget()
        self._pending = list(statements)

    def _forget(self) -> None:
        self._expected = Expected()
        self._known.clear()
        self._pending.clear()
        self._pending_size = 0

    def _end(self, how: str) -> None:
        self._forget()
        if self.in_transaction:
            try:
                self.raw.execute(how, prepare=False)
            except psycopg.Error:
                self.raw.close()

    def _commit(self) -> None:
        """Commits. After a lost reply or a cancelled wait for a standby, it is unknown whether the data is stored.

        https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION
        """
        self._warning = None
        try:
            result = self._send(_Statement("COMMIT", [], prepare=False)).statusmessage
        except psycopg.Error as exc:
            if self.raw.closed or exc.sqlstate is None:
                raise StorageUnknownError(str(storage_error(exc))) from exc
            raise storage_error(exc) from exc
        if self._warning is not None:
            raise StorageUnknownError(self._warning)
        if result != "COMMIT":
            raise StorageError("the transaction had failed before, and was rolled back")

    # Statements

    def _named(self, name: str, parameters: Parameters) -> RawCursor[Any]:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise StorageInterruptedError("interrupted")
        self._known.ran(name)
        text, names = statement(name)
        return self._execute(text, [parameters[each] for each in names])

    def _execute(self, text: str, values: Sequence[Any]) -> RawCursor[Any]:
        return self._send(_Statement(text, values))

    def _run(self, *statements: str) -> None:
        """Runs statements without parameters."""
        if statements or self._pending:
            with translated_errors():
                self._send(*(_Statement(text, [], prepare=False) for text in statements))

    def _send(self, *statements: _Statement) -> RawCursor[Any]:
        """Runs statements after the queued ones, in one round trip; returns the result of the last one."""
        return self._send_all(statements)[-1]

    def _send_all(self, statements: Sequence[_Statement]) -> list[RawCursor[Any]]:
        """Runs statements after the queued ones, in one round trip; returns the results of all."""
        sent, self._pending, self._pending_size = [*self._pending, *statements], [], 0
        return self._trip(sent)

    def _trip(self, statements: Sequence[_Statement]) -> list[RawCursor[Any]]:
        """A round trip to the server."""
        if self.raw.closed:
            raise StorageUnavailableError("the connection to the database is closed")
        if len(statements) == 1:
            return [self._sent(statements[0])]
        with self.raw.pipeline():
            # the results are available when the pipeline block has ended
            return [self._sent(each) for each in statements]

    def _sent(self, statement: _Statement) -> RawCursor[Any]:
        cursor = RawCursor(self.raw)
        cursor.execute(statement.text, statement.values, binary=True, prepare=statement.prepare)
        return cursor

    def _move_sequence(self, name: str, rows: Sequence[Parameters]) -> None:
        """Advances the server's sequences past the row ids that we assigned ourselves."""
        column, sequence = SEQUENCES[name]
        given = [row[column] for row in rows if row[column] is not None]
        if given:
            self._pending.append(_Statement(f"SELECT setval('{sequence}', $1)", [max(given)]))

    # If the wait for a standby is cancelled, COMMIT succeeds with only a WARNING, and the data is on one machine only.
    def _take_notice(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warning = notice.message_primary or "the server warned of the commit"


_columns: dict[str, tuple[str, ...]] = {}


def _column_names(name: str, cursor: RawCursor[Any]) -> tuple[str, ...]:
    """A query's column names, cached: they never change and are expensive to read per execution."""
    names = _columns.get(name)
    if names is None:
        names = _columns[name] = tuple(column.name for column in cursor.description or ())
    return names


def _rows(name: str, cursor: RawCursor[Any]) -> list[Row]:
    names = _column_names(name, cursor)
    return [_row(names, row) for row in cursor]


def _row(names: tuple[str, ...], values: Sequence[Any]) -> Row:
    return dict(zip(names, map(postgresql_types.decoded, values), strict=True))
