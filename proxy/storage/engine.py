"""Opens the database of the settings with its engine; commands get a plain connection.

psycopg is imported only for PostgreSQL.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec

from proxy.settings import ConfigurationError, Settings
from proxy.storage import sqlite, sqlite_file
from proxy.storage.connection import Connection
from proxy.storage.database import Database
from proxy.storage.errors import StorageError
from proxy.storage.sqlite_connection import SqliteConnection

# How long a command waits for a running server's write lock.
_LOCKS_MS = 30_000


def database_of(settings: Settings) -> Database:
    """Creates the database object without opening it. Raises ConfigurationError."""
    if not settings.is_postgresql:
        return Database(settings.database_path)
    _want_psycopg()
    from proxy.storage.postgresql_database import PostgresqlDatabase

    return PostgresqlDatabase(settings.database_url, settings.database_path)


@contextmanager
def opened(settings: Settings, *, makes: bool = False, statement_seconds: float | None = None) -> Iterator[Connection]:
    """A connection for a command, to a database with this program's schema. Raises ConfigurationError, StorageError.

    With `makes`, a missing or empty database is created. One with an older schema is rejected: only `serve` and
    `restore` migrate it, and say so. PostgreSQL cancels statements that take longer than `statement_seconds`.
    """
    with _connected(settings, makes=makes, statement_seconds=statement_seconds) as connection:
        if makes and not _schema_of(connection):
            _prepare(connection)
        refuse_old_schema(settings, connection)
        if isinstance(connection, SqliteConnection):
            sqlite_file.wait_for_locks(connection, milliseconds=_LOCKS_MS)
        yield connection


@contextmanager
def opened_as_is(settings: Settings) -> Iterator[Connection]:
    """Like `opened`, with any schema that this program knows, or none."""
    with _connected(settings, makes=False, statement_seconds=None) as connection:
        yield connection


def find_schema(settings: Settings) -> int | None:
    """The schema version of the database; None if it has no tables yet. Raises ConfigurationError, StorageError."""
    if not settings.is_postgresql and not settings.database_path.exists():
        return None
    with opened_as_is(settings) as connection:
        return _schema_of(connection)


def newest_schema(settings: Settings) -> int:
    """The schema version of this program, for the engine of the settings."""
    if not settings.is_postgresql:
        return sqlite.newest_schema()
    from proxy.storage import postgresql

    return postgresql.newest_schema()


def refuse_old_schema(settings: Settings, connection: Connection) -> None:
    """Raises ConfigurationError if the database has no tables yet, or those of an older program."""
    version = _schema_of(connection)
    if version is None:
        raise ConfigurationError(f"{settings.database_name} is empty: `stellarchat serve` creates its tables")
    if version < newest_schema(settings):
        raise ConfigurationError(
            f"{settings.database_name} has schema {version}, this program needs {newest_schema(settings)}: make a "
            "backup, then `stellarchat serve` migrates it"
        )


@contextmanager
def _connected(settings: Settings, *, makes: bool, statement_seconds: float | None) -> Iterator[Connection]:
    if settings.is_postgresql:
        with _connected_postgresql(settings.database_url, statement_seconds) as connection:
            yield connection
        return
    connect = sqlite.connect if makes else sqlite.connect_existing
    with closing(connect(settings.database_path)) as connection:
        sqlite.refuse_unknown_schema(connection)
        yield connection


@contextmanager
def _connected_postgresql(url: str, statement_seconds: float | None) -> Iterator[Connection]:
    _want_psycopg()
    from proxy.storage import postgresql

    try:
        connection = postgresql.connect(url, statement_seconds=statement_seconds)
    except StorageError as exc:
        raise ConfigurationError(postgresql.why_unusable(url, exc)) from exc
    with closing(connection):
        postgresql.refuse_unknown_schema(postgresql.schema_of(connection))
        yield connection


def _schema_of(connection: Connection) -> int | None:
    if isinstance(connection, SqliteConnection):
        return sqlite.schema_of(connection) or None
    from proxy.storage import postgresql

    return postgresql.schema_of(connection)


def _prepare(connection: Connection) -> None:
    if isinstance(connection, SqliteConnection):
        sqlite.prepare(connection)
        return
    from proxy.storage import postgresql

    postgresql.prepare(connection)


def _want_psycopg() -> None:
    if find_spec("psycopg") is None:
        raise ConfigurationError("PostgreSQL needs psycopg: pip install 'stellarchat[postgresql]'")
