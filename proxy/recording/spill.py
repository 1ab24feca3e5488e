"""The spill file of one process: an append-only file for writes while the database cannot be written.

Its space is reserved in advance, so that a full disk cannot prevent spilling. The file is locked while its process
lives, which also shows other processes that it is alive: the file of a dead process can be locked.
"""

import fcntl
import glob
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from proxy.storage.file_identity import is_at, sync_folder

logger = logging.getLogger(__name__)

# Read, cleared and copied in pieces: after a long outage the file may have gigabytes.
_BATCH_BYTES = 4 * 2**20


class Spill:
    """JSON lines, synced when `append` returns. Zero bytes follow the last line."""

    def __init__(self, path: Path, *, reserve_bytes: int) -> None:
        self.path = path
        self.count = 0  # number of lines
        self._end = 0
        self._reserve_bytes = reserve_bytes
        self._file = _own(path)
        self._reserve()

    def append(self, lines: list[bytes]) -> None:
        """Appends lines. Raises OSError if they are not on disk; then none of them counts."""
        if not lines:
            return
        # The zero byte marks the end for a reader, even if a failed append has left data behind it.
        data = b"\n".join((*lines, b"\0"))
        _write_all(self._file, data, self._end)
        os.fsync(self._file)
        if not is_at(self._file, self.path):
            self._recreate(self._end + len(data))
        self._end += len(data) - 1
        self.count += len(lines)

    @property
    def end(self) -> int:
        """The offset after the last line."""
        return self._end

    def read(self, start: int, end: int) -> tuple[list[bytes], int]:
        """Reads whole lines from `start`, at least one and about 4 MiB; returns them and the offset after them."""
        data = b""
        while start + len(data) < end:
            data += os.pread(self._file, min(_BATCH_BYTES, end - start - len(data)), start + len(data))
            if b"\n" in data:
                break
        *lines, rest = data.split(b"\n")
        return lines, start + len(data) - len(rest)

    def clear(self, *, up_to: int) -> bool:
        """Removes the lines up to the offset, which are in the database now. False if there are more lines.

        The reserved space is kept as zero bytes.
        """
        if self._end != up_to:
            return False
        used = min(self._end, self._reserve_bytes)
        self._end = self.count = 0
        try:
            os.ftruncate(self._file, self._reserve_bytes)
            for offset in range(0, used, _BATCH_BYTES):
                os.pwrite(self._file, bytes(min(_BATCH_BYTES, used - offset)), offset)
            os.fsync(self._file)
        except OSError as exc:  # remaining lines are replayed at the next start, which changes nothing
            logger.warning("the spill file %s cannot be emptied: %s", self.path, exc.strerror)
        return True

    def close(self) -> None:
        """Releases the lock. Deletes an empty file; one with lines stays for the next start."""
        if not self.count:
            self.path.unlink(missing_ok=True)
        os.close(self._file)

    def keep(self) -> None:
        """Recreates the file if it was removed: otherwise other processes would treat this one as dead."""
        if not is_at(self._file, self.path):
            self._recreate(self._end)

    def _recreate(self, length: int) -> None:
        """Writes the lines of a removed file to a new, locked one. Raises OSError."""
        logger.error("the spill file %s was removed and is created again", self.path)
        old, new = self._file, _own(self.path)
        try:
            for offset in range(0, length, _BATCH_BYTES):
                data = os.pread(old, min(_BATCH_BYTES, length - offset), offset)
                _write_all(new, data, offset)
            os.fsync(new)
        except BaseException:
            os.close(new)
            raise
        self._file = new
        os.close(old)

    def _reserve(self) -> None:
        if not self._reserve_bytes:
            return
        try:
            # Unlike a sparse file, allocated space cannot be taken by others: a full disk is when the spill is needed.
            os.posix_fallocate(self._file, 0, self._reserve_bytes)
            os.fsync(self._file)
        except OSError as exc:
            logger.warning("no space could be reserved for the spill file %s: %s", self.path, exc.strerror)


def _own(path: Path) -> int:
    """Creates and locks the file.

    A process starting at the same time may remove it before it is locked; then retries.
    """
    while True:
        file = _open(path)
        fcntl.flock(file, fcntl.LOCK_EX)
        if is_at(file, path):
            sync_folder(path.parent)
            return file
        os.close(file)


def _write_all(file: int, data: bytes, offset: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(file, data[written:], offset + written)


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def spill_path(database_path: Path, worker_id: str, *, folder: Path | None = None) -> Path:
    """The path of a process's spill file: in the state folder if set, else beside the database."""
    return (folder or database_path.parent) / f"{database_path.name}-spill-{worker_id}"


def spill_files(database_path: Path, *, folder: Path | None = None) -> dict[str, Path]:
    """All spill files by process, alive or dead, including those beside the database from before the folder was set."""
    prefix = f"{database_path.name}-spill-"
    found = {
        path.name.removeprefix(prefix): path
        for place in (database_path.parent, folder or database_path.parent)
        for path in place.glob(glob.escape(prefix) + "*")
    }
    return dict(sorted(found.items()))


class OrphanedSpill:
    """The spill file of a dead process, taken over by this one.

    Raises BlockingIOError if the process is alive, or if another process is taking the file over.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open(path)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(self._file)
            raise
        if not is_at(self._file, path):
            os.close(self._file)
            raise BlockingIOError

    def batches(self) -> Iterator[list[bytes]]:
        """Its lines in order, without an incomplete last one."""
        return read_batches(self._file, os.fstat(self._file).st_size)

    def close(self, *, remove: bool) -> None:
        """Releases the file; deletes it if its lines are in the database."""
        if remove:
            self._path.unlink(missing_ok=True)
        os.close(self._file)


def read_batches(file: int, end: int) -> Iterator[list[bytes]]:
    """Reads the lines up to `end` or the first zero byte, about 4 MiB at a time."""
    offset, rest = 0, b""
    while offset < end and (data := os.pread(file, min(_BATCH_BYTES, end - offset), offset)):
        offset += len(data)
        text, zero, _ = data.partition(b"\0")
        *lines, rest = (rest + text).split(b"\n")
        if lines:
            yield lines
        if zero:
            return
