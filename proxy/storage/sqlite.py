"""The SQLite file: opening, checking and migrating it; one writer connection and a few readers, a thread each."""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from proxy.settings import ConfigurationError
from proxy.storage.file_identity import FileIdentity

T = TypeVar("T")

# "StCh": tells a StellarChat file from any other. https://sqlite.org/pragma.html#pragma_application_id
APPLICATION_ID = 0x53744368
OLDEST_SQLITE = (3, 39, 0)  # IS NOT DISTINCT FROM

_PACKAGE = Path(__file__).parent.parent
SQL = _PACKAGE / "sql" if (_PACKAGE / "sql").is_dir() else _PACKAGE.parent / "sql"


_CLOSE_SECONDS = 3.0
_left_open: list[aiosqlite.Connection] = []  # to the end of the process


class Connection(aiosqlite.Connection):
    """An aiosqlite connection that also runs a whole function in its thread.

    A hop between threads costs more than most queries, so a transaction or a page of rows is one hop.
    """

    stopped: asyncio.Future[Any] | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(lambda: connect(path), 64)
        self._thread.daemon = True  # a disk that stalls inside `fsync` must not keep the process from ending

    def stop(self) -> asyncio.Future[Any] | None:
        """Ask the thread to end; `stopped` is done when it has nothing more to tell the event loop."""
        self.stopped = super().stop()
        return self.stopped

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns or raises, run in the connection's thread after what was asked before."""
        result: T = await self._execute(work, self._conn)  # type: ignore[no-untyped-call]
        return result


class Database:
    """The open database of one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = FileIdentity(path)
        self._writer: Connection | None = None
        self._readers: asyncio.Queue[Connection] = asyncio.Queue()
        self._opened: list[Connection] = []
        self._reader_count = 2

    async def open(self, *, readers: int = 2) -> None:
        """Open the file, made and migrated where needed. Raises ConfigurationError with one line that says why not."""
        self._reader_count = readers
        try:
            await self._open()
        except sqlite3.Error as exc:
            await self.close()
            raise ConfigurationError(_opening_failed(self.path, exc)) from exc
        except BaseException:
            await self.close()
            raise

    async def _open(self) -> None:
        self._writer = await self._connect()
        await self._writer.run(prepare)
        for _ in range(self._reader_count):
            reader = await self._connect()
            await reader.run(_only_read)
            self._readers.put_nowait(reader)
        self.files.remember()

    async def reopen(self) -> None:
        """Serve the database that has been put in the place of the one that is open. Raises sqlite3.Error,
        ConfigurationError, MovedError.

        The old connections are left as they are: closing the last one of a file deletes the log by its name, which is
        the new database's by now.
        """
        assert self._writer is not None
        self.files.refuse_unusable(application_id=APPLICATION_ID)
        with suppress(sqlite3.Error):  # what is only in the old log is wanted by whoever has moved the old file away
            await self._writer.run(lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone())
        self.files.remove_log()
        _left_open.extend(self._opened)
        self._opened, self._readers = [], asyncio.Queue()
        await self._open()

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work`, which owns its transaction, on the writer connection. Only the writer task calls this."""
        assert self._writer is not None
        return await self._writer.run(work)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on a reader connection, in one read transaction."""
        async with self.reader() as connection:
            return await connection.run(lambda conn: _in_read_transaction(conn, work))

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[Connection]:
        """A reader connection of one's own, for as long as the block lasts."""
        readers = self._readers
        connection = await readers.get()
        try:
            yield connection
        finally:
            readers.put_nowait(connection)

    async def checkpoint(self) -> None:
        """Bring the write-ahead log into the file and empty it. https://sqlite.org/wal.html#ckpt"""
        await self.write(lambda conn: conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone())

    async def close(self) -> None:
        """Close every connection, but for those whose disk does not answer, and those of a file that was moved."""
        is_moved = self.files.is_moved
        for connection in self._opened:
            try:
                if is_moved:
                    raise TimeoutError  # noqa: TRY301 - left open, for the reason that `reopen` has
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await connection.close()
            except TimeoutError:
                _left_open.append(connection)
        self._opened.clear()
        self._writer = None

    async def _connect(self) -> Connection:
        connection = Connection(self.path)
        try:
            await connection
        except BaseException:
            if connection.stopped is not None:  # the event loop may end after this: not before the thread has
                await connection.stopped
            raise
        self._opened.append(connection)
        return connection


def connect(path: Path) -> sqlite3.Connection:
    """A connection set up as `sql/sqlite/connect.sql` says; the caller begins and ends every transaction."""
    _make_private(path)
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
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
            connection.execute(statement).fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def prepare(connection: sqlite3.Connection, *, up_to: int | None = None) -> None:
    """Apply the migrations the file does not have yet, each in one transaction. Refuses a file of a newer program."""
    refuse_unknown_schema(connection)
    for number, script in sorted(_migrations().items()):
        if _user_version(connection) >= number or (up_to is not None and number > up_to):
            continue  # no lock is needed to see that: another program may hold it for long
        with transaction(connection):
            # Read under the lock: another worker may have been first.
            if _user_version(connection) < number:
                _migrate(connection, number=number, script=script)


def refuse_unknown_schema(connection: sqlite3.Connection) -> None:
    """Raise ConfigurationError where the file is of a newer program, or of one before the first release."""
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


class transaction:  # noqa: N801 - reads as `with transaction(connection):`
    """A write transaction around a block: committed at its end, rolled back when it raises."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self._connection.execute("COMMIT")
            except sqlite3.Error:
                rollback(self._connection)
                raise
        else:
            rollback(self._connection)


def rollback(connection: sqlite3.Connection) -> None:
    """End the transaction, where SQLite has not done so itself. https://sqlite.org/lang_transaction.html#immediate"""
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _migrate(connection: sqlite3.Connection, *, number: int, script: str) -> None:
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


def _user_version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
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


def _only_read(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA query_only = ON")


def _in_read_transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN")
    try:
        return work(connection)
    finally:
        rollback(connection)


def _opening_failed(path: Path, exc: sqlite3.Error) -> str:
    if "not a database" in str(exc):
        return f"{path} is not an SQLite database; set DATABASE_URL to another file"
    return f"cannot use the database {path}: {exc}"
