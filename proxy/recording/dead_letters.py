"""The dead-letter file: lines of writes that the database has refused for good, so that nothing is ever dropped.

One file for all processes of a database, beside their spill files. Its lines are spill lines with the reason added; the
recorder tries them again from time to time, since what refused them may have been put right.
"""

import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path

from proxy.recording.spill import read_batches, sync_folder
from proxy.wire import json_text

_REASON = re.compile(rb',"refused":"(?:[^"\\]|\\.)*"\}$')


def dead_letter_path(database_path: Path, folder: Path) -> Path:
    """Where refused writes are kept."""
    return folder / f"{database_path.name}-refused"


def retry(path: Path, store: Callable[[list[bytes]], list[tuple[bytes, BaseException]]]) -> tuple[int, int]:
    """Try the lines again: how many `store` took, and how many it refused, which are in the file again.

    Raises BlockingIOError while another process does the same. Killed in between, the next one goes on.
    """
    again = path.with_name(path.name + "-again")
    if not again.exists():
        try:
            path.rename(again)
        except FileNotFoundError:
            return 0, 0
    file = os.open(again, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stored = left = 0
        for lines in read_batches(file, os.fstat(file).st_size):
            refused = store(lines)
            append(path, [(line, f"{type(exc).__name__}: {exc}") for line, exc in refused])
            stored, left = stored + len(lines) - len(refused), left + len(refused)
        again.unlink()
        return stored, left
    finally:
        os.close(file)


def append(path: Path, lines: list[tuple[bytes, str]]) -> None:
    """Add lines, each with the reason; on disk when this returns. Raises OSError."""
    if not lines:
        return
    data = b"".join(_with_reason(line, reason) + b"\n" for line, reason in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)  # one that is just being retried waits for these lines too
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


def _with_reason(line: bytes, reason: str) -> bytes:
    """The line as it was, and why it was refused: the key is ignored when the line is read again."""
    if not line.startswith(b"{") or not line.endswith(b"}") or line == b"{}":
        return line  # a broken one
    line = _REASON.sub(b"}", line)  # of an earlier time
    return line[:-1] + b',"refused":' + json_text.dumps(reason[:500]).encode() + b"}"
