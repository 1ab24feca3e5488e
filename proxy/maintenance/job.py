"""A background job: a function repeated in its own thread; and the lock that elects the process that runs the jobs."""

import fcntl
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from proxy.storage.shared_files import lock_file

logger = logging.getLogger(__name__)

# After an exception, which is logged, or while another process runs the jobs and may end.
RETRY_SECONDS = 15.0


class StoppedError(Exception):
    """The server is stopping, so the work is abandoned."""


class Stop:
    """The stop signal for all jobs."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def is_set(self) -> bool:
        """Whether the server is stopping."""
        return self._event.is_set()

    def set(self) -> None:
        self._event.set()

    def rest(self, seconds: float) -> None:
        """Waits. Raises StoppedError."""
        if self._event.wait(seconds):
            raise StoppedError


def jobs_lock_path(database: Path) -> Path:
    """The lock file of the worker that runs a database's jobs."""
    return database.with_name(database.name + "-jobs-lock")


def is_leased(path: Path) -> bool:
    """Whether a living process holds the lock."""
    if not path.exists():
        return False
    lease = Lease(path)
    try:
        return not lease.is_ours()
    finally:
        lease.release()


class Lease:
    """Elects the worker that runs the jobs: the one that holds this file's lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file: int | None = None

    def is_ours(self) -> bool:
        """Whether this process runs the jobs; takes over if no other process does. Raises OSError."""
        with self._lock:
            if self._file is None:
                self._file = lock_file(self._path, fcntl.LOCK_EX)
            return self._file is not None

    def release(self) -> None:
        """Releases the lock to other workers."""
        with self._lock:
            file, self._file = self._file, None
        if file is not None:
            os.close(file)


class Job:
    """One job. Exceptions are logged, and the job is retried later; other jobs are not affected."""

    def __init__(
        self,
        name: str,
        work: Callable[[], None],
        *,
        every_seconds: float,
        lease: Lease,
        stop: Stop,
        at_end: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.work = work
        self._at_end = at_end
        self._every_seconds = every_seconds
        self._lease = lease
        self._stop = stop
        self._thread = threading.Thread(target=self._run, name=f"job-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether the thread is still running."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._repeat()
        finally:
            if self._at_end is not None:
                self._at_end()

    def _repeat(self) -> None:
        seconds = min(1.0, self._every_seconds)
        while True:
            try:
                self._stop.rest(seconds)
                if self._lease.is_ours():
                    self.work()
                    seconds = self._every_seconds
                else:
                    seconds = RETRY_SECONDS
            except StoppedError:
                return
            except Exception as exc:  # noqa: BLE001 - must survive: nothing else would run this job
                logger.warning("the job %s failed and will be retried: %r", self.name, exc)
                seconds = RETRY_SECONDS
