"""The queue of writes for the database, in order, limited by count and size. Writes in flight count as well."""

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
    """The queue has reached its limit."""


@dataclass(slots=True, eq=False)
class Write(Generic[T]):
    """One database change. `work` runs inside the transaction; `line` makes its line for the spill file."""

    work: Callable[[WriteBatch], T]
    done: asyncio.Future[T]
    size: int = 0
    line: Callable[[], bytes] | None = None
    queued_at: float = field(default_factory=time.monotonic)
    due_at: float | None = None  # when it first became due for the spill
    is_spilled: bool = False  # its line is in the synced spill file
    is_withdrawn: bool = False  # its caller was told that it failed, so it is not tried any more
    about: str | None = None  # the exchange it belongs to; an exchange has several writes


class WriteQueue:
    """A FIFO queue. `take` moves writes to `in_flight`; from there they are settled or put back."""

    def __init__(self, *, limit: int, limit_bytes: int) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._waiting: deque[Write[Any]] = deque()
        self.in_flight: list[Write[Any]] = []
        self.size = 0  # total size in bytes

    def __len__(self) -> int:
        return len(self._waiting) + len(self.in_flight)

    def __iter__(self) -> Iterator[Write[Any]]:
        return chain(self.in_flight, self._waiting)

    @property
    def newest(self) -> Write[Any] | None:
        """The last write queued."""
        return self._waiting[-1] if self._waiting else self.in_flight[-1] if self.in_flight else None

    @property
    def oldest_at(self) -> float | None:
        """When the oldest write was queued."""
        first = next(iter(self), None)
        return None if first is None else first.queued_at

    @property
    def is_half_full(self) -> bool:
        """Whether writes should be spilled to make room."""
        return len(self) * 2 > self._limit or self.size * 2 > self._limit_bytes

    def has_room(self, size: int) -> bool:
        """Whether another write of this size fits."""
        return len(self) < self._limit and self.size + size <= self._limit_bytes

    def append(self, write: Write[Any]) -> None:
        """Queues a write. Raises QueueFullError."""
        if not self.has_room(write.size):
            raise QueueFullError
        self._waiting.append(write)
        self.size += write.size

    def take(self, limit: int) -> list[Write[Any]]:
        """The next writes to try; drops withdrawn ones."""
        assert not self.in_flight
        while self._waiting and len(self.in_flight) < limit:
            write = self._waiting.popleft()
            if write.is_withdrawn:
                self.size -= write.size
            else:
                self.in_flight.append(write)
        return self.in_flight

    def settle(self, count: int) -> list[Write[Any]]:
        """Removes the first `count` writes in flight, which are done."""
        done, self.in_flight = self.in_flight[:count], self.in_flight[count:]
        self.size -= sum(write.size for write in done)
        return done

    def put_back(self, *, unfinished: Sequence[Write[Any]] = ()) -> None:
        """Puts writes in flight back in front, because they were not tried or not stored.

        `unfinished` ones follow them with a new start time, so that a long write does not delay the others.
        """
        self.size += sum(write.size for write in unfinished)
        self._waiting.extendleft(reversed([*self.in_flight, *unfinished]))
        self.in_flight = []

    def forget_spilled(self) -> int:
        """Drops in-memory copies of spilled writes that are not in flight; returns how many."""
        kept = deque(write for write in self._waiting if not write.is_spilled)
        dropped = len(self._waiting) - len(kept)
        self._waiting = kept
        self.size = sum(write.size for write in self)
        return dropped
