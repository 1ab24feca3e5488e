"""The dead-letter file: lines of writes that the database has refused for good, so that nothing is ever dropped.

One file for all processes of a database, beside their spill files. Its lines are spill lines with the reason added; the
recorder tries them again from time to time, since what refused them may have been put right.
"""

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from proxy.recording.spill import is_at, read_batches, sync_folder
from proxy.wire import json_text

# How long one waits that finds the file locked.
_LOCK_SECONDS = 0.005
_REASON = re.compile(rb',"refused":"(?:[^"\\]|\\.)*"\}$')


def dead_letter_path(database_path: Path, folder: Path) -> Path:
    """Where refused writes are kept."""
    return folder / f"{database_path.name}-refused"


def exist(path: Path) -> bool:
    """Whether there are refused writes, also ones that are being retried."""
    return path.exists() or _being_retried(path).exists()


def retry(path: Path, store: Callable[[list[bytes]], list[tuple[bytes, BaseException]]]) -> tuple[int, int]:
    """Try the lines again: how many `store` took, and how many it refused, which are in the file again.

    Raises BlockingIOError while another process does the same. Killed in between, the next one goes on.
    """
    again = _being_retried(path)
    try:
        file = _take(path, again)
    except FileNotFoundError:  # there is none, or another process has just stored it
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
    """The file under the name that it has while it is retried, locked. Raises FileNotFoundError or BlockingIOError."""
    with suppress(FileNotFoundError):
        return _locked(again, os.O_RDONLY)
    file = _locked(path, os.O_RDONLY)
    if again.exists():  # only who has the lock of the one makes the other: nothing is replaced
        os.close(file)
        raise BlockingIOError
    try:
        path.rename(again)
    except BaseException:
        os.close(file)
        raise
    return file


def append(path: Path, lines: list[tuple[bytes, str]]) -> None:
    """Add lines, each with the reason; on disk when this returns. Raises OSError."""
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
    """Why a line was refused, for `append`."""
    return f"{type(exc).__name__}: {exc}"


def _open_to_append(path: Path) -> int:
    """The file, locked. One that is being retried loses this name at once, and another is made."""
    while True:
        with suppress(BlockingIOError, FileNotFoundError):
            return _locked(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        time.sleep(_LOCK_SECONDS)


def _locked(path: Path, flags: int) -> int:
    """The file that has this name, locked. Raises BlockingIOError, or FileNotFoundError where it has just lost it."""
    file = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(file)
        raise
    if is_at(file, path):
        return file
    os.close(file)
    raise FileNotFoundError(errno.ENOENT, "it has another name now", str(path))


def count_lines(path: Path) -> int:
    """How many lines the file has."""
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
    """The line as it was, and why it was refused: the key is ignored when the line is read again."""
    if not line.startswith(b"{") or not line.endswith(b"}") or line == b"{}":
        return line  # a broken one
    line = _REASON.sub(b"}", line)  # of an earlier time
    return line[:-1] + b',"refused":' + json_text.dumps(reason[:500]).encode() + b"}"
