"""The background job that fills the search index. A damaged index is rebuilt, because it is derived data."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from proxy.maintenance.job import Stop
from proxy.search.index import Index
from proxy.storage import search_file

logger = logging.getLogger(__name__)

# Below this backlog indexing can wait for low load: a search scans up to this many messages without the index.
_BACKLOG = 20_000
# Ratio of rest to work.
_REST_BUSY = 4.0
_REST_IDLE = 0.25
CLEAN_SECONDS = 3600.0  # deleted messages leave the index; a search already skips them
# If damage returns sooner than this, the index is not the cause: the database may be damaged, too.
_REBUILD_SECONDS = 600.0


class Indexing:
    """Fills the index; cleans it at the start and every hour."""

    def __init__(self, database: Path, *, is_busy: Callable[[], bool], stop: Stop) -> None:
        self._database = database
        self._is_busy = is_busy
        self._stop = stop
        self._index: Index | None = None
        self._clean_at = 0.0
        self._rebuild_at = 0.0

    def work(self) -> None:
        """Indexes new messages."""
        if self._index is None:
            try:
                self._index = Index(self._database)
            except BlockingIOError:
                # One process fills the index; all others only read it.
                return  # an older worker that is stopping still holds it
        try:
            self._fill(self._index)
        except search_file.Error as exc:
            if search_file.is_damage(exc) and time.monotonic() >= self._rebuild_at:
                self._rebuild_at = time.monotonic() + _REBUILD_SECONDS
                logger.warning("the search index is damaged and will be rebuilt: %s", exc)
                self._index.rebuild()
            else:
                self.close()
                raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Releases the index to other processes."""
        index, self._index = self._index, None
        if index is not None:
            index.close()

    def _fill(self, index: Index) -> None:
        if time.monotonic() >= self._clean_at:
            index.clean()
            self._clean_at = time.monotonic() + CLEAN_SECONDS
        while not self._stop.is_set:
            is_busy = self._is_busy()
            if is_busy and index.backlog() <= _BACKLOG:
                return
            started = time.monotonic()
            if not index.step():
                return
            self._stop.rest((time.monotonic() - started) * (_REST_BUSY if is_busy else _REST_IDLE))
