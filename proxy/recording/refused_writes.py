"""Writes that the database has rejected for good: moves them to the dead-letter file, a batch with each sync."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from proxy.recording import dead_letters
from proxy.storage.own_thread import OwnThread

logger = logging.getLogger(__name__)

# Maximum number of writes per sync.
_KEPT_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class _Refused:
    """A write that goes to the dead-letter file."""

    line: Callable[[], bytes]
    reason: BaseException
    done: "asyncio.Future[Any] | None"


class RefusedWrites:
    """The rejected writes that are not in the file yet. File I/O runs in the given thread."""

    def __init__(self, path: Path, thread: OwnThread, *, unsaved: Counter[str]) -> None:
        """`unsaved` counts them, under "refused"."""
        self._path = path
        self._thread = thread
        self._unsaved = unsaved
        self._waiting: deque[_Refused] = deque()

    def add(self, line: Callable[[], bytes], reason: BaseException, done: "asyncio.Future[Any] | None" = None) -> None:
        """`done` gets its result once the line is on disk."""
        self._waiting.append(_Refused(line, reason, done))

    async def keep(self) -> None:
        """Writes all of them to the file, then informs their callers."""
        path = self._path
        while batch := list(islice(self._waiting, _KEPT_AT_ONCE)):
            failures = await self._thread.run(partial(_keep, path, batch))
            for refused, failure in zip(batch, failures, strict=True):
                self._waiting.popleft()
                self._unsaved["refused"] += 1
                exc = refused.reason
                if failure is None:
                    # Log the traceback once: a caller that is rejected repeatedly must not fill the log.
                    shown = exc if self._unsaved["refused"] == 1 else None
                    logger.error("the database rejected a write (%s); it is kept in %s", exc, path, exc_info=shown)
                else:
                    logger.critical("a write that the database rejected is lost: %s", failure, exc_info=exc)
                if refused.done is not None and not refused.done.done():
                    refused.done.set_result(failure is None)


def _keep(path: Path, batch: Sequence[_Refused]) -> list[Exception | None]:
    """Appends the batch to the dead-letter file with one sync; returns an error or None for each write."""
    lines: list[tuple[bytes, str]] = []
    failures: list[Exception | None] = []
    for refused in batch:
        try:
            lines.append((refused.line(), dead_letters.reason_of(refused.reason)))
            failures.append(None)
        except Exception as exc:  # noqa: BLE001 - one that cannot be serialized must not block the others
            failures.append(exc)
    try:
        dead_letters.append(path, lines)
    except OSError as exc:
        return [failure or exc for failure in failures]
    return failures
