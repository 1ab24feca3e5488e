"""Copies a history from one database engine to the other, and compares both."""

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from proxy.settings import ConfigurationError
from proxy.storage.connection import Connection, Numbers
from proxy.storage.named import SQL, named_statements
from proxy.storage.postgresql_errors import translated_errors as postgresql_errors
from proxy.storage.postgresql_types import decoded, encoded
from proxy.storage.sqlite_connection import SqliteConnection
from proxy.storage.sqlite_connection import translated_errors as sqlite_errors

# Ordered so that each table refers only to earlier ones. Data about one machine or server is not copied: its boot
# clock, and the processes that serve it.
TABLES = (
    *(
        "users",
        "sessions",
        "messages",
        "message_jumps",
        "tools",
        "parameters",
        "upstreams",
        "exchanges",
        "exchange_fragments",
    ),
    *("blobs", "message_blobs", "response_items", "api_keys", "key_tokens", "doors", "web_sessions", "usage_days"),
    *("tombstones", "idempotency_keys"),
)
# Tables that must be empty in a new database.
_TELLING = ("sessions", "api_keys", "tombstones")
_BATCH = 500  # rows in memory at once; a row may have megabytes
_HASH_BYTES = 16
_STATEMENTS = named_statements((SQL / "migration.sql").read_text(encoding="utf-8"))

Rows = Iterator[tuple[Any, ...]]


