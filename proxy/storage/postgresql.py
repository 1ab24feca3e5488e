"""Opens a PostgreSQL database: connects, creates and migrates the tables, rejects databases of other programs."""

import re
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from proxy.settings import ConfigurationError
from proxy.storage.connection import Connection
from proxy.storage.errors import StorageError
from proxy.storage.named import SQL
from proxy.storage.postgresql_connection import PostgresqlConnection
from proxy.storage.postgresql_errors import translated_errors

# In the form of server_version_num: 15.0.
OLDEST_POSTGRESQL = 150000
# An arbitrary advisory lock id of ours, different from the writer's.
_MIGRATIONS_LOCK = 1400136553

# Detect a dead connection within about 15 seconds; the default is hours.
# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-KEEPALIVES
_DEFAULTS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "target_session_attrs": "read-write",
    "application_name": "stellarchat",
}
# A role or database may have other defaults, under which texts and escapes would be read differently.
# Our statements are short: compiling one (JIT) costs many times its execution. On Debian's PostgreSQL 15, it made a
# continued chat take 41 ms of the server's CPU instead of 0.4 (measured).
_SETTINGS = "SET client_encoding = 'UTF8'; SET standard_conforming_strings = on; SET jit = off"


@translated_errors()
def connect(url: str, *, statement_seconds: float | None = None) -> PostgresqlConnection:
    """Opens a connection without automatic transactions. The server cancels statements that exceed the time limit."""
    parameters = _DEFAULTS | conninfo_to_dict(url)
    raw = psycopg.connect(**parameters, autocommit=True)
    try:
        _refuse_old(raw.info.server_version)
        raw.execute(_SETTINGS)
        if statement_seconds is not None:
            raw.execute(f"SET statement_timeout = {round(statement_seconds * 1000)}")
        return PostgresqlConnection(raw)
    except BaseException:
        raw.close()
        raise


@translated_errors()
def prepare(connection: Connection) -> None:
    """Applies the missing migrations in one transaction. Rejects a database of a newer program."""
    raw = _raw(connection)
    with raw.transaction():
        # Processes that start at the same time wait for this lock: without it, of 8 that created the tables together 7
        # failed on pg_type (measured).
        raw.execute(f"SELECT pg_advisory_xact_lock({_MIGRATIONS_LOCK})")
        version = _schema_of(raw)
        refuse_unknown_schema(version)
        for number, script in sorted(_migrations().items()):
            if version is None and number == min(_migrations()):
                _refuse_foreign(raw)
            if version is None or version < number:
                for part in _statements(script):
                    raw.execute(part)
                connection.changes("note_schema", {"schema": number})


def refuse_unknown_schema(version: int | None) -> None:
    """Raises ConfigurationError if the database was written by a newer program."""
    if version is not None and version > newest_schema():
        raise ConfigurationError(
            f"the database has schema {version}, this program knows up to {newest_schema()}: "
            "run the newer StellarChat that wrote it"
        )


@translated_errors()
def schema_of(connection: Connection) -> int | None:
    """The database's schema version; None if it has no tables of ours."""
    return _schema_of(_raw(connection))


def newest_schema() -> int:
    """The schema version of this program."""
    return max(_migrations())


def without_password(url: str) -> str:
    """The URL with its password removed, for display."""
    return re.sub(r"(//[^/@:]*):[^@/]*@", r"\1:***@", re.sub(r"([?&]password=)[^&]*", r"\1***", url))


def why_unusable(url: str, exc: StorageError) -> str:
    """Says in one line why the server cannot be used, and what to do about it."""
    return f"cannot use the database {without_password(url)}: {exc}; start PostgreSQL there, or set DATABASE_URL"


def _refuse_old(version: int) -> None:
    if version < OLDEST_POSTGRESQL:
        raise ConfigurationError(f"this is PostgreSQL {version // 10000}; StellarChat needs 15 or newer")


def _raw(connection: Connection) -> psycopg.Connection[Any]:
    assert isinstance(connection, PostgresqlConnection)
    return connection.raw


def _schema_of(raw: psycopg.Connection[Any]) -> int | None:
    row = raw.execute("SELECT to_regclass('stellarchat') IS NOT NULL").fetchone()
    if not row or not row[0]:
        return None
    found = raw.execute("SELECT MAX(schema) FROM stellarchat").fetchone()
    assert found is not None
    version: int = found[0]
    return version


def _refuse_foreign(raw: psycopg.Connection[Any]) -> None:
    row = raw.execute("SELECT EXISTS (SELECT 1 FROM pg_tables WHERE schemaname = current_schema())").fetchone()
    if row and row[0]:
        raise ConfigurationError("the database has tables of another program; set DATABASE_URL to one of its own")


def _migrations() -> dict[int, str]:
    files = (SQL / "postgresql" / "migrations").glob("*.sql")
    return {int(file.name[:4]): file.read_text(encoding="utf-8") for file in files}


def _statements(script: str) -> list[str]:
    """Splits a script into statements; the body of a function may contain several."""
    text = re.sub(r"--[^\n]*", "", script)
    parts = re.split(r"(\$\$.*?\$\$)", text, flags=re.DOTALL)
    statements = [""]
    for part in parts:
        if part.startswith("$$"):
            statements[-1] += part
        else:
            first, *others = part.split(";")
            statements[-1] += first
            statements += others
    return [each for each in map(str.strip, statements) if each]
