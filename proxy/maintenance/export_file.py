"""Writes an export to a temporary file that is then streamed: a slow client must not hold a database snapshot.

Only a few exports run at a time, in their own threads. The files are in the state folder, because `/tmp` may be small.
"""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from proxy.errors import APIError
from proxy.maintenance import export
from proxy.maintenance.export import Format, Scope
from proxy.search.deadline import Deadline
from proxy.search.turns import Turns
from proxy.storage.connection import Connection

logger = logging.getLogger(__name__)

Connect = Callable[[], Connection]

_PIECE_BYTES = 2**18
# The time limit of an export: while it holds its snapshot, the write-ahead log only grows. https://sqlite.org/wal.html
_SECONDS = 600.0
# Free disk space that exports must leave, because the spill file may need it.
_FREE_BYTES = 256 * 2**20
_BYTES_BETWEEN = 16 * 2**20  # between two checks of the free space


class ExportError(APIError):
    """An export failed: not enough disk space, or it took too long."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, status=503, code="export_failed")


class Exports:
    """Creates and reads export files."""

    def __init__(self) -> None:
        self._turns = Turns("export", seconds=_SECONDS)
        self._reading = ThreadPoolExecutor(2, thread_name_prefix="export-read")

    async def written(
        self, user_id: str, connect: Connect, scope: Scope, format_: Format, *, folder: Path
    ) -> IO[bytes]:
        """Exports a database to an unnamed temporary file. Raises BusyError and ExportError."""
        return await self._turns.run(user_id, partial(_written, connect, scope, format_, folder))

    async def pieces(self, file: IO[bytes]) -> AsyncIterator[bytes]:
        """Yields the file in pieces, and deletes it at the end."""
        loop = asyncio.get_running_loop()
        with file:
            while data := await loop.run_in_executor(self._reading, file.read, _PIECE_BYTES):
                yield data

    def close(self) -> None:
        """Aborts running exports."""
        self._turns.close()
        self._reading.shutdown(wait=False, cancel_futures=True)


def suffix(format_: Format) -> str:
    """The file name extension of a format."""
    return "md" if format_ == "markdown" else "jsonl"


def _written(connect: Connect, scope: Scope, format_: Format, folder: Path, deadline: Deadline) -> IO[bytes]:
    try:
        with ExitStack() as stack:
            file = stack.enter_context(TemporaryFile(dir=folder))
            _write(file, connect, scope, format_, folder, deadline)
            stack.pop_all()  # the caller closes it
    except OSError as exc:
        raise ExportError(f"The export could not be written: {exc.strerror}.") from exc
    file.seek(0)
    return file


def _write(file: IO[bytes], connect: Connect, scope: Scope, format_: Format, folder: Path, deadline: Deadline) -> None:
    unlooked = _BYTES_BETWEEN
    with closing(connect()) as connection, connection.snapshot():
        for text in export.export(connection, scope, format_=format_):
            if deadline.is_over:
                raise ExportError("The export took too long.")
            data = text.encode()
            unlooked += len(data)
            if unlooked >= _BYTES_BETWEEN:
                unlooked = 0
                _refuse_full(folder)
            file.write(data)


def _refuse_full(folder: Path) -> None:
    if shutil.disk_usage(folder).free < _FREE_BYTES:
        raise ExportError("There is not enough disk space for an export.")
