"""The metric files of a server's workers: prometheus-client's multiprocess files, one set per worker slot.

They are in memory (`/dev/shm`) if possible: with a stalled disk, memory-mapped files could block a worker that counts.
A worker takes the first slot without a living process and continues its predecessor's counts, so there are never more
files than workers at a time. A file lock shows whether a slot is taken.
"""

import fcntl
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict

from proxy.storage.shared_files import lock_file, memory_folder

# Large enough for all possible series: growing a mapped file on a full disk would kill the process.
_FILE_BYTES = {"counter": 2**18}
# Gauges and histograms have a fixed number of series; counters have one for each model.
_OTHER_FILE_BYTES = 2**15
_LOCK = "place-"


def folder_of(database: Path, *, workers: int) -> Path:
    """The folder for one server's workers, named after the process that starts them."""
    server = os.getpid() if workers == 1 else os.getppid()
    return _parent(database) / str(server)


def clear(database: Path) -> None:
    """Deletes the files of servers that have ended, and of an earlier one with this process id."""
    for folder in _parent(database).glob("*"):
        if folder.name == str(os.getpid()) or not Path("/proc", folder.name).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _parent(database: Path) -> Path:
    return memory_folder(database) or database.with_name(database.name + "-metrics")


class Place:
    """A worker's slot in the folder, held while it lives. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        for number in itertools.count(1):
            lock = lock_file(folder / f"{_LOCK}{number}", fcntl.LOCK_EX)
            if lock is not None:
                self.number, self._lock = number, lock
                return

    def file(self, kind: str) -> MmapedDict:
        """The file for one kind of metric, with its disk space allocated; recreated if it is unreadable."""
        path = self.folder / f"{kind}_{self.number}.db"
        if not _is_readable(path):  # its counts are lost, and counting starts again
            path.unlink(missing_ok=True)
        _reserve(path, _FILE_BYTES.get(kind, _OTHER_FILE_BYTES))
        return MmapedDict(str(path))

    def release(self) -> None:
        """Releases the slot; its counts stay for the next worker. The server's last worker deletes the folder."""
        os.close(self._lock)
        if not any(is_taken for _, is_taken in _places(self.folder)):
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):
                self.folder.parent.rmdir()


def files_of(folder: Path) -> list[str]:
    """The files to add up, including those of dead workers with counters. Skips damaged files."""
    living = {number for number, is_taken in _places(folder) if is_taken}
    return [str(path) for path in sorted(folder.glob("*.db")) if _counts(path, living) and _is_readable(path)]


def _counts(path: Path, living: set[str]) -> bool:
    kind, _, number = path.stem.rpartition("_")
    return not kind.startswith("gauge") or number in living


def _is_readable(path: Path) -> bool:
    """Whether prometheus-client can read the file; it does not validate the content itself."""
    try:
        with path.open("rb") as stream:
            used = int.from_bytes(stream.read(4), sys.byteorder, signed=True)
        if used and not 8 <= used <= path.stat().st_size:
            return False
        for key, *_ in MmapedDict.read_all_values_from_file(path):
            json.loads(key)
    except Exception:  # noqa: BLE001 - its parser may raise anything, and one bad file must not hide the others
        return False
    return True


def _places(folder: Path) -> Iterator[tuple[str, bool]]:
    """The number of each slot, and whether a living worker holds it."""
    for path in folder.glob(f"{_LOCK}*"):
        lock = lock_file(path, fcntl.LOCK_SH)
        if lock is not None:
            os.close(lock)
        yield path.name.removeprefix(_LOCK), lock is None


def _reserve(path: Path, size: int) -> None:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(file, 0, size)
    finally:
        os.close(file)


@contextmanager
def shared_lines(path: Path) -> Iterator[list[str]]:
    """The lines of a small file shared by the workers; appended lines are written back.

    Raises BlockingIOError if busy.
    """
    file = lock_file(path, fcntl.LOCK_EX)
    if file is None:
        raise BlockingIOError
    with closing(os.fdopen(file, "r+", encoding="utf-8", errors="replace")) as stream:
        lines = stream.read().splitlines()
        before = len(lines)
        yield lines
        stream.writelines(line + "\n" for line in lines[before:])
