"""The open PostgreSQL database of one process: a writer connection, a few readers, and one for heartbeats."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from proxy import ids
from proxy.settings import ConfigurationError
from proxy.storage import postgresql
from proxy.storage.connection import Connection
from proxy.storage.database import LOOK_UP_READERS, READ_SECONDS, READERS, Database
from proxy.storage.errors import StorageError
from proxy.storage.own_thread import OwnThread
from proxy.storage.postgresql_connection import PostgresqlConnection
from proxy.storage.postgresql_errors import translated_errors

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A connection whose server does not answer is abandoned after this time.
_CLOSE_SECONDS = 3.0
# Other processes treat this one as dead after 15 seconds without a heartbeat (`workers.sql`).
# Not an advisory lock, which the server may hold for hours after a connection went silent (tcp_keepalives_idle).
_BEAT_SECONDS = 4.0
# How long a start waits for another process's write before it continues without it.
_LOCK_MS = 5_000


class _Thread:
    """A connection in its own thread; reconnects after a connection loss."""

    def __init__(self, connect: Callable[[], PostgresqlConnection], name: str) -> None:
        self._connect = connect
        self._thread = OwnThread(name)
        self._connection: PostgresqlConnection | None = None

    async def run(self, work: Callable[[PostgresqlConnection], T]) -> T:
        """Runs `work` after earlier calls; returns or raises its result."""
        return await self._thread.run(partial(self._work, work))

    async def close(self) -> None:
        """Closes the connection unless the server does not answer."""
        with suppress(TimeoutError, StorageError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._thread.run(self._close)
        self._thread.stop()

    def _work(self, work: Callable[[PostgresqlConnection], T]) -> T:
        if self._connection is None or self._connection.is_lost:
            self._connection = self._connect()
        with translated_errors():
            return work(self._connection)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class PostgresqlDatabase(Database):
    """Like the SQLite `Database`. `path` only names this host's other files; no database file exists there."""

    def __init__(self, url: str, path: Path) -> None:
        super().__init__(path)
        self.url = url
        self._lock_ms = _LOCK_MS
        self._writing = _Thread(self._connect_writer, "writer")
        self._reading: asyncio.Queue[_Thread] = asyncio.Queue()
        self._looking_up: asyncio.Queue[_Thread] = asyncio.Queue()
        self._all = [self._writing]
        self._beating: asyncio.Task[None] | None = None
        self._heart: _Thread | None = None
        self._worker_id: str | None = None

    async def open(self, *, readers: int = READERS) -> None:
        """Connects; creates and migrates the tables if necessary. Raises ConfigurationError."""
        for queue, count in ((self._reading, readers), (self._looking_up, LOOK_UP_READERS)):
            for _ in range(count):
                thread = _Thread(partial(postgresql.connect, self.url, statement_seconds=READ_SECONDS), "reader")
                queue.put_nowait(thread)
                self._all.append(thread)
        try:
            await self._writing.run(postgresql.prepare)
        except StorageError as exc:
            await self.close()
            raise ConfigurationError(postgresql.why_unusable(self.url, exc)) from exc
        except ConfigurationError as exc:
            await self.close()
            raise ConfigurationError(f"cannot use the database {self}: {exc}") from exc

    def __str__(self) -> str:
        return postgresql.without_password(self.url)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Runs `work`, which manages the transaction. Only the writer task calls this."""
        return await self._writing.run(work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in one read transaction. Raises StorageInterruptedError after READ_SECONDS."""
        return await _read_with_one_of(self._reading, partial(_in_snapshot, work))

    async def look_up(self, work: Callable[[Connection], T]) -> T:
        """Like `read`, but for short queries at the start of a request, each with a snapshot of its own.

        Never waits behind a `read`.
        """
        return await _read_with_one_of(self._looking_up, partial(_limited, work))

    async def wait_for_locks(self, *, milliseconds: int) -> None:
        """Sets how long a write waits for another process's write."""
        self._lock_ms = milliseconds
        await self._writing.run(self._set_lock_timeout)

    def probe(self, connection: Connection) -> None:
        """Raises StorageError if the database cannot be written."""
        with connection.transaction():
            connection.value("last_numbers")

    def connect(self) -> Connection:
        """Opens another connection, for use in the caller's own thread."""
        return postgresql.connect(self.url)

    async def keep_alive(self, worker_id: str) -> None:
        """Starts sending heartbeats, so that other processes know that this one is alive."""
        self._heart = _Thread(partial(postgresql.connect, self.url), "beat")
        self._all.append(self._heart)
        self._worker_id = worker_id
        with suppress(StorageError):  # the heartbeat task retries later
            self.living_count = await self._heart.run(partial(_send_heartbeat, worker_id=worker_id))
        self._beating = asyncio.create_task(self._send_heartbeats(self._heart, worker_id), name="beat")

    def forget(self, connection: Connection, worker_id: str) -> None:
        """Forgets a process whose host has stored what it had left."""
        connection.changes("forget_worker", {"worker_id": worker_id})

    async def adopt_clock(self) -> None:
        """Does nothing: each heartbeat adjusts the clock to the server's."""

    async def checkpoint(self) -> None:
        """Does nothing: the server checkpoints by itself."""

    async def close(self) -> None:
        """Closes all connections except those whose server does not answer."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])
            await self._leave()
        for thread in self._all:
            await thread.close()

    async def _leave(self) -> None:
        """Tells the other processes that this one is stopping."""
        assert self._heart is not None
        with suppress(TimeoutError, StorageError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._heart.run(
                    lambda connection: connection.changes("forget_worker", {"worker_id": self._worker_id})
                )

    async def _send_heartbeats(self, thread: _Thread, worker_id: str) -> None:
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            try:
                self.living_count = await thread.run(partial(_send_heartbeat, worker_id=worker_id))
            except StorageError as exc:
                logger.warning("the heartbeat could not be sent: %s", exc)

    def _connect_writer(self) -> PostgresqlConnection:
        connection = postgresql.connect(self.url)
        self._set_lock_timeout(connection)
        return connection

    def _set_lock_timeout(self, connection: PostgresqlConnection) -> None:
        connection.raw.execute(f"SET lock_timeout = {int(self._lock_ms)}")


async def _read_with_one_of(readers: asyncio.Queue[_Thread], work: Callable[[PostgresqlConnection], T]) -> T:
    thread = await readers.get()
    try:
        return await thread.run(work)
    except StorageError as exc:
        if exc.trouble != "later":
            raise
        return await thread.run(work)  # reconnects if the old connection was lost
    finally:
        readers.put_nowait(thread)


def _in_snapshot(work: Callable[[Connection], T], connection: PostgresqlConnection) -> T:
    with connection.limited_to(READ_SECONDS), connection.snapshot():
        return work(connection)


def _limited(work: Callable[[Connection], T], connection: PostgresqlConnection) -> T:
    with connection.limited_to(READ_SECONDS):
        return work(connection)


def _send_heartbeat(connection: PostgresqlConnection, *, worker_id: str) -> int:
    """Sends a heartbeat and adjusts the clock to the server's; returns the number of living processes."""
    asked_at = time.monotonic()
    server_seconds = connection.value("beat", {"worker_id": worker_id, "host": socket.gethostname()})
    ids.keep_clock_between(server_seconds - time.monotonic(), server_seconds - asked_at)
    return max(1, int(connection.value("count_living_workers")))
