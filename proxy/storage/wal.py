"""After a deletion, truncates the write-ahead log, which still contains the deleted rows."""

import asyncio
import logging
import sqlite3
import time
from contextlib import closing
from functools import partial
from pathlib import Path

from proxy.storage.own_thread import OwnThread

logger = logging.getLogger(__name__)

# Attempts of one call; with the pauses between them, about two seconds.
_TRIES = 8
# A truncating checkpoint blocks writers while it waits for readers, so each attempt is short.
_TRY_SECONDS = 0.05
_REST_SECONDS = 0.2
# Calls while readers keep the log in use, for about two minutes.
_ROUNDS = 60
_ROUND_SECONDS = 0.5


def empty_log(path: Path) -> bool:
    """Truncates the log in the caller's thread. False if readers kept it in use."""
    if not path.exists():
        return False  # PostgreSQL, or the file is currently moved away
    uri = f"{path.absolute().as_uri()}?mode=rw"  # do not create the file if it is currently moved away
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=_TRY_SECONDS)) as connection:
            for _ in range(_TRIES):
                if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0:
                    return True
                time.sleep(_REST_SECONDS)
    except sqlite3.Error as exc:
        logger.warning("the write-ahead log could not be emptied after a deletion: %s", exc)
        return False
    logger.info("the write-ahead log is in use: deleted data remains in it until the next checkpoint")
    return False


class LogEmptier:
    """Truncates the log in the background after deletions: soon, but at most once a second however many there are."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = OwnThread("wal")
        self._is_wanted = False
        self._task: asyncio.Task[None] | None = None

    def want(self) -> None:
        """Something was deleted."""
        self._is_wanted = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="wal")

    async def close(self) -> None:
        """Stops trying: the last process to end truncates the log anyway."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._thread.stop()

    async def _run(self) -> None:
        for _ in range(_ROUNDS):
            await asyncio.sleep(_ROUND_SECONDS)
            self._is_wanted = False
            is_empty = await self._thread.run(partial(empty_log, self._path))
            if (is_empty or not self._path.exists()) and not self._is_wanted:
                return
        logger.warning("the write-ahead log is still in use by readers: deleted rows stay in it until they end")
