"""The quotas in use of each key, shared by the processes of one host through a memory-mapped file.

Each process writes only its own region and reads all others', so nothing waits for a lock. A file lock shows whether
the owner of a region lives; a dead one's region is cleared. The file is derived data: it may be deleted at any time.
Truncating it kills the processes that read it (SIGBUS), so it is never made shorter; only its owner can open it.
"""

import fcntl
import logging
import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from hashlib import sha256
from pathlib import Path

from proxy.settings import Settings
from proxy.storage.file_identity import is_at
from proxy.storage.shared_files import lock_file, memory_folder

logger = logging.getLogger(__name__)

_REGIONS = 64  # the largest number of workers that the settings allow
# A region has buckets of 8 key numbers (0: free), and then three values of 8 bytes for each key.
_BUCKETS = 256
# 8 numbers of 8 bytes are one cache line.
_WAYS = 8
_KEYS = _BUCKETS * _WAYS
_VALUES = 3
_HELD, _SAVED, _EMPTY_AT = range(_VALUES)
_REGION_CELLS = _KEYS * (1 + _VALUES)
_HEADER_BYTES = mmap.PAGESIZE  # one byte for each region: whether it is in use
_SIZE = _HEADER_BYTES + _REGIONS * _REGION_CELLS * 8
# `saved` and its day are one value, so that no reader sees one without the other.
_SAVED_BITS = 42
_MOST = 2**62
_OPEN_TRIES = 5


def open_shared_usage(settings: Settings) -> "SharedUsage | None":
    """Opens the file. None, with a line in the log, if that is impossible.

    It is never on a disk: writing to a mapped page of a stalled disk would block the event loop.
    """
    folder = memory_folder(settings.database_path, "-quotas")
    reason = "there is no private folder in /dev/shm"
    if folder is not None:
        try:
            return SharedUsage(folder)
        except OSError as exc:
            reason = f"{folder}: {exc.strerror or exc}"
    logger.warning("the workers cannot share the quotas in use: %s; each allows only its share of every quota", reason)
    return None


