"""Trouble for the database: a lock, a full or stalled disk, files that go, refused rows, a giant neighbour, clocks."""

import ctypes
import errno
import http.client
import os
import random
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path

_HOUR = 3600
_DAY = 24 * _HOUR

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


def built(name: str, folder: Path) -> Path | None:
    """One of the libraries beside this module, to be loaded before a server's own; None where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    library = folder / f"{name}.so"
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def stalled_disk(flag: Path) -> Trouble:
    """`fsync` of the database's files does not return while the flag is there: see `stalled_disk.c`."""

    @contextmanager
    def held() -> Iterator[None]:
        flag.touch()
        try:
            yield
        finally:
            flag.unlink()

    return held


def files_gone(database: Path, *, copied: bool) -> Trouble:
    """The database's files are moved away, and come back; `copied`: what comes back is a copy, another file."""

    @contextmanager
    def held() -> Iterator[None]:
        side = database.parent / "side"
        side.mkdir()
        names = [database.name + suffix for suffix in ("", "-wal", "-shm")]
        for name in names:
            (database.parent / name).rename(side / name)
        try:
            yield
        finally:
            if copied:
                _copy(side / database.name, database)
            else:
                for name in names:
                    (side / name).rename(database.parent / name)
            shutil.rmtree(side)

    return held


def _copy(source: Path, target: Path) -> None:
    part = target.with_name("copying")
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(part)) as new:
        old.backup(new)
        new.execute("PRAGMA journal_mode = DELETE").fetchall()
    part.rename(target)


def refused_rows(database: Path) -> Trouble:
    """The database refuses every exchange, as a constraint would."""

    @contextmanager
    def held() -> Iterator[None]:
        with closing(sqlite3.connect(database, isolation_level=None, timeout=20)) as connection:
            connection.execute(
                "CREATE TRIGGER refuse BEFORE INSERT ON exchanges BEGIN SELECT RAISE(ABORT, 'refused by a test'); END"
            )
            try:
                yield
            finally:
                connection.execute("DROP TRIGGER refuse")

    return held


def giant_neighbour(port: Callable[[], int], *, messages: int) -> Trouble:
    """One caller sends a body of many messages, again and again."""
    said = "".join(f'{{"role":"user","content":"g{number}"}},' for number in range(messages))
    body = ('{"model":"m","messages":[' + said + '{"role":"user","content":"giant"}]}').encode()

    @contextmanager
    def held() -> Iterator[None]:
        stopping = threading.Event()
        current: list[http.client.HTTPConnection] = []

        def send() -> None:
            while not stopping.is_set():
                connection = http.client.HTTPConnection("127.0.0.1", port(), timeout=60)
                current[:] = [connection]
                with suppress(OSError, http.client.HTTPException), closing(connection):
                    connection.request("POST", "/v1/chat/completions", body)
                    connection.getresponse().read()
                stopping.wait(0.1)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        try:
            yield
        finally:
            stopping.set()
            # It leaves: upstream answers in the event loop of this thread, which must not wait for it.
            for connection in current:
                if (sock := connection.sock) is not None:
                    with suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
            sender.join(60)

    return held


def clock_jumps(offset: Path, dice: random.Random) -> Trouble:
    """The server's wall clock is set forward and back: see `jumping_clock.c`."""

    @contextmanager
    def held() -> Iterator[None]:
        set_clock(offset, dice.choice((3 * _DAY, -3 * _DAY, 2 * _HOUR, -2 * _HOUR)))
        try:
            yield
        finally:
            set_clock(offset, dice.choice((0, -_HOUR, _HOUR)))

    return held


def set_clock(offset: Path, seconds: int) -> None:
    """Set the wall clock of a server that runs with this file; it is written in place, as the server has it mapped."""
    with offset.open("r+b" if offset.exists() else "wb") as file:
        file.write(seconds.to_bytes(8, sys.byteorder, signed=True))


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
