"""Synchronises `ids.moment` through the database, so that all processes order deletions and chats the same way."""

import time
from datetime import datetime
from pathlib import Path

from proxy import ids
from proxy.storage import queries
from proxy.storage.connection import Connection

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def adopt(connection: Connection) -> None:
    """Adopts the boot time stored by the first process since the machine started.

    If none is stored, stores one that is later than every recorded deletion.
    """
    boot_id = _boot_id()
    with connection.transaction():
        known = queries.durable.get_boot_clock(connection)
        if known is not None and known[0] == boot_id:
            ids.start_clock_at(known[1])
            return
        started_at = max(time.time(), _newest_deletion(connection)) - time.monotonic()
        queries.durable.replace_boot_clock(connection, boot_id=boot_id, started_at=started_at)
    ids.start_clock_at(started_at)


def _newest_deletion(connection: Connection) -> float:
    newest = queries.tombstones.newest_deletion(connection)
    return datetime.fromisoformat(newest).timestamp() + 0.001 if newest else 0.0


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:  # not Linux: the boot time by the wall clock is accurate enough
        return str(round((time.time() - time.monotonic()) / 60))