class Sum(NamedTuple):
    """A table's number of rows, and a sum of their hashes that does not depend on their order."""

    rows: int = 0
    hashes: int = 0

    def add(self, row: Sequence[Any]) -> "Sum":
        """Adds one row."""
        digest = blake2b(repr(tuple(row)).encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()
        return Sum(self.rows + 1, (self.hashes + int.from_bytes(digest)) % 2 ** (8 * _HASH_BYTES))


class Side:
    """One of the two databases."""

    def __init__(self, connection: Connection, columns: dict[str, tuple[str, ...]]) -> None:
        self.connection = connection
        self.columns = columns

    def count(self, table: str) -> int:
        """The number of a table's rows."""
        return int(next(self._select(_statement("count_rows", table)))[0])

    def rows(self, table: str) -> Rows:
        """A table's rows in a form that both engines accept."""
        return self._select(_statement("list_rows", table, columns=", ".join(self.columns[table])))

    def sum(self, table: str) -> Sum:
        """Computes a table's Sum."""
        total = Sum()
        for row in self.rows(table):
            total = total.add(row)
        return total

    def clear(self, table: str) -> None:
        """Deletes the rows that a new database already has."""
        raise NotImplementedError

    def insert(self, table: str, rows: Rows) -> None:
        """Inserts rows with their existing numbers."""
        raise NotImplementedError

    def go_on_after(self, numbers: Numbers) -> None:
        """Advances the sequences past the numbers used by the other side."""
        raise NotImplementedError

    def _select(self, text: str) -> Rows:
        raise NotImplementedError


class _SqliteSide(Side):
    connection: SqliteConnection

    def clear(self, table: str) -> None:
        self.connection.execute(_statement("delete_rows", table))

    def insert(self, table: str, rows: Rows) -> None:
        names = self.columns[table]
        places = ", ".join("?" * len(names))
        self.connection.executemany(_statement("insert_row", table, columns=", ".join(names), places=places), rows)

    def go_on_after(self, numbers: Numbers) -> None:
        for table, number in (("messages", numbers.message_no), ("exchanges", numbers.exchange_no)):
            given = {"table_name": table, "number": number}
            self.connection.execute(_STATEMENTS["delete_sequence"], given)
            self.connection.execute(_STATEMENTS["insert_sequence"], given)

    def _select(self, text: str) -> Rows:
        return iter(self.connection.execute(text))


class _PostgresqlSide(Side):
    connection: Any  # a PostgresqlConnection: psycopg may not be installed

    def __init__(self, connection: Any, columns: dict[str, tuple[str, ...]]) -> None:
        super().__init__(connection, columns)
        kinds = self._raw.execute(_STATEMENTS["list_column_kinds"]).fetchall()
        self._booleans = {(table, column) for table, column, kind, _ in kinds if kind == "boolean"}
        self._identities = [(table, column) for table, column, _, is_identity in kinds if is_identity == "YES"]

    @property
    def _raw(self) -> Any:
        return self.connection.begun()

    def clear(self, table: str) -> None:
        self._raw.execute(_statement("delete_rows", table))

    def insert(self, table: str, rows: Rows) -> None:
        names = self.columns[table]
        booleans = [(table, name) in self._booleans for name in names]
        statement = _statement("copy_rows", table, columns=", ".join(names))
        with self._raw.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row([_given(*pair) for pair in zip(row, booleans, strict=True)])

    def go_on_after(self, numbers: Numbers) -> None:
        given = {"messages": numbers.message_no, "exchanges": numbers.exchange_no, "sessions": numbers.session_no}
        for table, column in self._identities:
            number = given.get(table, 0)
            self._raw.execute(_statement("set_sequence", table, columns=column, number=number))

    def _select(self, text: str) -> Rows:
        with self._raw.cursor("migration") as cursor:
            cursor.itersize = _BATCH
            cursor.execute(text.rstrip(";"), binary=True)
            for row in cursor:
                yield tuple(map(decoded, row))


def _statement(name: str, table: str, **names: Any) -> str:
    return _STATEMENTS[name].format(table=table, **names)


def _given(value: Any, is_boolean: bool) -> Any:  # noqa: FBT001 - of a column
    if type(value) is str:
        return encoded(value)
    return bool(value) if is_boolean and value is not None else value


def sides(source: Connection, target: Connection) -> tuple[Side, Side]:
    """Both sides of a migration; exactly one must be SQLite. Raises ConfigurationError."""
    files = [each for each in (source, target) if isinstance(each, SqliteConnection)]
    if len(files) != 1:
        raise ConfigurationError("one of the two databases must be an SQLite file, the other a PostgreSQL database")
    columns = {table: _columns_of(files[0], table) for table in TABLES}
    made = [
        _SqliteSide(each, columns) if isinstance(each, SqliteConnection) else _PostgresqlSide(each, columns)
        for each in (source, target)
    ]
    return made[0], made[1]


def copy(source: Side, target: Side, *, progress: Callable[[int, int], None]) -> dict[str, Sum]:
    """Copies every table in one transaction, which is committed only if both sides are equal. Returns each table's Sum.

    Raises ConfigurationError if the target is not empty; raises StorageError.
    """
    with sqlite_errors(), postgresql_errors(), source.connection.snapshot():
        total = 2 * sum(source.count(table) for table in TABLES)
        done = 0

        def counted(rows: Rows, sums: list[Sum]) -> Rows:
            nonlocal done
            for row in rows:
                sums[0] = sums[0].add(row)
                done += 1
                if done % _BATCH == 0:
                    progress(done, total)
                yield row

        with target.connection.transaction():
            _refuse_filled(target)
            for table in reversed(TABLES):
                target.clear(table)
            copied = {}
            for table in TABLES:
                sums = [Sum()]
                target.insert(table, counted(source.rows(table), sums))
                copied[table] = sums[0]
            target.go_on_after(source.connection.numbers())
            for table, expected in copied.items():
                _compare(table, expected, target.sum(table))
                done += expected.rows
                progress(done, total)
        return copied


def _compare(table: str, expected: Sum, found: Sum) -> None:
    if found != expected:
        raise ConfigurationError(
            f"nothing is migrated: {table} has {expected.rows} rows in the one database, {found.rows} in the other, "
            "or their contents differ"
        )


def _refuse_filled(target: Side) -> None:
    if any(target.count(table) for table in _TELLING) or target.count("users") > 1:
        raise ConfigurationError("the target is not empty: give a new database")


def _columns_of(connection: SqliteConnection, table: str) -> tuple[str, ...]:
    return tuple(row[1] for row in connection.execute(f"PRAGMA table_info({table})"))
