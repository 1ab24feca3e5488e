"""Recovery: stores what dead processes have left, and retries the writes that the database has rejected."""

import asyncio
import logging
import time
from functools import partial
from pathlib import Path

from proxy.ids import timestamp
from proxy.recording import dead_letters, spill_codec
from proxy.recording.spill import OrphanedSpill, spill_files, spill_path
from proxy.recording.transactions import replay_lines
from proxy.recording.writer import Writer
from proxy.storage import exchange_store
from proxy.storage.connection import Connection
from proxy.storage.database import Database
from proxy.storage.errors import StorageError
from proxy.storage.file_identity import MovedError
from proxy.storage.queries.exchanges import list_workers_in_progress
from proxy.storage.write_batch import WriteBatch, write_batch

logger = logging.getLogger(__name__)

# How often to look for spill files and exchanges of dead processes.
_INTERVAL_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 3600.0  # between two retries of rejected writes


class Recovery:
    """Recovers for one process. `run` is its task."""

    def __init__(
        self, database: Database, writer: Writer, *, worker_id: str, folder: Path, dead_letters_path: Path
    ) -> None:
        self._database = database
        self._writer = writer
        self._worker_id = worker_id
        self._folder = folder
        self._dead_letters_path = dead_letters_path
        self._retry_refused_at = 0.0

    async def run(self) -> None:
        """Recovers periodically: a dead worker is not replaced by a restart, and rejected writes may become
        storable."""
        wait = _INTERVAL_SECONDS
        while True:
            try:
                await self._writer.overflow.keep_file()
                if self._writer.last_error is None:
                    await self.recover()
                    if time.monotonic() >= self._retry_refused_at or self._writer.has_recovered():
                        wait = (
                            _INTERVAL_SECONDS if await self._retry_refused() else min(2 * wait, _LONGEST_WAIT_SECONDS)
                        )
                        self._retry_refused_at = time.monotonic() + wait
            except (StorageError, OSError, MovedError) as exc:
                logger.warning("the chats of ended processes cannot be stored yet: %s", exc)
            except Exception:  # must survive: nothing else recovers what dead processes have left
                logger.exception("recovery failed; it will be retried")
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def recover(self) -> None:
        """Recovers dead processes: first their spill files, which are newer than the tables."""
        # The names say which processes there were; the lock of each file says whether its process lives.
        left = spill_files(self._database.path, folder=self._folder)
        for worker_id, path in left.items():
            if worker_id != self._worker_id:
                await self._take_over(worker_id, path, is_of_this_host=True)
        for worker_id in await self._database.read(list_workers_in_progress):
            if worker_id not in left and worker_id != self._worker_id:
                path = spill_path(self._database.path, worker_id, folder=self._folder)
                await self._take_over(worker_id, path, is_of_this_host=False)

    async def _take_over(self, worker_id: str, path: Path, *, is_of_this_host: bool) -> None:
        try:
            # The file of another host's process is created here only for its lock. It must be removed even after an
            # error: whoever has a process's file is its host.
            left = OrphanedSpill(path)
        except BlockingIOError:
            return  # its process is alive
        try:
            store = partial(self._store_abandoned, left=left, worker_id=worker_id, is_of_this_host=is_of_this_host)
            spilled, interrupted = await self._database.write(self._database.files.guard(store))
        except BlockingIOError:  # another process is retrying rejected writes; chats can be ended only after that
            left.close(remove=not is_of_this_host)
            return
        except BaseException:
            left.close(remove=not is_of_this_host)
            raise
        left.close(remove=True)
        if spilled or interrupted:
            logger.warning(
                "a process ended without draining: %d spilled writes are stored, %d chats are incomplete",
                spilled,
                interrupted,
            )

    def _store_abandoned(
        self, connection: Connection, left: OrphanedSpill, worker_id: str, *, is_of_this_host: bool
    ) -> tuple[int, int]:
        """Stores a dead process's spilled writes and streamed replies; returns the numbers of writes and of cut
        chats."""
        spilled = 0
        for lines in left.batches():
            refused = replay_lines(connection, lines, spill_codec.replay)
            self._keep_refused(refused)
            spilled += len(lines) - len(refused)
        # Do this first: fragments of a reply whose row was rejected may be among them, and are useless after its end.
        self._retry_in_database(connection)
        with write_batch(connection) as rows:
            if is_of_this_host:
                exchange_store.recover_again(rows, worker_id)
                self._database.forget(connection, worker_id)
            return spilled, exchange_store.recover(rows, worker_id)

    async def _retry_refused(self) -> int:
        """Retries rejected writes; returns how many the database accepted."""
        if not dead_letters.exist(self._dead_letters_path):
            return 0
        return await self._database.write(self._database.files.guard(self._retry_in_database))

    def _retry_in_database(self, connection: Connection) -> int:
        path, stored, again = self._dead_letters_path, 0, True
        while again:
            accepted, left = dead_letters.retry(path, lambda lines: replay_lines(connection, lines, spill_codec.replay))
            stored += accepted
            # A fragment may stand before the beginning of its chat, which was rejected and written back after it.
            again = bool(accepted and left)
        if stored:
            logger.warning("%d writes that the database had refused are stored now, %d are not", stored, left)
            with write_batch(connection) as rows:  # they may contain the end of a chat after its fragments
                delete_strays(rows)
        return stored

    def _keep_refused(self, refused: list[tuple[bytes, BaseException]]) -> None:
        if not refused:
            return
        path = self._dead_letters_path
        dead_letters.append(path, [(line, dead_letters.reason_of(exc)) for line, exc in refused])
        self._writer.unsaved["refused"] += len(refused)
        for _, exc in refused:
            logger.error("a spilled write was refused by the database; it is kept in %s", path, exc_info=exc)


def delete_strays(rows: WriteBatch) -> None:
    """Deletes fragments that belong to no open exchange."""
    exchange_store.delete_stray_fragments(rows, before=timestamp(time.time() - exchange_store.KEPT_SECONDS))
