"""Notices that a caller leaves before its reply has ended, and cancels the work or lets it finish."""

import asyncio
from typing import Any

from starlette.types import Receive

from proxy.downstream.direct_writer import Outlet

# Where the connection does not say so by itself, a caller who leaves within the first moments is noticed after them:
# most replies end before, and need no watch.
_WATCH_AFTER_SECONDS = 0.05


class Orphans:
    """The replies that are read to their end though their caller has left: how many, and how many there may be."""

    def __init__(self, *, limit: int = 0) -> None:
        self.limit = limit
        self.count = 0

    def take(self) -> bool:
        """Whether there is room for one more, which then counts."""
        if self.count >= self.limit:
            return False
        self.count += 1
        return True


class Watch:
    """Notices that the caller leaves while its request is worked on, and cancels the work, or lets it finish."""

    def __init__(
        self,
        receive: Receive,
        *,
        outlet: Outlet | None = None,
        orphans: Orphans | None = None,
        after: asyncio.Event | None = None,
    ) -> None:
        """With `orphans` the work finishes where they have room. `after`: somebody else still receives the request's
        body until then."""
        self.has_left = False
        self.has_cancelled = False
        self._orphans = orphans
        self._is_orphan = False
        self._after = after
        self._receive = receive
        task = asyncio.current_task()
        assert task is not None
        self._work: asyncio.Task[Any] | None = task
        self._watching: asyncio.Task[None] | None = None
        self._start: asyncio.TimerHandle | None = None
        self._outlet = outlet if outlet is not None and after is None and outlet.watch(self._leaves) else None
        if self._outlet is None:
            self._start = asyncio.get_running_loop().call_later(_WATCH_AFTER_SECONDS, self._begin)

    def stop(self) -> None:
        """The work is done. What refers to this, and this to it, is let go: else it would wait for the collector."""
        if self._outlet is not None:
            self._outlet.unwatch()
        if self._start is not None:
            self._start.cancel()
        if self._watching is not None:
            self._watching.cancel()
        if self._is_orphan and self._orphans is not None:
            self._orphans.count -= 1
        self._is_orphan = False
        self._outlet = self._start = self._watching = self._work = None

    def _begin(self) -> None:
        self._watching = asyncio.create_task(self._notice(), name="watch")

    async def _notice(self) -> None:
        if self._after is not None:
            await self._after.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leaves()

    def _leaves(self) -> None:
        self.has_left = True
        self._is_orphan = self._orphans is not None and self._orphans.take()
        if not self._is_orphan and self._work is not None:
            self.has_cancelled = True
            self._work.cancel()
