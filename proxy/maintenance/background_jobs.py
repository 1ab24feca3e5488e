"""Runs the server's background jobs: search indexing, backups, retention, removal of old deletion records.

Each job has its own thread, and only one of all workers runs the jobs. Changes to the database go through the writer,
in the same transactions as current chats. Jobs have low priority: while chats are streaming, indexing pauses or slows
down.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from datetime import timedelta
from functools import partial
from typing import TypeVar

from proxy.maintenance import backup, prune
from proxy.maintenance.indexing import Indexing
from proxy.maintenance.job import Job, Lease, Stop, StoppedError, jobs_lock_path
from proxy.maintenance.steady_clock import SteadyClock
from proxy.recording.recorder import Recorder
from proxy.settings import Settings
from proxy.storage import idempotency, tombstones
from proxy.storage.connection import Connection

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Between two runs of the index. It may lag, because a search scans the messages that are not indexed yet.
_PASS_SECONDS = 1.0
_HOUR = 3600.0
# Shutdown does not wait for the check of a large backup, which takes minutes.
_LAST_STEP_SECONDS = 5.0
# Short chats are rarely observed in progress, so this commit rate also counts as high load.
_MANY_COMMITS = 50
# A job waits this long for the writer, far longer than a chat does: it can wait while the database is locked.
_WRITE_SECONDS = 60.0
# Between two transactions of retention, so that the writer can store chats.
_PRUNE_PAUSE_SECONDS = 0.03
# Between two steps of a backup, so that others can use the disk.
_BACKUP_PAUSE_SECONDS = 0.005


class Upkeep:
    """The jobs. Call `start` and `stop` on the recorder's event loop."""

    def __init__(self, settings: Settings, recorder: Recorder) -> None:
        self._settings = settings
        self._recorder = recorder
        self._stop = Stop()
        self._loop = asyncio.get_running_loop()
        database = settings.database_path
        self._lease = Lease(jobs_lock_path(database))
        self._load = _Load(recorder)
        self._indexing = Indexing(database, is_busy=self._load.is_high, stop=self._stop)
        self.jobs = tuple(
            Job(name, work, every_seconds=every, lease=self._lease, stop=self._stop, at_end=at_end)
            for name, work, every, at_end in self._plan()
        )
        self._clock = SteadyClock()

    def start(self) -> None:
        for job in self.jobs:
            job.start()

    async def stop(self) -> None:
        """Stops after the current step; the check of a large backup is aborted instead."""
        self._stop.set()
        deadline = time.monotonic() + _LAST_STEP_SECONDS
        while running := [job.name for job in self.jobs if job.is_running]:
            if time.monotonic() >= deadline:
                logger.warning("these jobs were aborted: %s", ", ".join(running))
                return
            await asyncio.sleep(0.005)
        self._lease.release()

    def _plan(self) -> Iterator[tuple[str, Callable[[], None], float, Callable[[], None] | None]]:
        """Each enabled job: name, function, interval, and a function for the end of its thread."""
        settings = self._settings
        yield "forget-deletions", self._forget, _HOUR, None
        if settings.search_index and not settings.is_postgresql:
            yield "search-index", self._indexing.work, _PASS_SECONDS, self._indexing.close
        if settings.backup_every_seconds and not settings.is_postgresql:
            yield "backup", self._back_up, _PASS_SECONDS, None
        if settings.retention_days:
            yield "retention", self._prune, _HOUR, None

    def _back_up(self) -> None:
        every, database = self._settings.backup_every_seconds, self._settings.database_path
        folder = database.parent / "backups"
        copies = backup.copies_in(folder)
        ages = [time.time() - copy.stat().st_mtime for copy in copies]
        if any(0 <= age < every for age in ages):  # backups with a future date were made while the clock was ahead
            return
        made = backup.back_up_into(folder, database, keep=self._settings.backup_keep, progress=self._pause)
        logger.info("backup %s was created and checked", made)

    def _pause(self, _done: int, _total: int) -> None:
        self._stop.rest(_BACKUP_PAUSE_SECONDS)

    def _forget(self) -> None:
        while self._write(partial(tombstones.forget_some, now_seconds=time.time())):
            self._rest()
        self._write(partial(idempotency.forget_old, now_seconds=time.time()))

    def _prune(self) -> None:
        if not self._clock.is_steady():
            logger.info(
                "retention waits an hour for its next run: the clock has not been checked before, or it was changed"
            )
            return
        age = timedelta(days=self._settings.retention_days)
        before = prune.moment_before(age, now_seconds=time.time())
        pruned = prune.Pruned()
        while some := self._write(partial(prune.prune_some, before=before)):
            pruned += some
            self._rest()
        while self._write(prune.give_back_some):
            self._rest()
        if pruned:
            logger.info("retention deleted %d sessions, %d messages", pruned.sessions, pruned.messages)

    def _rest(self) -> None:
        self._stop.rest(_PRUNE_PAUSE_SECONDS)

    def _write(self, work: Callable[[Connection], T]) -> T:
        """Makes a change through the writer and waits for it."""
        if self._stop.is_set:
            raise StoppedError
        made: Future[T] = Future()
        self._loop.call_soon_threadsafe(self._submit, work, made)
        deadline = time.monotonic() + _WRITE_SECONDS
        while not made.done():
            if self._stop.is_set:
                raise StoppedError
            if time.monotonic() >= deadline:
                raise TimeoutError("the writer took too long")
            wait([made], timeout=0.2)
        return made.result()

    def _submit(self, work: Callable[[Connection], T], made: "Future[T]") -> None:
        def settle(done: "asyncio.Future[T]") -> None:
            if done.cancelled():
                made.cancel()
            elif exc := done.exception():
                made.set_exception(exc)
            else:
                made.set_result(done.result())

        try:
            self._recorder.writer.submit(lambda rows: work(rows.connection)).add_done_callback(settle)
        except Exception as exc:  # noqa: BLE001 - returned to the job
            made.set_exception(exc)


class _Load:
    """Measures whether chats keep the server busy."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._counted_at = 0.0
        self._commits = 0  # at the time of the last measurement
        self._commits_are_many = False

    def is_high(self) -> bool:
        """Whether the load is high."""
        now = time.monotonic()
        passed = now - self._counted_at
        if passed >= _PASS_SECONDS / 2:
            before, self._commits = self._commits, self._recorder.writer.commits
            self._commits_are_many = self._commits - before > _MANY_COMMITS * passed
            self._counted_at = now
        return self._commits_are_many or self._recorder.live_count > 0
