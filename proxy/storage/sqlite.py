"""Opens an SQLite file: configures the connection, migrates the file, rejects files of other programs."""

import re
import sqlite3
import time
from pathlib import Path

from proxy.settings import ConfigurationError
from proxy.storage.connection import Connection
from proxy.storage.named import SQL
from proxy.storage.sqlite_connection import SqliteConnection, translated_errors

# "StCh" marks a StellarChat file. https://sqlite.org/pragma.html#pragma_application_id
APPLICATION_ID = 0x53744368
SQLITE_VERSION = sqlite3.sqlite_version
OLDEST_SQLITE = (3, 39, 0)  # first version with IS NOT DISTINCT FROM
# How long a connection waits for other processes that create the same new file.
_SET_UP_SECONDS = 5.0


@translated_errors()
def connect(path: Path) -> SqliteConnection:
    """Opens a connection configured by `sql/sqlite/connect.sql`; creates the file if missing.

    The caller manages every transaction.
    """
    _refuse_old_sqlite(sqlite3.sqlite_version_info)
    _make_private(path)
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=256, factory=SqliteConnection)
    return _set_up(connection, path)


@translated_errors()
def connect_existing(path: Path) -> SqliteConnection:
    """Like `connect`, but raises StorageUnavailableError if the file is missing.

    If a served database is moved away, creating an empty one in its place would leave a log there, which SQLite would
    apply to the file when it is moved back.
    """
    _refuse_old_sqlite(sqlite3.sqlite_version_info)
    uri = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, cached_statements=256, factory=SqliteConnection)
    return _set_up(connection, path)


def _set_up(connection: SqliteConnection, path: Path) -> SqliteConnection:
    try:
        _refuse_foreign(connection, path)
        if not connection.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()[0]:
            # These take effect only before the first table is created. Most messages have 0.3 to 4 KB; with 4 KB pages
            # a third of the file would be empty.
            connection.execute("PRAGMA page_size = 1024")
            # With auto_vacuum, `prune` can return free space to the file system; changing it waits for locks.
            # https://sqlite.org/pragma.html#pragma_auto_vacuum
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        for statement in _statements((SQL / "sqlite" / "connect.sql").read_text(encoding="utf-8")):
            _run_with_retries(connection, statement)
    except BaseException:
        connection.close()
        raise
    return connection


def _run_with_retries(connection: SqliteConnection, statement: str) -> None:
    """Runs a statement, and retries it while the file is locked.

    SQLite's busy handler does not cover switching a new file to WAL: two connections that have read the file and want
    to change it would wait for each other. https://sqlite.org/c3ref/busy_handler.html
    """
    deadline = time.monotonic() + _SET_UP_SECONDS
    while True:
        try:
            connection.execute(statement).fetchall()
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


@translated_errors()
def prepare(connection: Connection, *, up_to: int | None = None) -> None:
    """Applies the missing migrations, each in one transaction. Rejects a file of a newer program."""
    refuse_unknown_schema(connection)
    assert isinstance(connection, SqliteConnection)
    for number, script in sorted(_migrations().items()):
        if schema_of(connection) >= number or (up_to is not None and number > up_to):
            continue  # no lock is needed to see this, and another program may hold one for long
        with connection.transaction():
            # Read again under the lock: another worker may have applied it.
            if schema_of(connection) < number:
                _migrate(connection, number=number, script=script)


@translated_errors()
def refuse_unknown_schema(connection: Connection) -> None:
    """Raises ConfigurationError if the file is of a newer program, or of one before the first release."""
    assert isinstance(connection, SqliteConnection)
    version = schema_of(connection)
    if version > newest_schema():
        raise ConfigurationError(
            f"the database has schema {version}, this program knows up to {newest_schema()}: "
            "run the newer StellarChat that wrote it"
        )
    if 0 < version < min(_migrations()):
        raise ConfigurationError(
            "the database is of a version before the first release: export it with the StellarChat that wrote it, and "
            "import that into a new one"
        )


@translated_errors()
def schema_of(connection: SqliteConnection) -> int:
    """The schema version of the file; 0 if it has no tables yet."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def newest_schema() -> int:
    """The schema version of this program."""
    return max(_migrations())


def _migrate(connection: SqliteConnection, *, number: int, script: str) -> None:
    for statement in _statements(script):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {number}")


def _migrations() -> dict[int, str]:
    files = (SQL / "sqlite" / "migrations").glob("*.sql")
    return {int(file.name[:4]): file.read_text(encoding="utf-8") for file in files}


def _statements(script: str) -> list[str]:
    """Splits a script into statements: `executescript` would commit the open transaction first."""
    statements = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending.strip())
            pending = ""
    return [statement for statement in statements if re.sub(r"--[^\n]*", "", statement).strip(" \n;")]


def _refuse_old_sqlite(version: tuple[int, ...]) -> None:
    if version < OLDEST_SQLITE:
        has, needs = ".".join(map(str, version)), ".".join(map(str, OLDEST_SQLITE))
        raise ConfigurationError(f"this Python has SQLite {has}; StellarChat needs {needs} or newer")


def _refuse_foreign(connection: SqliteConnection, path: Path) -> None:
    # The order matters: another process may create the tables meanwhile, in one transaction with the id.
    has_tables = connection.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()[0] > 0
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    if application_id == APPLICATION_ID:
        return
    if has_tables or application_id:
        raise ConfigurationError(f"{path} is a database of another program; set DATABASE_URL to a file of its own")


def _make_private(path: Path) -> None:
    """Creates the file readable only by its owner, because it contains all users' history."""
    if str(path) == ":memory:":
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as exc:
        raise ConfigurationError(f"cannot use the database {path}: {exc.strerror}") from exc
