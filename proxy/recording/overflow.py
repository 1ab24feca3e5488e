"""Spills writes that the database does not store in time, and ends the wait of callers whose time limit has passed.

The reason does not matter: an error, a stalled disk, a long write ahead of them, a missing database file. A write
counts as saved only after the spill file is synced. Spilling does not depend on the writer's task and has its own
thread, so that neither a blocked writer nor a full thread pool delays it.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from proxy.errors import UnavailableError
from proxy.recording.refused_writes import RefusedWrites
from proxy.recording.spill import Spill
from proxy.recording.write_queue import Write, WriteQueue
from proxy.storage.own_thread import OwnThread

logger = logging.getLogger(__name__)

# A write that the database has not taken after this time is spilled.
_SPILL_SECONDS = 0.4
_GATHER_SECONDS = 0.02
# Maximum number of writes per sync.
_SPILLED_AT_ONCE = 256
_SPILLED_BYTES = 8 * 2**20
# Spilled writes also stay in memory, because storing them from there is faster; during a long outage only this many do.
_COPIES = 2_000
_RETRY_SECONDS = 0.5

_MAY_BE_MADE = (
    "The database does not answer, and the change may have been made; a retry with the same Idempotency-Key does not "
    "make it twice."
)
# The values of the label of `stellarchat_unsaved_total`; `docs/how-it-works` says what each means.
UNSAVED_REASONS = ("queue_full", "spill_failed", "spill_stalled", "refused", "deleted")


class Overflow:
    """Spills queued writes. `run` is its task. Only file I/O runs in the thread, everything else on the event loop."""

    def __init__(
        self,
        queue: WriteQueue,
        spill: Spill,
        *,
        dead_letters_path: Path,
        commit_timeout_seconds: float,
        is_bridging: Callable[[], bool],
        refuses_callers: Callable[[], bool],
    ) -> None:
        """`is_bridging`: the database accepts nothing, so new writes are spilled immediately. `refuses_callers`: it is
        known to be failing, so a write that cannot be spilled fails immediately."""
        self._queue = queue
        self._spill = spill
        self._give_up_seconds = commit_timeout_seconds
        self.spill_seconds = min(_SPILL_SECONDS, commit_timeout_seconds / 4)
        self._is_bridging = is_bridging
        self._refuses_callers = refuses_callers
        self._wanted = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._thread = OwnThread("spill")
        self._is_closed = False
        self._appending_since: float | None = None
        self._marked_end = 0  # all lines before this offset belong to writes marked as spilled
        self.only_on_file = 0  # spilled writes no longer in memory
        self.error: str | None = None  # why the spill file cannot be written
        self.unsaved: Counter[str] = Counter()
        self._refused = RefusedWrites(dead_letters_path, self._thread, unsaved=self.unsaved)

    @property
    def count(self) -> int:
        """Number of lines in the spill file."""
        return self._spill.count

    @property
    def trouble(self) -> str | None:
        """Why spilling fails, or None."""
        since = self._appending_since
        if since is not None and time.monotonic() - since > self._give_up_seconds:
            return "the spill file's disk does not answer"
        return self.error

    def notice_write(self) -> None:
        """Called when a write has been queued."""
        if self._timer is None:
            self._set_timer(self.spill_seconds)
        if self._queue.is_half_full or self._is_bridging():
            self._wanted.set()

    def wake(self) -> None:
        """Called when the database fails: checks immediately what must be spilled."""
        self._wanted.set()

    def refuse(self, write: Write[Any], exc: BaseException) -> None:
        """Moves a write that the database rejected for good to the dead-letter file, then informs its caller."""
        assert write.line is not None
        self._refused.add(write.line, exc, write.done)
        self._wanted.set()

    def refuse_line(self, line: bytes, exc: BaseException) -> None:
        """Like `refuse`, for a line from the spill file."""
        self._refused.add(lambda: line, exc)
        self._wanted.set()

    async def run(self) -> None:
        """Spills until `stop`."""
        while not self._is_closed:
            await self._wanted.wait()
            await asyncio.sleep(_GATHER_SECONDS)  # gather more writes per sync
            self._wanted.clear()
            try:
                await self.spill_due()
            except OSError as exc:
                self._cannot_spill(exc)
                self._set_timer(_RETRY_SECONDS)
            except Exception:  # must survive: without this task every chat would wait at its end
                logger.exception("the spill failed and continues")
                self._set_timer(_RETRY_SECONDS)

    def stop(self) -> None:
        """Ends `run` after the append that it is in. What is still queued is spilled by `close`."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._wanted.set()

    async def spill_due(self, *, everything: bool = False) -> None:
        """Spills all due writes, or all that can be spilled. Raises OSError if not even one line can be written."""
        await self._refused.keep()
        while batch := self._next_due(everything=everything):
            await self._append(batch)
        if self._refuses_callers() or everything:
            for write in list(self._queue):
                if write.line is None:
                    self.withdraw(write)
        copies = sum(write.is_spilled for write in self._queue)
        if copies > _COPIES or (copies and self._queue.is_half_full):
            self.forget_copies()

    def forget_copies(self) -> None:
        """Drops the in-memory copies of spilled writes; they are later read from the file."""
        self.only_on_file += self._queue.forget_spilled()

    async def lines(self, start: int, end: int) -> tuple[list[bytes], int]:
        """Reads some lines of the file from an offset on; returns them and the offset after them."""
        return await self._thread.run(partial(self._spill.read, start, end))

    @property
    def marked_end(self) -> int:
        """The offset after the last line whose write is marked as spilled."""
        return self._marked_end

    async def keep_file(self) -> None:
        """Recreates the spill file if it was removed. Raises OSError."""
        await self._thread.run(self._spill.keep)

    async def clear(self) -> bool:
        """Empties the file after all its writes were stored. False if new lines were added meanwhile."""
        is_empty = await self._thread.run(partial(self._spill.clear, up_to=self._marked_end))
        if is_empty:
            self._marked_end = 0
        return is_empty

    async def close(self, *, seconds: float) -> None:
        """Spills everything still queued, and closes the file."""
        self.stop()
        try:
            async with asyncio.timeout(seconds):
                await self.spill_due(everything=True)
        except (OSError, TimeoutError) as exc:
            self._cannot_spill(exc)
            self._abandon()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._thread.run(self._spill.close)
        self._thread.stop()

    # Which writes to spill

    def _next_due(self, *, everything: bool) -> list[Write[Any]]:
        due_at = time.monotonic() - self.spill_seconds
        takes_all = everything or self._is_bridging() or self._queue.is_half_full
        batch: list[Write[Any]] = []
        size = 0
        for write in self._queue:
            if write.is_spilled or write.line is None:
                continue
            if not (takes_all or write.queued_at <= due_at):
                break
            if batch and (len(batch) == _SPILLED_AT_ONCE or size + write.size > _SPILLED_BYTES):
                break
            batch.append(write)
            size += write.size
        return batch

    def _set_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if self._is_closed else asyncio.get_running_loop().call_later(seconds, self._check_deadlines)

    def _check_deadlines(self) -> None:
        """Wakes the task for due writes, and informs callers whose time limit has passed."""
        self._timer = None
        now = time.monotonic()
        next_at: float | None = None
        for write in self._queue:
            if write.done.done() and (write.is_spilled or write.line is None):
                continue
            spill_at = write.queued_at + self.spill_seconds
            if not write.is_spilled and write.line is not None and spill_at <= now:
                self._wanted.set()
                write.due_at = write.due_at or now
            # If the event loop was blocked for long, the spill has had no chance to run yet.
            chance_ends_at = 0.0 if write.line is None else (write.due_at or now) + self._give_up_seconds / 4
            give_up_at = max(write.queued_at + self._give_up_seconds, chance_ends_at)
            if give_up_at <= now:
                self._give_up(write)
                give_up_at = now + self._give_up_seconds
            at = spill_at if spill_at > now else give_up_at
            next_at = at if next_at is None else min(next_at, at)
            if spill_at > now:
                break  # later writes are not due yet
        if next_at is not None:
            self._set_timer(max(next_at - now, _GATHER_SECONDS))

    # Spilling

    async def _append(self, batch: list[Write[Any]]) -> None:
        while True:
            self._appending_since = time.monotonic()
            try:
                lines, end = await self._thread.run(partial(_append_lines, self._spill, batch))
                break
            except OSError:
                if len(batch) == 1:
                    raise
                batch = batch[: len(batch) // 2]  # a smaller batch may still fit
            finally:
                self._appending_since = None
        if self.error is not None:
            logger.warning("the spill file can be written again")
        self.error = None
        self._marked_end = end
        for write, line in zip(batch, lines, strict=True):
            if isinstance(line, BaseException):
                self._cannot_serialize(write, line)
                continue
            write.is_spilled = True
            if not write.done.done():
                write.done.set_result(True)

    def _cannot_spill(self, exc: BaseException) -> None:
        reason = (exc.strerror if isinstance(exc, OSError) else None) or "it does not answer"
        if self.error is None:
            logger.error("the spill file cannot be written either (%s): writes wait in memory", reason)
        self.error = f"the spill file cannot be written: {reason}"

    def _give_up(self, write: Write[Any]) -> None:
        """Informs the caller that the time limit has passed; the write itself stays queued."""
        if write.done.done():
            return
        if write.line is None:
            self.withdraw(write)
            return
        reason = "spill_failed" if self.error is not None else "spill_stalled"
        self.unsaved[reason] += 1
        logger.error("the end of a reply is sent before it is on disk (%s)", reason)
        write.done.set_result(False)

    def withdraw(self, write: Write[Any]) -> None:
        """Fails the write and removes it from further attempts."""
        if not write.done.done():
            write.is_withdrawn = True
            is_tried = write in self._queue.in_flight
            write.done.set_exception(UnavailableError(_MAY_BE_MADE) if is_tried else UnavailableError())

    def _cannot_serialize(self, write: Write[Any], exc: BaseException) -> None:
        """Called if the write cannot be serialized: it stays in memory for the database."""
        self.unsaved["spill_failed"] += 1
        logger.error("a write cannot be serialized for the spill file", exc_info=exc)
        write.line = None
        if not write.done.done():
            write.done.set_result(False)

    def _abandon(self) -> None:
        left = [write for write in self._queue if not write.is_spilled and not write.is_withdrawn]
        if left:
            logger.critical("%d writes are lost: neither the database nor the spill file accepts them", len(left))
        for write in left:
            self._give_up(write)


def _append_lines(spill: Spill, batch: Iterable[Write[Any]]) -> tuple[list[bytes | Exception], int]:
    lines: list[bytes | Exception] = []
    for write in batch:
        assert write.line is not None
        try:
            lines.append(write.line())
        except Exception as exc:  # noqa: BLE001 - one bad write must not block the others
            lines.append(exc)
    spill.append([line for line in lines if isinstance(line, bytes)])
    return lines, spill.end
