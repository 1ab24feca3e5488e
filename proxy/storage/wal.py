"""Empties the write-ahead log after a deletion: until then it holds what was deleted."""

import logging
import sqlite3
import time
from contextlib import closing
from pathlib import Path

logger = logging.getLogger(__name__)

_TRIES = 8
# While it waits for readers, a truncating checkpoint keeps writers out: each try is short.
_TRY_SECONDS = 0.05
_REST_SECONDS = 0.2


def empty_log(path: Path) -> bool:
    """Bring the log into the file and empty it, from a thread of the caller's. False where readers kept it in use."""
    if not path.exists():
        return False  # the history is on a server, or the file is moved away just now
    uri = f"{path.absolute().as_uri()}?mode=rw"  # none is made where it is moved away just now
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=_TRY_SECONDS)) as connection:
            for _ in range(_TRIES):
                if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0:
                    return True
                time.sleep(_REST_SECONDS)
    except sqlite3.Error as exc:
        logger.warning("the write-ahead log could not be emptied after a deletion: %s", exc)
        return False
    logger.info("the write-ahead log is in use: what was deleted leaves it with the next checkpoint")
    return False
