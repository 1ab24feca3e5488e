"""A daemon thread that runs functions in order, for work that must not depend on a shared thread pool.

The spill uses it instead of the default executor, which exports or searches may occupy. It is a daemon, so that a disk
that hangs in `fsync` does not block process exit.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]


class OwnThread:
    """Runs functions one after another. The thread starts with the first call."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._name = name
        self._thread: threading.Thread | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """Runs `work` and returns or raises its result. Cancelling the caller does not stop the work."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.put((loop, done, work))
        return await done

    def stop(self) -> None:
        """Ends the thread after the queued work. Does not wait: the disk may never answer."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, done, work = job
            try:
                result = work()
            except Exception as exc:  # noqa: BLE001 - re-raised in the caller of `run`
                _tell(loop, done, partial(done.set_exception, exc))
            else:
                _tell(loop, done, partial(done.set_result, result))


def _tell(loop: asyncio.AbstractEventLoop, done: "asyncio.Future[Any]", how: Callable[[], None]) -> None:
    def tell() -> None:
        if not done.done():
            how()

    with suppress(RuntimeError):  # the event loop is closed; nobody awaits the result
        loop.call_soon_threadsafe(tell)