class SharedUsage:
    """The file, and this process's region in it. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "usage-1"  # the number of this layout
        self._keys: dict[str, SharedKey] = {}
        self._is_reported = False
        self._used = b""  # the header when `_others` was made
        self._others: list[int] = []
        self._open()
        self.keep()

    def key(self, key_id: str) -> "SharedKey | None":
        """The values of a key. None if there is no place for it, with more than about 1,500 keys in use."""
        shared = self._keys.get(key_id)
        if shared is None:
            number = int.from_bytes(sha256(key_id.encode()).digest()[:7], "little") or 1
            place = self._take(number)
            if place is not None:
                shared = self._keys[key_id] = SharedKey(self, number, place)
        return shared

    def release(self, key_id: str) -> None:
        """Frees the place of an idle key."""
        shared = self._keys.pop(key_id, None)
        if shared is not None:
            self._clear_place(shared.place)

    @property
    def count(self) -> int:
        """The number of processes that share the file, this one included."""
        return 1 + len(self.others())

    def others(self) -> list[int]:
        """The first cell of each other process's region."""
        used = self._memory[:_REGIONS]
        if used != self._used:
            self._used = used
            self._others = [_first_cell(n) for n in range(_REGIONS) if used[n] and n != self._number]
        return self._others

    def keep(self) -> None:
        """Recreates the file if it is gone, and clears the regions of dead processes. Called every few seconds."""
        try:
            if not self._is_whole():
                self._reopen()
            self._clear_dead()
        except OSError as exc:
            if not self._is_reported:
                logger.warning("the shared quotas %s cannot be checked: %s", self._folder, exc.strerror)
            self._is_reported = True
        else:
            self._is_reported = False

    def close(self) -> None:
        """Frees the region. The last process deletes the file."""
        self.keep()
        self._memory[self._number] = 0
        others = self.others()
        os.close(self._lock)
        self._map(mmap.mmap(-1, _SIZE))  # a request that ends later writes to no other process's region
        if not others:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self) -> None:
        number, lock, memory, status = self._claim_mapped()
        self._number, self._lock, self._status = number, lock, status
        self._map(memory)
        self._clear_region(number)
        memory[number] = 1

    def _claim_mapped(self) -> tuple[int, int, mmap.mmap, os.stat_result]:
        for _ in range(_OPEN_TRIES - 1):
            with suppress(FileNotFoundError):  # a process that ended has just deleted the folder
                return self._claim_once()
        return self._claim_once()

    def _claim_once(self) -> tuple[int, int, mmap.mmap, os.stat_result]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        number, lock = self._claim()
        try:
            return number, lock, *_mapped(self._path, number)
        except BaseException:
            os.close(lock)
            raise

    def _map(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self.cells = memoryview(memory).cast("q")
        self.times = memoryview(memory).cast("d")
        self._used, self._others = b"", []

    def _claim(self) -> tuple[int, int]:
        for number in range(_REGIONS):
            path = self._lock_path(number)
            lock = lock_file(path, fcntl.LOCK_EX)
            if lock is None:
                continue
            if is_at(lock, path):
                return number, lock
            os.close(lock)
            raise FileNotFoundError(path)
        raise OSError(f"more than {_REGIONS} processes")

    def _reopen(self) -> None:
        """After the file was removed or damaged: shares a new region, with the same values."""
        logger.error("the shared quotas %s were removed or damaged and are created again", self._folder)
        cells, lock = self.cells, self._lock
        self._open()
        os.close(lock)
        for key_id, shared in list(self._keys.items()):
            values = cells[shared.place : shared.place + _VALUES]
            place = self._take(shared.number)
            if place is None:
                del self._keys[key_id]
                continue
            shared.place = place
            self.cells[place : place + _VALUES] = values

    def _take(self, number: int) -> int | None:
        """The cell of the values of a key that is new in this process's region."""
        start = _first_cell(self._number) + number % _BUCKETS * _WAYS
        numbers = self.cells[start : start + _WAYS].tolist()
        if 0 not in numbers:
            return None
        way = numbers.index(0)
        self.cells[start + way] = number
        return _place(_first_cell(self._number), number, way)

    def _clear_place(self, place: int) -> None:
        first = _first_cell(self._number)
        self.cells[first + (place - first - _KEYS) // _VALUES] = 0
        for cell in range(place, place + _VALUES):
            self.cells[cell] = 0

    def _is_whole(self) -> bool:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        if not os.path.samestat(found, self._status) or found.st_size < _SIZE:
            return False
        return self._memory[self._number] == 1 and is_at(self._lock, self._lock_path(self._number))

    def _clear_dead(self) -> None:
        for number in range(_REGIONS):
            if self._memory[number] and number != self._number:
                self._clear_if_dead(number)

    def _clear_if_dead(self, number: int) -> None:
        lock = lock_file(self._lock_path(number), fcntl.LOCK_EX)
        if lock is None:
            return
        try:
            self._memory[number] = 0
            self._clear_region(number)
        finally:
            os.close(lock)

    def _clear_region(self, number: int) -> None:
        start = _first_cell(number) * 8
        self._memory[start : start + _REGION_CELLS * 8] = bytes(_REGION_CELLS * 8)

    def _lock_path(self, number: int) -> Path:
        return self._folder / f"process-{number + 1}"


class SharedKey:
    """One key's values: this process's, which only this process writes, and the other processes'."""

    __slots__ = ("_usage", "number", "place")

    def __init__(self, usage: SharedUsage, number: int, place: int) -> None:
        self._usage = usage
        self.number = number
        self.place = place

    def publish_tokens(self, *, held: int, day: str, saved: int) -> None:
        """The tokens reserved or not saved yet, and those that the database has for the day."""
        cells = self._usage.cells
        # `saved` first: tokens that move from one to the other may be counted twice for a moment, but never missed.
        if day:
            cells[self.place + _SAVED] = (date.fromisoformat(day).toordinal() << _SAVED_BITS) + min(
                saved, 2**_SAVED_BITS - 1
            )
        cells[self.place + _HELD] = min(held, _MOST)  # `max_tokens` can be any number

    def publish_empty_at(self, empty_at: float) -> None:
        """When the requests admitted so far no longer count, as `time.monotonic()`, which all processes share."""
        self._usage.times[self.place + _EMPTY_AT] = empty_at

    def held_by_others(self) -> int:
        """The tokens that other processes have reserved or not saved yet. Read before `saved_by_others`."""
        cells = self._usage.cells
        return sum(cells[place + _HELD] for place in self._places())

    def saved_by_others(self, day: str) -> int:
        """The most that another process knows to be saved for the day."""
        cells = self._usage.cells
        newest = max((cells[place + _SAVED] for place in self._places()), default=0)
        is_same_day = bool(day) and newest >> _SAVED_BITS == date.fromisoformat(day).toordinal()
        return newest % 2**_SAVED_BITS if is_same_day else 0

    def empty_at_of_others(self) -> float:
        """The latest time that another process has published."""
        times = self._usage.times
        return max((times[place + _EMPTY_AT] for place in self._places()), default=0.0)

    @property
    def sharing(self) -> int:
        """The number of processes whose values are seen, this one included."""
        return self._usage.count

    def _places(self) -> Iterator[int]:
        start = self.number % _BUCKETS * _WAYS
        for first in self._usage.others():
            numbers = self._usage.cells[first + start : first + start + _WAYS].tolist()
            if self.number in numbers:
                yield _place(first, self.number, numbers.index(self.number))


def _mapped(path: Path, number: int) -> tuple[mmap.mmap, os.stat_result]:
    """The mapped file and its status. The space is allocated: writing to a page that a full disk lacks would kill
    the process."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.fstat(file).st_size < _SIZE:
            os.ftruncate(file, _SIZE)
        os.posix_fallocate(file, 0, _HEADER_BYTES)
        os.posix_fallocate(file, _first_cell(number) * 8, _REGION_CELLS * 8)
        return mmap.mmap(file, _SIZE), os.fstat(file)
    finally:
        os.close(file)


def _first_cell(number: int) -> int:
    return _HEADER_BYTES // 8 + number * _REGION_CELLS


def _place(first: int, number: int, way: int) -> int:
    return first + _KEYS + (number % _BUCKETS * _WAYS + way) * _VALUES
