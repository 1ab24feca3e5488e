"""Opens an SQLite file: sets the connection up, migrates the file, refuses what is not ours."""

import re
import sqlite3
import time
from pathlib import Path

from proxy.settings import ConfigurationError
from proxy.storage.connection import Connection
from proxy.storage.named import SQL
from proxy.storage.sqlite_connection import SqliteConnection, translated_errors

# "StCh": tells a StellarChat file from any other. https://sqlite.org/pragma.html#pragma_application_id
APPLICATION_ID = 0x53744368
SQLITE_VERSION = sqlite3.sqlite_version
OLDEST_SQLITE = (3, 39, 0)  # IS NOT DISTINCT FROM
# How long a connection waits for others that make the same new file.
_SET_UP_SECONDS = 5.0


@translated_errors()
def connect(path: Path) -> SqliteConnection:
    """A connection set up as `sql/sqlite/connect.sql` says, to a file that is made where there is none; the caller
    begins and ends every transaction."""
    _refuse_old_sqlite(sqlite3.sqlite_version_info)
    _make_private(path)
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=256, factory=SqliteConnection)
    return _set_up(connection, path)


@translated_errors()
def connect_existing(path: Path) -> SqliteConnection:
    """The same, to a file that is there. Raises StorageUnavailableError where it is not.

    While a served database is moved away, an empty one made in its place would leave a log there, which SQLite would
    read into the file that comes back.
    """
    _refuse_old_sqlite(sqlite3.sqlite_version_info)
    uri = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, cached_statements=256, factory=SqliteConnection)
    return _set_up(connection, path)


def _set_up(connection: SqliteConnection, path: Path) -> SqliteConnection:
    try:
        _refuse_foreign(connection, path)
        if not connection.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()[0]:
            # Only a file without tables takes these. Most messages have between 0.3 and 4 KB: in pages of 4 KB a third
            # of the file would be empty.
            connection.execute("PRAGMA page_size = 1024")
            # The space that prune frees goes back with auto_vacuum. It waits for locks.
            # https://sqlite.org/pragma.html#pragma_auto_vacuum
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        for statement in _statements((SQL / "sqlite" / "connect.sql").read_text(encoding="utf-8")):
            _run_patiently(connection, statement)
    except BaseException:
        connection.close()
        raise
    return connection


def _run_patiently(connection: SqliteConnection, statement: str) -> None:
    """Run a statement, again while the file is locked.

    SQLite's own wait does not cover the change of a new file to WAL: two that have read the file and want to change it
    would wait for each other. https://sqlite.org/c3ref/busy_handler.html
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
    """Apply the migrations the file does not have yet, each in one transaction. Refuses a file of a newer program."""
    refuse_unknown_schema(connection)
    assert isinstance(connection, SqliteConnection)
    for number, script in sorted(_migrations().items()):
        if _user_version(connection) >= number or (up_to is not None and number > up_to):
            continue  # no lock is needed to see that: another program may hold it for long
        with connection.transaction():
            # Read under the lock: another worker may have been first.
            if _user_version(connection) < number:
                _migrate(connection, number=number, script=script)


@translated_errors()
def refuse_unknown_schema(connection: Connection) -> None:
    """Raise ConfigurationError where the file is of a newer program, or of one before the first release."""
    assert isinstance(connection, SqliteConnection)
    version = _user_version(connection)
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


def newest_schema() -> int:
    """The schema this program brings a database to."""
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
    """The statements of a script one by one: `executescript` would commit the open transaction first."""
    statements = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending.strip())
            pending = ""
    return [statement for statement in statements if re.sub(r"--[^\n]*", "", statement).strip(" \n;")]


def _user_version(connection: SqliteConnection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _refuse_old_sqlite(version: tuple[int, ...]) -> None:
    if version < OLDEST_SQLITE:
        has, needs = ".".join(map(str, version)), ".".join(map(str, OLDEST_SQLITE))
        raise ConfigurationError(f"this Python has SQLite {has}; StellarChat needs {needs} or newer")


def _refuse_foreign(connection: SqliteConnection, path: Path) -> None:
    # In this order: another process may make the tables meanwhile, and does so together with the id.
    has_tables = connection.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()[0] > 0
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    if application_id == APPLICATION_ID:
        return
    if has_tables or application_id:
        raise ConfigurationError(f"{path} is a database of another program; set DATABASE_URL to a file of its own")


def _make_private(path: Path) -> None:
    """Create the file so that only its owner reads it: the history of all users is in there."""
    if str(path) == ":memory:":
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as exc:
        raise ConfigurationError(f"cannot use the database {path}: {exc.strerror}") from exc
