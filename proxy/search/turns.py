"""Whose long work runs now: one of a user's at a time and few in all, in threads that nothing else uses."""

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
_OF_USER_MAX = 4  # running and waiting
_WAIT_SECONDS = 30.0


class BusyError(APIError):
    """As many of these wait as may."""

    def __init__(self, name: str) -> None:
        super().__init__(f"Too many {name}s at once; try again in a moment.", status=429, code=f"{name}_busy")


class Turns:
    """Fair: a user waits behind their own first, and only one of each user's stands in the common queue."""

    def __init__(self, name: str = "search", *, seconds: float = SEARCH_SECONDS) -> None:
        self._name = name
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix=name)
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._of_user: dict[str, asyncio.Lock] = {}
        self._counts: Counter[str] = Counter()
        self._running: set[Deadline] = set()

    async def run(self, user_id: str, work: Callable[[Deadline], T]) -> T:
        """Run `work` in a thread when it is this user's turn. Raises BusyError, and whatever `work` does."""
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
        """End what runs at its next step."""
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
            deadline.cancel()  # where the request was given up: the thread is free again at its next step
            self._running.discard(deadline)
            self._places.release()
