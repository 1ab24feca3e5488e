"""The open SQLite database of one process: one writer connection and a few readers, each with its own thread."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from proxy.low_priority import lower_priority
from proxy.settings import ConfigurationError
from proxy.storage import boot_clock, sqlite, sqlite_file
from proxy.storage.connection import Connection
from proxy.storage.errors import StorageError
from proxy.storage.file_identity import FileIdentity
from proxy.storage.sqlite_connection import SqliteConnection, translated_errors
from proxy.storage.unusable import why_unusable

T = TypeVar("T")


# A connection whose disk hangs is abandoned after this time.
_CLOSE_SECONDS = 3.0
# Longer reads are interrupted, because other requests wait for the same connection.
READ_SECONDS = 10.0
# Connections reserved for looking up keys and the sessions of chats.
LOOK_UP_READERS = 2
# Connections for lists, histories and all other reads.
READERS = 2
_left_open: list[aiosqlite.Connection] = []  # kept until the process ends


# An aiosqlite call takes 16 to 23 µs, because it switches threads (measured).
class _Thread(aiosqlite.Connection):
    """An aiosqlite connection that can run a whole function in its thread.

    Switching threads costs more than most queries, so a transaction or a page of rows runs as one call.
    """

    stopped: asyncio.Future[Any] | None = None

    def __init__(self, path: Path, connect: Callable[[Path], SqliteConnection]) -> None:
        super().__init__(lambda: connect(path), 64)
        self._thread.daemon = True  # a disk that hangs in `fsync` must not block process exit

    def stop(self) -> asyncio.Future[Any] | None:
        """Asks the thread to end. `stopped` is set once it will not call the event loop any more."""
        self.stopped = super().stop()
        return self.stopped

    async def run(self, work: Callable[[SqliteConnection], T]) -> T:
        """Runs `work` in the connection's thread, after earlier calls; returns or raises its result."""
        result: T = await self._execute(_translated, work, self._conn)  # type: ignore[no-untyped-call]
        return result


class Database:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = FileIdentity(path)
        self._writer: _Thread | None = None
        self._readers: asyncio.Queue[_Thread] = asyncio.Queue()
        self._look_up_readers: asyncio.Queue[_Thread] = asyncio.Queue()
        self._opened: list[_Thread] = []
        self._reader_count = READERS
        self.living_count = 1  # processes serving the database, as known to this host

    async def open(self, *, readers: int = READERS) -> None:
        """Opens the file; creates and migrates it if necessary. Raises ConfigurationError with a one-line reason."""
        self._reader_count = readers
        try:
            await self._open(sqlite.connect)
        except StorageError as exc:
            await self.close()
            raise ConfigurationError(why_unusable(self.path, exc)) from exc
        except OSError as exc:
            await self.close()
            raise ConfigurationError(f"cannot use the database {self.path}: {exc.strerror}") from exc
        except BaseException:
            await self.close()
            raise

    async def _open(self, connect: Callable[[Path], SqliteConnection]) -> None:
        self._writer = await self._connect(connect)
        await self._writer.run(sqlite.prepare)
        for readers, count in ((self._readers, self._reader_count), (self._look_up_readers, LOOK_UP_READERS)):
            for _ in range(count):
                reader = await self._connect(sqlite.connect_existing)
                await reader.run(sqlite_file.refuse_writes)
                if readers is self._readers:
                    await reader.run(lambda _connection: lower_priority())
                readers.put_nowait(reader)
        self.files.remember()

    async def reopen(self) -> None:
        """Switches to the database file that has replaced the open one. Raises StorageError, ConfigurationError,
        MovedError.

        The old connections stay open: closing a file's last connection deletes its log by name, and that name now
        belongs to the new database.
        """
        assert self._writer is not None
        self.files.refuse_unusable(application_id=sqlite.APPLICATION_ID)
        with suppress(StorageError):  # the old file's owner may need what is only in its log
            await self._writer.run(sqlite_file.checkpoint)
        self.files.remove_log()
        _left_open.extend(self._opened)
        self._opened, self._readers, self._look_up_readers = [], asyncio.Queue(), asyncio.Queue()
        await self._open(sqlite.connect_existing)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` on the writer connection; `work` manages the transaction. Only the writer task calls this."""
        assert self._writer is not None
        return await self._writer.run(work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` on a reader connection in one read transaction.

        Raises StorageInterruptedError after READ_SECONDS.
        """
        async with _one_of(self._readers) as connection:
            return await connection.run(partial(_in_snapshot, work))

    async def look_up(self, work: Callable[[Connection], T]) -> T:
        """Runs short indexed queries at the start of a request on their own connections. Never waits behind a `read`.

        Without a transaction: each statement sees its own snapshot.
        """
        async with _one_of(self._look_up_readers) as connection:
            return await connection.run(partial(_limited, work))

    async def wait_for_locks(self, *, milliseconds: int) -> None:
        """Sets how long a write waits for another process's lock."""
        await self.write(partial(sqlite_file.wait_for_locks, milliseconds=milliseconds))

    def probe(self, connection: Connection) -> None:
        """Raises StorageError if the database cannot be written."""
        sqlite_file.probe(connection)

    def connect(self) -> Connection:
        """Opens another connection, for use in the caller's own thread."""
        return sqlite.connect_existing(self.path)

    async def keep_alive(self, worker_id: str) -> None:
        """Does nothing for SQLite: other processes see the lock on this process's spill file."""

    def forget(self, connection: Connection, worker_id: str) -> None:
        """Does nothing for SQLite. Elsewhere: a dead process's host has stored what it had left."""

    async def adopt_clock(self) -> None:
        """Adopts the clock that all processes use to order deletions and chats."""
        await self.write(boot_clock.adopt)

    async def checkpoint(self) -> None:
        """Writes the write-ahead log into the database file and truncates it. https://sqlite.org/wal.html#ckpt"""
        await self.write(sqlite_file.checkpoint)

    async def close(self) -> None:
        """Closes all connections, except those whose disk hangs and those of a file that was moved."""
        is_moved = self.files.is_moved
        for connection in self._opened:
            try:
                if is_moved:
                    raise TimeoutError  # noqa: TRY301 - left open for the reason given in `reopen`
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await connection.close()
            except TimeoutError:
                _left_open.append(connection)
        self._opened.clear()
        self._writer = None

    async def _connect(self, connect: Callable[[Path], SqliteConnection]) -> _Thread:
        connection = _Thread(self.path, connect)
        try:
            await connection
        except BaseException:
            if connection.stopped is not None:  # wait: the thread calls the event loop, which may end right after this
                await connection.stopped
            raise
        self._opened.append(connection)
        return connection


@asynccontextmanager
async def _one_of(readers: asyncio.Queue[_Thread]) -> AsyncIterator[_Thread]:
    connection = await readers.get()
    try:
        yield connection
    finally:
        readers.put_nowait(connection)


def _translated(work: Callable[[SqliteConnection], T], connection: SqliteConnection) -> T:
    with translated_errors():
        return work(connection)


def _in_snapshot(work: Callable[[Connection], T], connection: SqliteConnection) -> T:
    with connection.limited_to(READ_SECONDS), connection.snapshot():
        return work(connection)


def _limited(work: Callable[[Connection], T], connection: SqliteConnection) -> T:
    with connection.limited_to(READ_SECONDS):
        return work(connection)
