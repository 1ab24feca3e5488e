"""A background job: its work again and again in a thread of its own, until it is told to stop, whatever is raised."""

import fcntl
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

RETRY_SECONDS = 15.0


class StoppedError(Exception):
    """The server ends: leave the work where it is."""


class Stop:
    """Tells the jobs that the server ends."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def is_set(self) -> bool:
        """Whether it does."""
        return self._event.is_set()

    def set(self) -> None:
        """Say so."""
        self._event.set()

    def rest(self, seconds: float) -> None:
        """Wait. Raises StoppedError."""
        if self._event.wait(seconds):
            raise StoppedError


def jobs_lock_path(database: Path) -> Path:
    """The file whose lock the worker has that does the jobs of a database."""
    return database.with_name(database.name + "-jobs-lock")


def is_leased(path: Path) -> bool:
    """Whether a living process has the lock."""
    if not path.exists():
        return False
    lease = Lease(path)
    try:
        return not lease.is_ours()
    finally:
        lease.release()


class Lease:
    """Of all workers on a database one does the background jobs: the one that has the lock of this file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file: int | None = None

    def is_ours(self) -> bool:
        """Whether this process does the jobs; it begins to when nobody else does. Raises OSError."""
        with self._lock:
            if self._file is None:
                self._file = self._take()
            return self._file is not None

    def release(self) -> None:
        """Leave the jobs to others."""
        with self._lock:
            file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _take(self) -> int | None:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        except BaseException:
            os.close(file)
            raise
        return file


class Job:
    """One job. What it raises is logged and ends nothing: it is tried again later, and no other job notices."""

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
        """Begin."""
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether the thread has not ended yet."""
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
            except Exception as exc:  # noqa: BLE001 - it must live: nobody else would ever do this job
                logger.warning("the job %s was interrupted and goes on in a moment: %r", self.name, exc)
                seconds = RETRY_SECONDS
