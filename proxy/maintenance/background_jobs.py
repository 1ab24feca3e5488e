"""What a server does beside chats: fills the search index, makes scheduled backups, deletes what is too old.

Of all workers one does it, in a thread of its own; what it changes in the database goes through the writer, in the same
transactions as the chats of that moment. It gives way: while chats stream, the index waits or is filled slowly.
"""

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from proxy.errors import APIError
from proxy.maintenance import backup, prune
from proxy.recording.recorder import Recorder
from proxy.search.index import Index
from proxy.settings import ConfigurationError, Settings
from proxy.storage import tombstones

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PASS_SECONDS = 1.0
_CANDIDATE_SECONDS = 15.0
_LAST_STEP_SECONDS = 5.0
_HOUR = 3600.0
# Up to this many messages a search looks through as they are; they can wait until there is little to do.
_BACKLOG = 20_000
# Short chats are seldom seen while they last: so many commits a second are much to do as well.
_MANY_COMMITS = 50
_WRITE_SECONDS = 60.0
# Of the time it works, how long it rests: after a step of the index while chats stream, and after each deletion.
_REST_BUSY = 4.0
_REST_IDLE = 0.25
_PRUNE_PAUSE_SECONDS = 0.03
_BACKUP_PAUSE_SECONDS = 0.005


class _StoppedError(Exception):
    """The server ends."""


class Upkeep:
    """The thread. `start` and `stop` are called on the event loop that the recorder runs on."""

    def __init__(self, settings: Settings, recorder: Recorder) -> None:
        self._settings = settings
        self._recorder = recorder
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._loop = asyncio.get_running_loop()
        self._pruned_at = self._cleaned_at = 0.0
        self._counted_at = 0.0
        self._commits = 0  # at that moment
        self._commits_are_many = False

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    async def stop(self) -> None:
        """End after the step that is being done, if that is not the check of a large backup, which is left undone."""
        self._stopping.set()
        await asyncio.to_thread(self._thread.join, _LAST_STEP_SECONDS)
        if self._thread.is_alive():
            logger.warning("a backup that was being checked is given up")

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                index = Index(self._settings.database_path)
            except (BlockingIOError, OSError, sqlite3.Error, ConfigurationError):
                # Another worker does it, or the database is in trouble, which the writer says.
                self._stopping.wait(_CANDIDATE_SECONDS)
                continue
            self._cleaned_at = time.monotonic()  # opened, it is clean
            try:
                self._keep(index)
            finally:
                index.close()

    def _keep(self, index: Index) -> None:
        while not self._stopping.wait(_PASS_SECONDS):
            try:
                self._fill(index)
                self._back_up()
                if self._is_due("_pruned_at"):
                    self._forget()
                    self._prune()
                if self._is_due("_cleaned_at"):
                    index.clean()
            except _StoppedError:
                return
            except (sqlite3.Error, OSError, ConfigurationError, APIError, TimeoutError) as exc:
                logger.warning("upkeep was interrupted and goes on in a moment: %s", exc)
                self._stopping.wait(_CANDIDATE_SECONDS)

    def _is_due(self, name: str) -> bool:
        now = time.monotonic()
        is_due: bool = not getattr(self, name) or now - getattr(self, name) >= _HOUR
        if is_due:
            setattr(self, name, now)
        return is_due

    def _fill(self, index: Index) -> None:
        while not self._stopping.is_set():
            if not self._settings.search_index:
                return
            is_busy = self._is_busy()
            if is_busy and index.backlog() <= _BACKLOG:
                return
            started = time.monotonic()
            if not index.step():
                return
            took = time.monotonic() - started
            self._stopping.wait(took * (_REST_BUSY if is_busy else _REST_IDLE))

    def _is_busy(self) -> bool:
        now = time.monotonic()
        passed = now - self._counted_at
        if passed >= _PASS_SECONDS / 2:
            before, self._commits = self._commits, self._recorder.writer.commits
            self._commits_are_many = self._commits - before > _MANY_COMMITS * passed
            self._counted_at = now
        return self._commits_are_many or self._recorder.live_count > 0

    def _back_up(self) -> None:
        every, database = self._settings.backup_every_seconds, self._settings.database_path
        if not every:
            return
        folder = database.parent / "backups"
        copies = backup.copies_in(folder)
        if copies and time.time() - copies[-1].stat().st_mtime < every:
            return
        made = backup.back_up_into(folder, database, keep=self._settings.backup_keep, progress=self._pause)
        logger.info("backup %s is made and checked", made)

    def _pause(self, _done: int, _total: int) -> None:
        if self._stopping.wait(_BACKUP_PAUSE_SECONDS):
            raise _StoppedError

    def _forget(self) -> None:
        while self._write(partial(tombstones.forget_some, now_seconds=time.time())):
            self._rest()

    def _prune(self) -> None:
        if not self._settings.retention_days:
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
        if self._stopping.wait(_PRUNE_PAUSE_SECONDS):
            raise _StoppedError

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Make a change through the writer, and wait for it."""
        waiting = asyncio.run_coroutine_threadsafe(self._submitted(work), self._loop)
        try:
            deadline = time.monotonic() + _WRITE_SECONDS
            while not self._stopping.is_set() and time.monotonic() < deadline:
                with suppress(TimeoutError):
                    return waiting.result(0.2)
        finally:
            waiting.cancel()
        raise _StoppedError if self._stopping.is_set() else TimeoutError("the writer took too long")

    def _submitted(self, work: Callable[[sqlite3.Connection], T]) -> Coroutine[Any, Any, T]:
        async def wait() -> T:
            return await self._recorder.writer.submit(lambda rows: work(rows.connection))

        return wait()
