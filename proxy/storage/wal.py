"""After a deletion, truncates the write-ahead log, which still contains the deleted rows."""

import logging
import sqlite3
import time
from contextlib import closing
from pathlib import Path

logger = logging.getLogger(__name__)

_TRIES = 8
# A truncating checkpoint blocks writers while it waits for readers, so each attempt is short.
_TRY_SECONDS = 0.05
_REST_SECONDS = 0.2


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
