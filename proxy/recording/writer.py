"""Group commit: one queue of writes, one task, one transaction for all that has gathered.

A write that is done is on disk (`synchronous=FULL`). While the database refuses (disk full, locked, I/O error), writes
that must not be lost go to the spill file, which is on disk too, and come back in order when the database does.
"""

import asyncio
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from proxy.errors import UnavailableError
from proxy.recording.spill import Spill
from proxy.storage.sqlite import Database, transaction
from proxy.storage.write_batch import WriteBatch, write_batch

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BATCH_LIMIT = 256
# Chats that end together are committed together: a commit costs about as much as storing one of them.
_GROUP_SECONDS = 0.004
# How long the writer waits for another program's lock before it spills; short, so that what streams stays on disk.
_PATIENCE_MS = 300
# A lock held longer than this is trouble: until then the spill alone bridges it.
_LOCK_SECONDS = 2.0
_RETRY_SECONDS = 0.5
_GATHER_SECONDS = 0.02

# Errors of the file, the disk or other programs, which pass; all else is wrong with one write and would not.
# https://sqlite.org/rescode.html#primary_result_code_list
_TROUBLE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)


@dataclass(slots=True, eq=False)
class Write(Generic[T]):
    """One change to make: `work` runs inside the transaction; `spilled` is the line that stands for it on the spill."""

    work: Callable[[WriteBatch], T]
    done: asyncio.Future[T]
    size: int = 0
    spilled: Callable[[], bytes] | None = None
    queued_at: float = field(default_factory=time.monotonic)


class QueueFullError(Exception):
    """More writes wait than the settings allow."""


