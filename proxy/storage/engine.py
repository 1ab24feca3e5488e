"""Selects the database engine from the settings. psycopg is imported only for PostgreSQL."""

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
def opened(
    settings: Settings, *, migrates: bool = True, makes: bool = True, statement_seconds: float | None = None
) -> Iterator[Connection]:
    """A connection for a command. Raises ConfigurationError.

    Without `migrates`, a newer schema is an error; without `makes`, a missing file is. A server ends statements that
    take longer than `statement_seconds`.
    """
    if settings.is_postgresql:
        _want_psycopg()
        with _opened_postgresql(
            settings.database_url, migrates=migrates, statement_seconds=statement_seconds
        ) as connection:
            yield connection
        return
    connect = sqlite.connect if makes else sqlite.connect_existing
    with closing(connect(settings.database_path)) as connection:
        if migrates:
            sqlite.prepare(connection)
            sqlite_file.wait_for_locks(connection, milliseconds=_LOCKS_MS)
        else:
            sqlite.refuse_unknown_schema(connection)
        yield connection


def find_schema(settings: Settings) -> int | None:
    """The schema of the database as it is; None where it is not made yet. Raises ConfigurationError, StorageError."""
    if not settings.is_postgresql and not settings.database_path.exists():
        return None
    with opened(settings, migrates=False, makes=False) as connection:
        if isinstance(connection, SqliteConnection):
            return sqlite.schema_of(connection) or None
        from proxy.storage import postgresql

        return postgresql.schema_of(connection)


def newest_schema(settings: Settings) -> int:
    """The schema that this program brings a database to."""
    if not settings.is_postgresql:
        return sqlite.newest_schema()
    from proxy.storage import postgresql

    return postgresql.newest_schema()


@contextmanager
def _opened_postgresql(url: str, *, migrates: bool, statement_seconds: float | None) -> Iterator[Connection]:
    from proxy.storage import postgresql

    try:
        connection = postgresql.connect(url, statement_seconds=statement_seconds)
    except StorageError as exc:
        raise ConfigurationError(f"cannot use the database {postgresql.without_password(url)}: {exc}") from exc
    with closing(connection):
        if migrates:
            postgresql.prepare(connection)
        else:
            postgresql.refuse_unknown_schema(postgresql.schema_of(connection))
        yield connection


def _want_psycopg() -> None:
    if find_spec("psycopg") is None:
        raise ConfigurationError("PostgreSQL needs psycopg: pip install 'stellarchat[postgresql]'")
