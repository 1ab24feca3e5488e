"""Group commit: one queue of writes, one task, one transaction for all writes that are waiting.

A finished write is on disk: in the database (`synchronous=FULL`), or in the synced spill file (`overflow`), from which
it is replayed when the database accepts writes again.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from proxy.recording.overflow import Overflow
from proxy.recording.spill import Spill
from proxy.recording.transactions import Work, commit, replay_lines
from proxy.recording.write_queue import QueueFullError, Write, WriteQueue
from proxy.settings import ConfigurationError
from proxy.storage.connection import Connection
from proxy.storage.database import Database
from proxy.storage.errors import StorageError, is_lock, is_trouble, is_unknown
from proxy.storage.file_identity import MovedError
from proxy.storage.write_batch import UNFINISHED, WriteBatch

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Writes per transaction. A commit with synchronous=FULL takes about 4 ms whatever its size (measured), so storing many
# chats per commit makes strict durability almost free.
_BATCH_LIMIT = 256
# Gathers chats that end together: a commit costs about as much as storing one of them.
_GROUP_SECONDS = 0.004
# For so long at most, tokens of other streams pass between two of the chats that a commit frees: freed at once, their
# ends and the callers' next requests kept first tokens waiting (200 streams, p99: 53 ms, and 11 with the pauses).
_SPREAD_SECONDS = 0.05
# How long the writer waits for another program's lock before spilling; short, so that streams keep being saved.
_LOCK_TIMEOUT_MS = 300
# A lock or a silent disk is reported as an error after this time; until then writes are only spilled.
_TROUBLE_SECONDS = 2.0
# While the database fails, one probe in this time; meanwhile every write is spilled at once.
_RETRY_SECONDS = 0.5
_STALLED_SECONDS = 1.0  # how long closing waits for a disk that has stopped answering
# How often an idle writer checks that the database's files still exist.
_LOOK_SECONDS = 1.0
# This many rejected exchanges in a row mean that the database is at fault, not the exchanges.
_REFUSED_IN_A_ROW = 3


class Writer:
    """The only writer of the database. `submit` never waits; its future is done when the write is on disk."""

    def __init__(
        self,
        database: Database,
        spill: Spill,
        *,
        replay: Callable[[bytes], Work],
        dead_letters_path: Path,
        queue_limit: int,
        queue_limit_bytes: int,
        commit_timeout_seconds: float,
    ) -> None:
        self._database = database
        self._replay = replay
        self._queue = WriteQueue(limit=queue_limit, limit_bytes=queue_limit_bytes)
        self._commit_timeout_seconds = commit_timeout_seconds
        self.overflow = Overflow(
            self._queue,
            spill,
            dead_letters_path=dead_letters_path,
            commit_timeout_seconds=commit_timeout_seconds,
            is_bridging=lambda: self._refused_since is not None or self._is_stalled(self.overflow.spill_seconds),
            refuses_callers=lambda: self._is_refusing,
        )
        self._wanted = asyncio.Event()
        self._is_closing = False
        self._is_closed = False
        self._task: asyncio.Task[None] | None = None
        self._spilling: asyncio.Task[None] | None = None
        self._started_at: float | None = None  # when the current database call started
        self._refused_since: float | None = None
        self._refused_in_a_row: set[object] = set()
        self._has_recovered = False
        self._retry_at = 0.0
        self._error: str | None = None
        self.commits = 0
        self.commit_seconds = 0.0

    @property
    def last_error(self) -> str | None:
        """Why writes do not reach the disk at the moment, else None."""
        if self._error is None and self._is_stalled(_TROUBLE_SECONDS):
            return "the database's disk does not answer"
        return self._error or self.overflow.trouble

    @property
    def unsaved(self) -> Counter[str]:
        """Writes that were lost, or not on disk when the end of their reply was sent, by reason."""
        return self.overflow.unsaved

    @property
    def waiting(self) -> int:
        """The number of writes not in the database yet, including spilled ones."""
        return len(self._queue) + self.overflow.only_on_file

    @property
    def spilled(self) -> int:
        """The number of writes in the spill file."""
        return self.overflow.count

    @property
    def queued_bytes(self) -> int:
        """The size of the in-memory queue."""
        return self._queue.size

    @property
    def oldest_seconds(self) -> float:
        """The age of the oldest queued write."""
        oldest_at = self._queue.oldest_at
        return 0.0 if oldest_at is None else time.monotonic() - oldest_at

    def has_recovered(self) -> bool:
        """Whether the database accepts writes again after an outage; True once per outage."""
        has_recovered, self._has_recovered = self._has_recovered, False
        return has_recovered

    async def start(self) -> None:
        """Starts the writer's tasks."""
        await self._set_lock_timeout()
        self._task = asyncio.create_task(self._run(), name="writer")
        self._spilling = asyncio.create_task(self.overflow.run(), name="spill")

    async def _set_lock_timeout(self) -> None:
        timeout_ms = min(_LOCK_TIMEOUT_MS, round(self._commit_timeout_seconds * 500))
        await self._database.wait_for_locks(milliseconds=timeout_ms)

    def submit(
        self,
        work: Callable[[WriteBatch], T],
        *,
        size: int = 0,
        spilled: Callable[[], bytes] | None = None,
        about: str | None = None,
    ) -> asyncio.Future[T]:
        """Queues a change. Raises QueueFullError.

        The future raises what `work` raises, or UnavailableError if the database fails; for a write with a spill line
        it is done when that is on disk. `about` is its exchange.
        """
        if self._is_closed:
            raise QueueFullError
        write = Write(work, asyncio.get_running_loop().create_future(), size, spilled, about=about)
        self._queue.append(write)
        self._wanted.set()
        self.overflow.notice_write()
        return write.done

    def has_room(self, size: int) -> bool:
        """Whether another write of this size fits into the queue."""
        return self._queue.has_room(size) and not self._is_closed

    async def on_disk(self) -> None:
        """Waits until the writes queued now are on disk, but no longer than a chat would wait."""
        newest = self._queue.newest
        if newest is not None:
            await asyncio.wait([newest.done], timeout=self._commit_timeout_seconds)

    async def flushed(self) -> None:
        """Waits until the writes queued now can be read; while the database fails, only until they are on disk."""
        queued = frozenset(self._queue)
        await self.on_disk()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._commit_timeout_seconds):
                while self._is_behind(queued):  # noqa: ASYNC110 - rare: only if a commit was slower than the spill
                    await asyncio.sleep(_GROUP_SECONDS)

    def _is_behind(self, writes: Collection[Write[Any]]) -> bool:
        """Whether some of these writes are only in the spill file, and will soon be in the database.

        All are checked, not only the newest: a long write is stored in slices, after later ones.
        """
        if self._refused_since is not None or self._is_stalled(_TROUBLE_SECONDS) or self._is_closed:
            return False
        return self.overflow.only_on_file > 0 or any(write.is_spilled for write in self._queue if write in writes)

    async def close(self) -> None:
        """Writes or spills the queue, then stops. Does not wait for a disk that has stopped answering."""
        if self._is_closed:
            return
        self._is_closing = True
        self._wanted.set()
        if self._task is not None:
            stalled = self._is_stalled(self.overflow.spill_seconds)
            await asyncio.wait([self._task], timeout=_STALLED_SECONDS if stalled else self._commit_timeout_seconds)
            await _cancel(self._task)
        if self._spilling is not None:
            self.overflow.stop()  # a task cancelled during an append would spill the same lines again
            stalled = self.overflow.trouble is not None
            await asyncio.wait([self._spilling], timeout=_STALLED_SECONDS if stalled else self._commit_timeout_seconds)
            await _cancel(self._spilling)
        self._is_closed = True
        await self.overflow.close(seconds=self._commit_timeout_seconds)
        if self.overflow.count:
            logger.warning("%d writes are in the spill file; the next start stores them", self.overflow.count)

    # The task

    async def _run(self) -> None:
        while not self._is_closing or len(self._queue) or self.overflow.count:
            try:
                await self._turn()
            except Exception:  # must survive: without the writer every chat would wait at its end
                logger.exception("the writer failed and continues")
                self._queue.put_back()
                await asyncio.sleep(_RETRY_SECONDS)
            if self._is_closing and self._refused_since is not None:
                return  # the rest is spilled
            await asyncio.sleep(0)  # always yield once, so that other tasks run

    async def _turn(self) -> None:
        try:
            if self._refused_since is not None:
                await self._wait(max(0.0, self._retry_at - time.monotonic()))
                await self._try_again()
            if self.overflow.only_on_file:
                await self._replay_spill()
            if self._has_stored_spill:
                await self.overflow.clear()
            if not self.overflow.only_on_file:  # otherwise writes spilled meanwhile must be stored first
                await self._write_batch()
        except (MovedError, ConfigurationError, OSError) as exc:
            self._refuse(exc)
        except StorageError as exc:
            if not is_trouble(exc):
                raise
            self._refuse(exc)

    async def _try_again(self) -> None:
        if self._database.files.is_another:
            await self._database.reopen()
            await self._set_lock_timeout()
            logger.warning("the database file was replaced; the new one is used from now on")
        await self._in_database(self._database.probe)

    async def _wait(self, seconds: float) -> None:
        if self._is_closing:
            return
        self._wanted.clear()
        await asyncio.sleep(seconds)

    async def _wait_for_writes(self) -> None:
        self._wanted.clear()
        if self._is_closing or len(self._queue):
            return
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                await self._wanted.wait()
        except TimeoutError:
            await self._in_database(lambda _connection: None)  # this checks the files

    async def _in_database(self, work: Callable[[Connection], T]) -> T:
        self._started_at = time.monotonic()
        try:
            return await self._database.write(self._database.files.guard(work))
        finally:
            self._started_at = None

    async def _write_batch(self) -> None:
        batch = self._queue.take(_BATCH_LIMIT)
        if not batch:
            if not self._refuses_all:
                self._accept()
            await self._wait_for_writes()
            return
        started = time.monotonic()
        results = await self._in_database(lambda connection: commit(connection, [write.work for write in batch]))
        self.commits += 1
        self.commit_seconds += time.monotonic() - started
        settled = self._queue.settle(len(results))
        pairs = list(zip(settled, results, strict=True))
        self._queue.put_back(unfinished=[write for write, result in pairs if result is UNFINISHED])
        spread_until = time.monotonic() + _SPREAD_SECONDS
        for write, result in pairs:
            if result is not UNFINISHED:
                self._settle(write, result)
                if time.monotonic() < spread_until:
                    await asyncio.sleep(0)
        if not self._refuses_all:
            self._accept()
        if len(batch) > 1 and not self._is_closing:
            await asyncio.sleep(_GROUP_SECONDS)

    def _settle(self, write: Write[Any], result: Any) -> None:
        if write.line is not None and isinstance(result, BaseException):
            if not self._refuses_all:
                self._refused_in_a_row.add(write.about or write)
            if self._refuses_all and self._error is None:
                self._error = f"the database rejects the writes: {result}"
            self.overflow.refuse(write, result)
            return
        if write.line is not None and result is False:
            self.unsaved["deleted"] += 1  # deleted while it was streaming or queued
        if result:
            self._has_recovered |= self._refuses_all
            self._refused_in_a_row.clear()
        if write.done.done():
            return
        if isinstance(result, BaseException):
            write.done.set_exception(result)
        else:
            write.done.set_result(result)

    # The spill file

    async def _replay_spill(self) -> None:
        """Replays the writes that are only in the spill file."""
        self.overflow.forget_copies()
        count, offset, end = self.overflow.only_on_file, 0, self.overflow.marked_end
        while offset < end:
            lines, offset = await self.overflow.lines(offset, end)
            refused = await self._in_database(partial(replay_lines, lines=lines, replay=self._replay))
            for line, exc in refused:
                self.overflow.refuse_line(line, exc)
        self.overflow.only_on_file -= count
        logger.warning("%d spilled writes are in the database now", count)

    @property
    def _has_stored_spill(self) -> bool:
        """Whether all lines of the spill file are in the database; lines may be added while others are replayed."""
        overflow = self.overflow
        return bool(overflow.count) and not overflow.only_on_file and not any(each.is_spilled for each in self._queue)

    # The database's state

    def _is_stalled(self, seconds: float) -> bool:
        return self._started_at is not None and time.monotonic() - self._started_at > seconds

    @property
    def _refuses_all(self) -> bool:
        return len(self._refused_in_a_row) >= _REFUSED_IN_A_ROW

    @property
    def _is_refusing(self) -> bool:
        return self._refused_since is not None and self._error is not None

    def _accept(self) -> None:
        """Called when the database has accepted a write."""
        if self._error is not None:
            logger.warning("the database can be written again")
        self._error = self._refused_since = None

    def _refuse(self, exc: Exception) -> None:
        """Called when the database has failed a write.

        Another program's lock counts as an error only if it persists.
        """
        now = time.monotonic()
        self._retry_at = now + _RETRY_SECONDS
        self._refused_since = self._refused_since or now
        if is_unknown(exc) or isinstance(exc, MovedError):  # a moved file may be moved back
            self._check_before_retry()
        self._queue.put_back()
        if not is_lock(exc) or now - self._refused_since >= _TROUBLE_SECONDS:
            if self._error is None:
                logger.error("the database cannot be written (%s); chats continue and are spilled to a file", exc)
            self._error = str(exc)
        self.overflow.wake()

    def _check_before_retry(self) -> None:
        """Makes the writes in flight replay their spill lines: they may be stored already, and a replay checks that
        first."""
        for write in self._queue.in_flight:
            if write.line is not None:
                write.work = _made_of_line(write.line, self._replay)
            else:
                self.overflow.withdraw(write)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _made_of_line(line: Callable[[], bytes], replay: Callable[[bytes], Work]) -> Work:
    """Replays a write's line. The line is serialized in the writer's thread."""
    work: Work | None = None

    def replayed(rows: WriteBatch) -> Any:
        nonlocal work
        work = work or replay(line())
        return work(rows)

    return replayed
