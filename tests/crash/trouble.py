"""Trouble for the database: another program's lock, a full disk."""

import ctypes
import errno
import os
import resource
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

Trouble = Callable[[], AbstractContextManager[None]]


def lock(database: Path) -> Trouble:
    """Another program holds the write lock."""

    @contextmanager
    def held() -> Iterator[None]:
        connection = sqlite3.connect(database, isolation_level=None, timeout=20)
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")
            connection.close()

    return held


def full_disk(folder: Path) -> Trouble:
    """Not a byte is left on the folder's file system, which should be a small one of its own."""

    @contextmanager
    def held() -> Iterator[None]:
        ballast = folder / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file:
                _fill(file.fileno())
            yield
        finally:
            ballast.unlink()

    return held


def _fill(file: int) -> None:
    size = 2**20
    while size:
        try:
            os.write(file, bytes(size))
        except OSError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            size //= 2


def no_growth(database: Path, pids: Callable[[], list[int]]) -> Trouble:
    """Where no file system can be mounted: no file of these processes may grow beyond what the log has now."""

    @contextmanager
    def held() -> Iterator[None]:
        limited = pids()
        size = database.with_name(database.name + "-wal").stat().st_size
        for pid in limited:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            yield
        finally:
            for pid in limited:
                if Path(f"/proc/{pid}").exists():
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    return held


@contextmanager
def small_disk(folder: Path, *, size_bytes: int) -> Iterator[bool]:
    """A file system of its own on the folder while the block lasts; False where this user may not mount one."""
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={size_bytes}".encode()
    is_mounted = libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options) == 0
    try:
        yield is_mounted
    finally:
        deadline = time.monotonic() + 10
        while is_mounted and libc.umount2(os.fsencode(folder), 0) and time.monotonic() < deadline:
            time.sleep(0.05)
