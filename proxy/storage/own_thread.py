"""One daemon thread that runs functions in order: work that must not wait for anybody else's threads.

The spill runs here and not in the default executor, which exports or searches may fill. A daemon, since a disk that
stalls inside `fsync` must not keep the process from ending.
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
    """Runs what it is given, one after another. It starts with the first function."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._name = name
        self._thread: threading.Thread | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises. Whoever is cancelled while waiting does not stop the work."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.put((loop, done, work))
        return await done

    def stop(self) -> None:
        """End after what has been asked for. Nobody waits for that: it may be a disk that never answers."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, done, work = job
            try:
                result = work()
            except Exception as exc:  # noqa: BLE001 - it is raised where the work was asked for
                _tell(loop, done, partial(done.set_exception, exc))
            else:
                _tell(loop, done, partial(done.set_result, result))


def _tell(loop: asyncio.AbstractEventLoop, done: "asyncio.Future[Any]", how: Callable[[], None]) -> None:
    def tell() -> None:
        if not done.done():
            how()

    with suppress(RuntimeError):  # the event loop has ended: nobody waits
        loop.call_soon_threadsafe(tell)
