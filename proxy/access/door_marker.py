"""The marker file: remembers that API keys were required, in case the database's files are lost."""

import asyncio
import errno
import logging
import os
from contextlib import suppress
from pathlib import Path

from proxy.storage.file_identity import sync_folder
from proxy.storage.own_thread import OwnThread

logger = logging.getLogger(__name__)

# As often as the gate looks for keys: meanwhile only the database remembers that they are required.
_RETRY_SECONDS = 2.0
# How long a start waits for the file. The disk may be stalled.
_START_SECONDS = 1.0
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
_TEXT = (
    "StellarChat required API keys here. While this file exists, STELLARCHAT_AUTH=auto requires them even if the "
    "database has none.\nTo open the server to everyone on purpose, stop it and delete this file.\n"
)


class DoorMarker:
    """The marker file of one database. Its existence is the information; the text is for people.

    The name does not begin with the database's, so that `rm stellarchat.db*` leaves the file.
    """

    def __init__(self, database_path: Path, *, folder: Path) -> None:
        name = f"keys-required-{database_path.name}"
        self._path = folder / name
        # Also beside the database, from before the state folder was set.
        self._places = dict.fromkeys((self._path, database_path.parent / name))
        self._thread = OwnThread("door-marker")
        self._task: asyncio.Task[None] | None = None

    def find(self) -> Path | None:
        """The file, if it exists. One that cannot be looked at counts as existing."""
        return next((path for path in self._places if _exists(path)), None)

    def write(self) -> None:
        """Creates the file and syncs it, unless it exists. Raises OSError."""
        if _exists(self._path):
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:  # another worker has just created it
            return
        try:
            with suppress(OSError):  # on a full disk the name is enough
                os.write(file, _TEXT.encode())
            os.fsync(file)
        finally:
            os.close(file)
        sync_folder(self._path.parent)

    def write_soon(self) -> None:
        """Creates the file in a thread of its own, and tries again until it exists."""
        if self._task is None:
            self._task = asyncio.create_task(self._write_with_retries(), name="door-marker")

    async def written(self) -> None:
        """Waits a moment for `write_soon`."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=_START_SECONDS)

    async def close(self) -> None:
        """Stops trying."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._thread.stop()

    async def _write_with_retries(self) -> None:
        is_logged = False
        while True:
            try:
                await self._thread.run(self.write)
            except OSError as exc:
                if not is_logged:
                    logger.warning(
                        "could not write %s; without it, the server is open to everyone if its database is lost: %s",
                        self._path,
                        exc.strerror,
                    )
                is_logged = True
            else:
                return
            await asyncio.sleep(_RETRY_SECONDS)


def _exists(path: Path) -> bool:
    try:
        os.lstat(path)
    except OSError as exc:
        return exc.errno not in _ABSENT
    return True
