"""A connection to an SQLite file that runs named queries, and the translation of SQLite's errors."""

import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from typing import Any

from proxy.storage.connection import Numbers, Parameters, Row
from proxy.storage.damaged_values import decoded
from proxy.storage.errors import (
    StorageDamagedError,
    StorageError,
    StorageInterruptedError,
    StorageLockedError,
    StorageNotADatabaseError,
    StorageUnavailableError,
)
from proxy.storage.expected import Expected
from proxy.storage.named import QUERIES

# Maximum rows per statement. Fewer rows are split into powers of two, so that few different statements are compiled.
_ROWS_MAX = 64

# SQLite instructions between two deadline checks, about a millisecond.
_INSTRUCTIONS = 100_000

# Python raises OperationalError with this text; there is no error code for it.
_UNDECODABLE = "Could not decode to UTF-8"

_NOTHING: Mapping[str, Any] = {}

# For each parameter that is None or bytes, the driver searches an adapter, and raises an exception if there is none.
# With adapters that return the value as it is, storing a chat takes a tenth fewer instructions.
_none_as_it_is: dict[None, None] = {}
sqlite3.register_adapter(type(None), _none_as_it_is.get)
sqlite3.register_adapter(bytes, bytes)

# Errors of the file, the disk or other programs are temporary; all others concern a single write.
# https://sqlite.org/rescode.html#primary_result_code_list
_ERRORS: dict[int, type[StorageError]] = {
    sqlite3.SQLITE_BUSY: StorageLockedError,
    sqlite3.SQLITE_LOCKED: StorageLockedError,
    sqlite3.SQLITE_NOMEM: StorageUnavailableError,
    sqlite3.SQLITE_READONLY: StorageUnavailableError,
    sqlite3.SQLITE_IOERR: StorageUnavailableError,
    sqlite3.SQLITE_FULL: StorageUnavailableError,
    sqlite3.SQLITE_CANTOPEN: StorageUnavailableError,
    sqlite3.SQLITE_PROTOCOL: StorageUnavailableError,
    sqlite3.SQLITE_CORRUPT: StorageDamagedError,
    sqlite3.SQLITE_NOTADB: StorageNotADatabaseError,
    sqlite3.SQLITE_INTERRUPT: StorageInterruptedError,
}


def storage_error(exc: sqlite3.Error) -> StorageError:
    """The error as a StorageError with the same message. The low byte of the code is the primary result code."""
    kind = _ERRORS.get(getattr(exc, "sqlite_errorcode", -1) & 0xFF, StorageError)
    return kind(str(exc))


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raises SQLite's errors as StorageError."""
    try:
        yield
    except sqlite3.Error as exc:
        raise storage_error(exc) from exc


