"""Where the workers of one server count: prometheus-client's multiprocess files, one set for each place of a worker.

They lie in memory (`/dev/shm`) where there is some: what is mapped from a disk can stall whoever counts when the disk
does. A worker takes the first place that no living process has, and goes on with the counts of the one that had it
before: so there are never more files than there were workers at a time. The lock of a place says whether it is taken.
"""

import fcntl
import itertools
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict

_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own in it, which nobody else may enter
# Room for all series there can be: a file that grows later could find the disk full, which ends the process.
_FILE_BYTES = {"counter": 2**18}
_OTHER_FILE_BYTES = 2**15
_LOCK = "place-"


def folder_of(database: Path, *, workers: int) -> Path:
    """Where the workers of one server count: named by the process that starts them."""
    server = os.getpid() if workers == 1 else os.getppid()
    return _parent(database) / str(server)


def clear(database: Path) -> None:
    """Forget what servers that are gone have counted, and one that had this process's id."""
    for folder in _parent(database).glob("*"):
        if folder.name == str(os.getpid()) or not Path("/proc", folder.name).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _parent(database: Path) -> Path:
    digest = sha256(os.fsencode(database.absolute())).hexdigest()[:16]
    folder = _MEMORY / f"stellarchat-{os.geteuid()}-{digest}"
    return folder if _is_ours(folder) else database.with_name(database.name + "-metrics")


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can read or write there; `/dev/shm` is open to all."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


class Place:
    """A worker's place in the folder, its own while it lives. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        for number in itertools.count(1):
            lock = _locked(folder / f"{_LOCK}{number}", fcntl.LOCK_EX)
            if lock is not None:
                self.number, self._lock = number, lock
                return

    def file(self, kind: str) -> MmapedDict:
        """The file of one kind of metrics, all its space on disk; begun anew where it cannot be read."""
        path = self.folder / f"{kind}_{self.number}.db"
        if not _is_readable(path):  # its counts are lost, and counting goes on
            path.unlink(missing_ok=True)
        _reserve(path, _FILE_BYTES.get(kind, _OTHER_FILE_BYTES))
        return MmapedDict(str(path))

    def release(self) -> None:
        """Leave the place, and the counts in it, to the next worker. The last one of a server takes all away."""
        os.close(self._lock)
        if not any(is_taken for _, is_taken in _places(self.folder)):
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):
                self.folder.parent.rmdir()


def files_of(folder: Path) -> list[str]:
    """All files to be summed: of workers that are gone those whose counts stay. A damaged one is left out."""
    living = {number for number, is_taken in _places(folder) if is_taken}
    return [str(path) for path in sorted(folder.glob("*.db")) if _counts(path, living) and _is_readable(path)]


def _counts(path: Path, living: set[str]) -> bool:
    kind, _, number = path.stem.rpartition("_")
    return not kind.startswith("gauge") or number in living


def _is_readable(path: Path) -> bool:
    """Whether the file is what prometheus-client makes of one; it trusts what it finds there."""
    try:
        with path.open("rb") as stream:
            used = int.from_bytes(stream.read(4), sys.byteorder, signed=True)
        if used and not 8 <= used <= path.stat().st_size:
            return False
        for key, *_ in MmapedDict.read_all_values_from_file(path):
            json.loads(key)
    except Exception:  # noqa: BLE001 - its parser raises whatever it comes upon; one file must not hide the others
        return False
    return True


def _places(folder: Path) -> Iterator[tuple[str, bool]]:
    """The number of each place, and whether a living worker has it."""
    for path in folder.glob(f"{_LOCK}*"):
        lock = _locked(path, fcntl.LOCK_SH)
        if lock is not None:
            os.close(lock)
        yield path.name.removeprefix(_LOCK), lock is None


def _locked(path: Path, how: int) -> int | None:
    """The file, locked; None where another process has it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    except BaseException:
        os.close(file)
        raise
    return file


def _reserve(path: Path, size: int) -> None:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(file, 0, size)
    finally:
        os.close(file)


@contextmanager
def shared_lines(path: Path) -> Iterator[list[str]]:
    """The lines of a small file that workers share; what is added to the list is added to it. BlockingIOError: busy."""
    file = _locked(path, fcntl.LOCK_EX)
    if file is None:
        raise BlockingIOError
    with closing(os.fdopen(file, "r+", encoding="utf-8", errors="replace")) as stream:
        lines = stream.read().splitlines()
        before = len(lines)
        yield lines
        stream.writelines(line + "\n" for line in lines[before:])