class Writer:
    """The only one who writes. `submit` never waits; the future it gives is done when the write is on disk."""

    def __init__(
        self,
        database: Database,
        spill: Spill,
        *,
        replay: Callable[[WriteBatch, bytes], None],
        queue_limit: int,
        queue_limit_bytes: int,
        commit_timeout_seconds: float,
    ) -> None:
        self._database = database
        self._spill = spill
        self._replay = replay
        self._queue: deque[Write[Any]] = deque()
        self._queued_bytes = 0
        self._queue_limit = queue_limit
        self._queue_limit_bytes = queue_limit_bytes
        self._commit_timeout_seconds = commit_timeout_seconds
        self._wanted = asyncio.Event()
        self._is_closing = False
        self._is_closed = False
        self._task: asyncio.Task[None] | None = None
        self._overdue: asyncio.TimerHandle | None = None
        self._refused_since: float | None = None
        self._retry_at = 0.0
        self._spill_fails = False
        self.last_error: str | None = None  # why the database refuses, while it does
        self.unsaved = 0  # writes given up, or not on disk when their end was sent
        self.commits = 0
        self.commit_seconds = 0.0

    @property
    def waiting(self) -> int:
        """Writes that are not in the database yet, the spilled ones included."""
        return len(self._queue) + self._spill.count

    @property
    def spilled(self) -> int:
        """Writes on the spill file."""
        return self._spill.count

    @property
    def queued_bytes(self) -> int:
        """Size of what is queued in memory."""
        return self._queued_bytes

    @property
    def oldest_seconds(self) -> float:
        """How long the oldest queued write has waited."""
        return time.monotonic() - self._queue[0].queued_at if self._queue else 0.0

    async def start(self) -> None:
        """Begin writing."""
        patience_ms = min(_PATIENCE_MS, round(self._commit_timeout_seconds * 500))
        await self._database.write(lambda connection: connection.execute(f"PRAGMA busy_timeout = {patience_ms}"))
        self._task = asyncio.create_task(self._run(), name="writer")

    def submit(
        self,
        work: Callable[[WriteBatch], T],
        *,
        size: int = 0,
        spilled: Callable[[], bytes] | None = None,
    ) -> asyncio.Future[T]:
        """Queue a change. Raises QueueFullError; the future raises what `work` raises, or
        UnavailableError if the database refuses. For a write that can be spilled it says whether it is on disk."""
        if not self.has_room(size):
            raise QueueFullError
        write = Write(work, asyncio.get_running_loop().create_future(), size, spilled)
        self._queue.append(write)
        self._queued_bytes += size
        self._wanted.set()
        if self._overdue is None:
            self._release_after(self._commit_timeout_seconds)
        return write.done

    def has_room(self, size: int) -> bool:
        """Whether the queue takes one more write of this size."""
        is_full = len(self._queue) >= self._queue_limit or self._queued_bytes + size > self._queue_limit_bytes
        return not (is_full or self._is_closed)

    async def flushed(self) -> None:
        """Wait until what is queued now is on disk, but not longer than a chat would."""
        if self._queue:
            await asyncio.wait([self._queue[-1].done], timeout=self._commit_timeout_seconds)

    async def close(self) -> None:
        """Write what is queued, then end the task."""
        self._is_closing = True
        self._wanted.set()
        if self._task is not None:
            await self._task
        self._is_closed = True
        if self._overdue is not None:
            self._overdue.cancel()

    async def _run(self) -> None:
        while self._queue or not self._is_closing:
            try:
                await self._turn()
            except Exception:  # the writer must live: without it every chat would wait at its end
                logger.exception("the writer failed; it goes on")
                await asyncio.sleep(_RETRY_SECONDS)
        if self._spill.count:
            await self._drained_spill()

    async def _turn(self) -> None:
        if not self._queue and not self._spill.count and self._refused_since is None:
            await self._wait_for_writes(None)
        elif await self._drained_spill():
            await self._write_batch()
        else:
            await self._spill_queue()
            await self._wait_for_writes(max(0.0, self._retry_at - time.monotonic()))

    async def _wait_for_writes(self, seconds: float | None) -> None:
        self._wanted.clear()
        if self._is_closing:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wanted.wait()
        except TimeoutError:
            return
        if seconds is not None:
            await asyncio.sleep(_GATHER_SECONDS)  # more at once, with one sync of the spill file

    def _release_after(self, seconds: float) -> None:
        self._overdue = asyncio.get_running_loop().call_later(seconds, self._release_overdue)

    def _release_overdue(self) -> None:
        """Let go the chats whose write has waited too long; the write itself goes on being tried."""
        self._overdue = None
        now = time.monotonic()
        for write in self._queue:
            left = write.queued_at + self._commit_timeout_seconds - now
            if left > 0 and not write.done.done():
                self._release_after(max(left, _GATHER_SECONDS))
                return
            self._give_up(write)

    async def _write_batch(self) -> None:
        batch = self._next_batch()
        if not batch:
            return
        started = time.monotonic()
        try:
            results = await self._database.write(lambda connection: _apply(connection, batch))
        except sqlite3.Error as exc:
            self._refuse(exc)
            return
        self._accept()
        self.commits += 1
        self.commit_seconds += time.monotonic() - started
        self._take_off(len(batch))
        for write, result in zip(batch, results, strict=True):
            self._settle(write, result)
        if len(batch) > 1 and not self._is_closing:
            await asyncio.sleep(_GROUP_SECONDS)

    def _next_batch(self) -> list[Write[Any]]:
        return [write for write, _ in zip(self._queue, range(_BATCH_LIMIT), strict=False)]

    def _take_off(self, count: int) -> None:
        for _ in range(count):
            self._queued_bytes -= self._queue.popleft().size

    def _settle(self, write: Write[Any], result: Any) -> None:
        if isinstance(result, BaseException) and write.spilled is not None:
            self.unsaved += 1
            logger.error("a recorded exchange was refused by the database and is lost", exc_info=result)
            result = False
        if write.done.done():
            return
        if isinstance(result, BaseException):
            write.done.set_exception(result)
        else:
            write.done.set_result(result)

    async def _drained_spill(self) -> bool:
        """Bring back what was spilled. False while the database still refuses."""
        if self._refused_since is None and not self._spill.count:
            return True
        if time.monotonic() < self._retry_at and not self._is_closing:
            return False
        try:
            await self._database.write(_probe)
            for lines in self._spill.batches():
                await self._database.write(partial(replay_lines, lines=lines, replay=self._replay))
        except sqlite3.Error as exc:
            self._refuse(exc)
            return False
        if self._spill.count:
            logger.warning("%d spilled writes are in the database now", self._spill.count)
            await asyncio.to_thread(self._spill.clear)
        if not self._queue:
            self._accept()
        return True

    def _accept(self) -> None:
        """The database has taken a write."""
        if self.last_error is not None:
            logger.warning("the database can be written again")
        self.last_error = self._refused_since = None

    def _refuse(self, exc: sqlite3.Error) -> None:
        """The database has not taken a write; another program's lock is trouble only when it lasts."""
        now = time.monotonic()
        self._retry_at = now + _RETRY_SECONDS
        self._refused_since = self._refused_since or now
        if _is_lock(exc) and now - self._refused_since < _LOCK_SECONDS:
            return
        if self.last_error is None:
            logger.error("the database cannot be written (%s); chats go on, what they say is spilled", exc)
        self.last_error = str(exc)

    async def _spill_queue(self) -> None:
        """Put what must not be lost beside the database."""
        batch = self._next_batch()
        while batch:
            lines = [self._line(write) for write in batch]
            try:
                await asyncio.to_thread(self._spill.append, [line for line in lines if line])
            except OSError as exc:
                if len(batch) == 1:
                    self._cannot_spill(exc)
                    return
                batch = batch[: len(batch) // 2]  # perhaps there is room for some
                continue
            self._spill_fails = False
            kept = self._take_spilled(batch, lines)
            batch = [] if kept else self._next_batch()

    def _line(self, write: Write[Any]) -> bytes:
        """What stands for a write on the spill file; nothing for one that cannot be spilled."""
        if write.spilled is None:
            return b""
        try:
            return write.spilled()
        except Exception as exc:  # noqa: BLE001 - one write must not stop the others
            self._settle(write, exc)
            return b""

    def _take_spilled(self, batch: list[Write[Any]], lines: list[bytes]) -> int:
        """Take what is on the spill file off the queue. The rest is refused, whose callers can try again, or waits:
        how many."""
        waits = self.last_error is None and not self._is_closing
        self._take_off(len(batch))
        kept = []
        for write, line in zip(batch, lines, strict=True):
            if write.spilled is None and waits and not write.done.done():
                kept.append(write)
            elif not write.done.done():
                if line:
                    write.done.set_result(True)
                else:
                    write.done.set_exception(UnavailableError())
        self._queue.extendleft(reversed(kept))
        self._queued_bytes += sum(write.size for write in kept)
        return len(kept)

    def _cannot_spill(self, exc: OSError) -> None:
        if not self._spill_fails:
            logger.error("the spill file cannot be written either (%s): writes wait in memory", exc.strerror)
        self._spill_fails = True
        if self._is_closing:
            self._abandon()

    def _give_up(self, write: Write[Any]) -> None:
        if write.done.done():
            return
        if write.spilled is None:
            write.done.set_exception(UnavailableError())
            return
        self.unsaved += 1
        logger.error("the end of a reply is sent though it is not on disk yet: %s", self.last_error)
        write.done.set_result(False)

    def _abandon(self) -> None:
        logger.critical("%d writes are lost: neither the database nor the spill file takes them", len(self._queue))
        while self._queue:
            write = self._queue[0]
            self._give_up(write)
            self._take_off(1)


def _apply(connection: sqlite3.Connection, batch: Sequence[Write[Any]]) -> list[Any]:
    """The results of a batch, committed; an exception stands for the write that raised it."""
    try:
        with write_batch(connection) as rows:
            return [write.work(rows) for write in batch]
    except Exception as exc:  # one write cannot be done: find it, and do the others
        if is_trouble(exc):
            raise
        with transaction(connection):
            return [_apply_one(connection, write.work) for write in batch]


def _apply_one(connection: sqlite3.Connection, work: Callable[[WriteBatch], Any]) -> Any:
    connection.execute("SAVEPOINT one_write")
    try:
        rows = WriteBatch(connection)
        result = work(rows)
        rows.flush()
    except Exception as exc:  # handed to the one who asked for it
        if is_trouble(exc) or not connection.in_transaction:
            raise
        connection.execute("ROLLBACK TO one_write")
        result = exc
    connection.execute("RELEASE one_write")
    return result


def replay_lines(
    connection: sqlite3.Connection, *, lines: Sequence[bytes], replay: Callable[[WriteBatch, bytes], None]
) -> None:
    """Do what spilled lines stand for, in one transaction; one that cannot be done is logged and left out."""
    with transaction(connection):
        for line in lines:
            result = _apply_one(connection, partial(_replay, line=line, replay=replay))
            if isinstance(result, BaseException):
                logger.error("a spilled write cannot be replayed and is lost: %r", result)


def _replay(rows: WriteBatch, *, line: bytes, replay: Callable[[WriteBatch, bytes], None]) -> None:
    replay(rows, line)


def is_trouble(exc: BaseException) -> bool:
    """Whether the error is the database's and passes, not that of what was asked of it."""
    return isinstance(exc, sqlite3.Error) and getattr(exc, "sqlite_errorcode", -1) & 0xFF in _TROUBLE


def _is_lock(exc: sqlite3.Error) -> bool:
    return getattr(exc, "sqlite_errorcode", -1) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _probe(connection: sqlite3.Connection) -> None:
    """Write a page without changing it: an empty transaction would not notice a full disk."""
    with transaction(connection):
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        connection.execute(f"PRAGMA user_version = {version}")