class SqliteConnection(sqlite3.Connection):
    """See `connection.Connection`. Within `storage`, SQL text may be executed, too."""

    _deadline: float | None = None

    def one(self, name: str, parameters: Parameters = _NOTHING, /) -> Row | None:
        try:
            cursor = self._named(name, parameters)
            row = self._first(cursor, name, parameters)
            return None if row is None else dict(zip(_column_names(name, cursor), row, strict=True))
        except sqlite3.Error as exc:
            raise storage_error(exc) from exc

    def all(self, name: str, parameters: Parameters = _NOTHING, /) -> list[Row]:
        return list(self.each(name, parameters))

    def each(self, name: str, parameters: Parameters = _NOTHING, /) -> Iterator[Row]:
        """Reads the rows lazily from the file."""
        try:
            cursor = self._named(name, parameters)
            names = _column_names(name, cursor)
            for row in self._rows(cursor, name, parameters):
                yield dict(zip(names, row, strict=True))
        except sqlite3.Error as exc:
            raise storage_error(exc) from exc

    def value(self, name: str, parameters: Parameters = _NOTHING, /) -> Any:
        try:
            row = self._first(self._named(name, parameters), name, parameters)
        except sqlite3.Error as exc:
            raise storage_error(exc) from exc
        return None if row is None else row[0]

    def values(self, name: str, parameters: Parameters = _NOTHING, /) -> list[Any]:
        try:
            return [value for (value,) in self._rows(self._named(name, parameters), name, parameters)]
        except sqlite3.Error as exc:
            raise storage_error(exc) from exc

    def changes(self, name: str, parameters: Parameters = _NOTHING, /) -> int:
        try:
            return self.execute(QUERIES[name], parameters).rowcount
        except sqlite3.Error as exc:
            raise storage_error(exc) from exc

    def store(self, name: str, rows: Sequence[Parameters], /) -> None:
        """Splits the rows into few statements, because each one releases and retakes the GIL."""
        start = 0
        try:
            while left := len(rows) - start:
                size = min(_ROWS_MAX, 1 << (left.bit_length() - 1))
                statement, names = _widened(name, size)
                self.execute(statement, [row[name] for row in rows[start : start + size] for name in names])
                start += size
        except sqlite3.Error as exc:
            raise storage_error(exc) from exc

    def numbers(self) -> Numbers:
        row = self.one("last_numbers")
        assert row is not None
        return Numbers(**row)

    def read_ahead(self, expected: Callable[[], Expected]) -> None:
        pass

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._run("BEGIN IMMEDIATE")
        try:
            yield
            self._run("COMMIT")
        except BaseException:
            self.roll_back()
            raise

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        self._run("SAVEPOINT part")
        try:
            yield
        except BaseException:
            if self.in_transaction:
                self._run("ROLLBACK TO part")
                self._run("RELEASE part")
            raise
        self._run("RELEASE part")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        self._run("BEGIN")
        try:
            yield
        finally:
            self.roll_back()

    @contextmanager
    def limited_to(self, seconds: float) -> Iterator[None]:
        """Limits the duration of a block; raises StorageInterruptedError."""
        deadline = time.monotonic() + seconds
        self.set_progress_handler(lambda: time.monotonic() > deadline, _INSTRUCTIONS)
        self._deadline = deadline
        try:
            yield
        finally:
            self._deadline = None
            self.set_progress_handler(None, 0)

    def _named(self, name: str, parameters: Parameters) -> sqlite3.Cursor:
        # The progress handler runs only inside long statements, but a block may also be many short ones.
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise StorageInterruptedError("interrupted")
        return self.execute(QUERIES[name], parameters)

    def _first(self, cursor: sqlite3.Cursor, name: str, parameters: Parameters) -> tuple[Any, ...] | None:
        return next(self._rows(cursor, name, parameters), None)

    def _rows(self, cursor: sqlite3.Cursor, name: str, parameters: Parameters) -> Iterator[tuple[Any, ...]]:
        """The rows of a query.

        After the first text that is not UTF-8, this connection decodes all texts in Python: slower, but it never fails.
        """
        count = 0
        try:
            for row in cursor:
                yield row
                count += 1
        except sqlite3.OperationalError as exc:
            if self.text_factory is decoded or not str(exc).startswith(_UNDECODABLE):
                raise
            self.text_factory = decoded
            yield from islice(self._named(name, parameters), count, None)

    def roll_back(self) -> None:
        """Rolls back, unless SQLite has already done so. https://sqlite.org/lang_transaction.html#immediate"""
        if self.in_transaction:
            self._run("ROLLBACK")

    def _run(self, statement: str) -> None:
        try:
            self.execute(statement)
        except sqlite3.Error as exc:
            raise storage_error(exc) from exc


_columns: dict[str, tuple[str, ...]] = {}


def _column_names(name: str, cursor: sqlite3.Cursor) -> tuple[str, ...]:
    """A query's column names, cached: they never change and are expensive to read per execution."""
    names = _columns.get(name)
    if names is None:
        names = _columns[name] = tuple(column[0] for column in cursor.description)
    return names


@lru_cache(maxsize=256)
def _widened(name: str, rows: int) -> tuple[str, list[str]]:
    """Extends a statement with one row of VALUES to several rows with positional parameters; returns their names."""
    before, row, after = re.split(r"(?<=VALUES )(\(.*?\))", QUERIES[name], maxsplit=1, flags=re.DOTALL)
    names = re.findall(r":(\w+)", row)
    places = "(" + ", ".join("?" * len(names)) + ")"
    return before + ", ".join([places] * rows) + after, names
