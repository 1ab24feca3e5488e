"""Schedules searches and other long work fairly: one per user, few in total, in dedicated threads."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from proxy.errors import APIError
from proxy.low_priority import lower_priority
from proxy.search.deadline import Deadline
from proxy.storage.fair_turns import FairTurns, TurnsFullError

T = TypeVar("T")

# Binds SQLite's work (progress handler) and Python's alike: ranking once ran on for 17 to 34 s after the limit.
SEARCH_SECONDS = 10.0
# Python's part holds the GIL, so more searches at once would only delay chats. Users take turns.
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
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix=name, initializer=lower_priority)
        self.turns = FairTurns(
            places=_AT_ONCE, per_caller=_OF_USER_MAX, waiting=_WAITING_MAX, wait_seconds=_WAIT_SECONDS
        )
        self._running: set[Deadline] = set()

    async def run(self, user_id: str, work: Callable[[Deadline], T]) -> T:
        """Runs `work` in a thread when it is this user's turn. Raises BusyError, and whatever `work` raises."""
        try:
            async with self.turns.turn(user_id):
                return await self._run(work)
        except TurnsFullError as exc:
            raise BusyError(self._name) from exc

    def close(self) -> None:
        """Ends running work at its next check."""
        for deadline in self._running:
            deadline.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[Deadline], T]) -> T:
        deadline = Deadline(self._seconds)
        self._running.add(deadline)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, deadline)
        finally:
            deadline.cancel()  # if the request was cancelled, this frees the thread at its next check
            self._running.discard(deadline)
