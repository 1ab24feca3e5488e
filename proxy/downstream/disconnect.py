"""Detects that a caller disconnects before its reply has ended; cancels the work or lets it finish."""

import asyncio
from typing import Any

from starlette.types import Receive

from proxy.downstream.direct_writer import Outlet

# If the connection cannot report a disconnect itself, watching starts after this delay: most replies end earlier and
# need no watch.
_WATCH_AFTER_SECONDS = 0.05


class Orphans:
    """Counts replies that are read to the end although their caller has disconnected, up to a limit."""

    def __init__(self, *, limit: int = 0) -> None:
        self.limit = limit
        self.count = 0

    def take(self) -> bool:
        """Takes a place if the limit is not reached."""
        if self.count >= self.limit:
            return False
        self.count += 1
        return True


class Watch:
    """Watches for a disconnect during a request; then cancels the work, or lets it finish."""

    def __init__(
        self,
        receive: Receive,
        *,
        outlet: Outlet | None = None,
        orphans: Orphans | None = None,
        after: asyncio.Event | None = None,
    ) -> None:
        """With `orphans`, the work may finish if there is a free place. Watching starts when `after` is set, which the
        reader of the request's body does."""
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
        """Stops watching. Breaks the reference cycle so that no GC pass is needed."""
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
