"""Schedules searches and other long work fairly: one per user, few in total, in dedicated threads."""

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from proxy.errors import APIError
from proxy.search.deadline import Deadline

T = TypeVar("T")

SEARCH_SECONDS = 10.0
_AT_ONCE = 2
_WAITING_MAX = 64
_OF_USER_MAX = 4  # running or waiting
_WAIT_SECONDS = 30.0


class BusyError(APIError):
    """The limit of waiting calls, per user or in total, is reached."""

    def __init__(self, name: str) -> None:
        super().__init__(f"Too many {name} requests at once; try again in a moment.", status=429, code=f"{name}_busy")


class Turns:
    """Fair scheduling: a user's calls wait for each other, and only one of them stands in the common queue."""

    def __init__(self, name: str = "search", *, seconds: float = SEARCH_SECONDS) -> None:
        self._name = name
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix=name)
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._of_user: dict[str, asyncio.Lock] = {}
        self._counts: Counter[str] = Counter()
        self._running: set[Deadline] = set()

    async def run(self, user_id: str, work: Callable[[Deadline], T]) -> T:
        """Runs `work` in a thread when it is this user's turn. Raises BusyError, and whatever `work` raises."""
        if self._counts[user_id] >= _OF_USER_MAX or self._counts.total() >= _WAITING_MAX:
            raise BusyError(self._name)
        self._counts[user_id] += 1
        lock = self._of_user.setdefault(user_id, asyncio.Lock())
        try:
            try:
                async with asyncio.timeout(_WAIT_SECONDS):
                    await lock.acquire()
            except TimeoutError as exc:
                raise BusyError(self._name) from exc
            try:
                return await self._run(work)
            finally:
                lock.release()
        finally:
            self._counts[user_id] -= 1
            if not self._counts[user_id]:
                del self._counts[user_id], self._of_user[user_id]

    def close(self) -> None:
        """Ends running work at its next check."""
        for deadline in self._running:
            deadline.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[Deadline], T]) -> T:
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                await self._places.acquire()
        except TimeoutError as exc:
            raise BusyError(self._name) from exc
        deadline = Deadline(self._seconds)
        self._running.add(deadline)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, deadline)
        finally:
            deadline.cancel()  # if the request was cancelled, this frees the thread at its next check
            self._running.discard(deadline)
            self._places.release()
