"""The writes that wait for the database, in order: bounded by count and by size. Those being tried count as well."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Generic, TypeVar

from proxy.storage.write_batch import WriteBatch

T = TypeVar("T")


class QueueFullError(Exception):
    """More writes wait than the settings allow."""


@dataclass(slots=True, eq=False)
class Write(Generic[T]):
    """One change to make: `work` runs inside the transaction; `line` makes what stands for it on the spill file."""

    work: Callable[[WriteBatch], T]
    done: asyncio.Future[T]
    size: int = 0
    line: Callable[[], bytes] | None = None
    queued_at: float = field(default_factory=time.monotonic)
    due_at: float | None = None  # when it was first seen to be due for the spill
    is_spilled: bool = False  # its line is on the spill file, synced
    is_withdrawn: bool = False  # its caller was told that it failed: it is not tried any more
    about: str | None = None  # the exchange it belongs to, of which there are several writes
    is_doubtful: bool = False  # it may be stored: only its line, which is looked up first, may be tried again


class WriteQueue:
    """First in, first out. `take` moves writes to `in_flight`; they are settled or put back."""

    def __init__(self, *, limit: int, limit_bytes: int) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._waiting: deque[Write[Any]] = deque()
        self.in_flight: list[Write[Any]] = []
        self.size = 0  # bytes of all of them

    def __len__(self) -> int:
        return len(self._waiting) + len(self.in_flight)

    def __iter__(self) -> Iterator[Write[Any]]:
        return chain(self.in_flight, self._waiting)

    @property
    def newest(self) -> Write[Any] | None:
        """The write that came last."""
        return self._waiting[-1] if self._waiting else self.in_flight[-1] if self.in_flight else None

    @property
    def oldest_at(self) -> float | None:
        """When the oldest was queued."""
        first = next(iter(self), None)
        return None if first is None else first.queued_at

    @property
    def is_half_full(self) -> bool:
        """Whether it is time to bring some of it elsewhere."""
        return len(self) * 2 > self._limit or self.size * 2 > self._limit_bytes

    def has_room(self, size: int) -> bool:
        """Whether one more write of this size may come."""
        return len(self) < self._limit and self.size + size <= self._limit_bytes

    def append(self, write: Write[Any]) -> None:
        """Queue a write. Raises QueueFullError."""
        if not self.has_room(write.size):
            raise QueueFullError
        self._waiting.append(write)
        self.size += write.size

    def take(self, limit: int) -> list[Write[Any]]:
        """The next writes to try; withdrawn ones are dropped. None beyond a doubtful one: the order is kept."""
        assert not self.in_flight
        while self._waiting and len(self.in_flight) < limit and not self._waiting[0].is_doubtful:
            write = self._waiting.popleft()
            if write.is_withdrawn:
                self.size -= write.size
            else:
                self.in_flight.append(write)
        return self.in_flight

    def settle(self, count: int) -> list[Write[Any]]:
        """The first `count` that were tried are done."""
        done, self.in_flight = self.in_flight[:count], self.in_flight[count:]
        self.size -= sum(write.size for write in done)
        return done

    def put_back(self, *, unfinished: Sequence[Write[Any]] = ()) -> None:
        """What is in flight was not tried, or not stored: it comes first again, before `unfinished`, which count anew:
        a long write does not keep the others from their turn."""
        self.size += sum(write.size for write in unfinished)
        self._waiting.extendleft(reversed([*self.in_flight, *unfinished]))
        self.in_flight = []

    def forget_spilled(self) -> int:
        """Drop from memory what is on the spill file, but for what is in flight; how many."""
        kept = deque(write for write in self._waiting if not write.is_spilled)
        dropped = len(self._waiting) - len(kept)
        self._waiting = kept
        self.size = sum(write.size for write in self)
        return dropped
