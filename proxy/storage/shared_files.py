"""Files shared by the processes of one host: a private folder in memory, and locks that end with their process."""

import fcntl
import os
import stat
from hashlib import sha256
from pathlib import Path

_MEMORY = Path("/dev/shm")  # noqa: S108 - we use private folders inside it


def memory_folder(database: Path, purpose: str = "") -> Path | None:
    """A private folder in memory for the processes that use the database; None if there cannot be one.

    Memory-mapped files belong there: on a stalled disk, writing to one could block the event loop.
    """
    digest = sha256(os.fsencode(database.absolute())).hexdigest()[:16]
    folder = _MEMORY / f"stellarchat-{os.geteuid()}-{digest}{purpose}"
    return folder if _is_ours(folder) else None


def lock_file(path: Path, how: int) -> int | None:
    """Opens and locks the file; None if another process holds the lock."""
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


def _is_ours(folder: Path) -> bool:
    """Whether only we can access the folder; `/dev/shm` is writable for everyone."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
