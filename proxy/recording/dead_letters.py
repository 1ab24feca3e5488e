"""The dead-letter file: keeps the lines of writes that the database has rejected, so that no data is dropped.

All processes of a database share one file, beside their spill files. Each line is a spill line plus the reason. The
recorder retries the lines periodically, since the cause may have been fixed.
"""

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from proxy.recording.spill import read_batches
from proxy.storage.file_identity import is_at, sync_folder
from proxy.wire import json_text

# How long to wait if another process holds the file's lock.
_LOCK_SECONDS = 0.005
_LOCK_LIMIT_SECONDS = 5.0  # a process that was stopped (SIGSTOP) keeps its lock
_REASON = re.compile(rb',"refused":"(?:[^"\\]|\\.)*"\}$')


def dead_letter_path(database_path: Path, folder: Path) -> Path:
    """The path of the dead-letter file."""
    return folder / f"{database_path.name}-refused"


def exist(path: Path) -> bool:
    """Whether there are rejected writes, including those being retried."""
    return path.exists() or _being_retried(path).exists()


def retry(path: Path, store: Callable[[list[bytes]], list[tuple[bytes, BaseException]]]) -> tuple[int, int]:
    """Retries the lines; returns how many `store` accepted, and how many it rejected (these are written back).

    Raises BlockingIOError if another process is retrying. If this process dies midway, the next one continues.
    """
    again = _being_retried(path)
    try:
        file = _take(path, again)
    except FileNotFoundError:  # there is no file, or another process has just retried it
        return 0, 0
    try:
        stored = left = 0
        for lines in read_batches(file, os.fstat(file).st_size):
            refused = store(lines)
            append(path, [(line, reason_of(exc)) for line, exc in refused])
            stored, left = stored + len(lines) - len(refused), left + len(refused)
        again.unlink()
        return stored, left
    finally:
        os.close(file)


def _take(path: Path, again: Path) -> int:
    """Renames the file for the retry and locks it. Raises FileNotFoundError or BlockingIOError."""
    with suppress(FileNotFoundError):
        return _locked(again, os.O_RDONLY)
    file = _locked(path, os.O_RDONLY)
    if again.exists():  # only the holder of the lock creates this file, so nothing is overwritten
        os.close(file)
        raise BlockingIOError
    try:
        path.rename(again)
    except BaseException:
        os.close(file)
        raise
    return file


def append(path: Path, lines: list[tuple[bytes, str]]) -> None:
    """Appends lines with their reasons and syncs the file. Raises OSError."""
    if not lines:
        return
    data = b"".join(_with_reason(line, reason) + b"\n" for line, reason in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _open_to_append(path)
    try:
        before = os.fstat(file).st_size
        try:
            written = 0
            while written < len(data):
                written += os.write(file, data[written:])
            os.fsync(file)
        except OSError:
            os.ftruncate(file, before)
            raise
    finally:
        os.close(file)
    sync_folder(path.parent)


def reason_of(exc: BaseException) -> str:
    """The reason text that `append` stores."""
    return f"{type(exc).__name__}: {exc}"


def _open_to_append(path: Path) -> int:
    """Opens and locks the file. If it is being renamed for a retry, creates a new one. Raises OSError."""
    give_up_at = time.monotonic() + _LOCK_LIMIT_SECONDS
    while time.monotonic() < give_up_at:
        with suppress(BlockingIOError, FileNotFoundError):
            return _locked(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        time.sleep(_LOCK_SECONDS)
    raise TimeoutError(errno.ETIMEDOUT, "another process holds its lock", str(path))


def _locked(path: Path, flags: int) -> int:
    """Opens and locks the file at this path. Raises BlockingIOError, or FileNotFoundError if it was just renamed."""
    file = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(file)
        raise
    if is_at(file, path):
        return file
    os.close(file)
    raise FileNotFoundError(errno.ENOENT, "the file was renamed", str(path))


def count_lines(path: Path) -> int:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        return sum(len(lines) for lines in read_batches(file, os.fstat(file).st_size))
    finally:
        os.close(file)


def _being_retried(path: Path) -> Path:
    return path.with_name(path.name + "-again")


def _with_reason(line: bytes, reason: str) -> bytes:
    """Adds the reason to a line. The key is ignored when the line is read again."""
    if not line.startswith(b"{") or not line.endswith(b"}") or line == b"{}":
        return line  # damaged
    line = _REASON.sub(b"}", line)  # remove the reason of an earlier attempt
    return line[:-1] + b',"refused":' + json_text.encoded(reason[:500]) + b"}"
