"""Shares a small number of places fairly: each caller's calls wait for each other, and their number is limited."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar

# Names the caller whose request the current task handles: a user, or an address if no key identifies one. A function,
# because most requests read nothing and need no name.
current_caller: ContextVar[Callable[[], str]] = ContextVar("current_caller", default=str)


class TurnsFullError(Exception):
    """Too many calls are waiting, of this caller or in total, or this call has waited too long."""


class FairTurns:
    """A caller uses one place at a time, and only one of its calls waits in the common queue."""

    def __init__(self, *, places: int, per_caller: int, waiting: int, wait_seconds: float) -> None:
        """`per_caller` and `waiting` limit the running and waiting calls, of one caller and in total."""
        self.per_caller = per_caller
        self.waiting = waiting
        self.wait_seconds = wait_seconds
        self._places = asyncio.Semaphore(places)
        self._locks: dict[str, asyncio.Lock] = {}
        self._counts: Counter[str] = Counter()

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncIterator[None]:
        """Holds a place while the block runs. Raises TurnsFullError."""
        if self._counts[caller] >= self.per_caller or self._counts.total() >= self.waiting:
            raise TurnsFullError
        self._counts[caller] += 1
        lock = self._locks.setdefault(caller, asyncio.Lock())
        try:
            await self._acquire(lock)
            try:
                await self._acquire(self._places)
                try:
                    yield
                finally:
                    self._places.release()
            finally:
                lock.release()
        finally:
            self._counts[caller] -= 1
            if not self._counts[caller]:
                del self._counts[caller], self._locks[caller]

    async def _acquire(self, wanted: asyncio.Lock | asyncio.Semaphore) -> None:
        try:
            async with asyncio.timeout(self.wait_seconds):
                await wanted.acquire()
        except TimeoutError as exc:
            raise TurnsFullError from exc
