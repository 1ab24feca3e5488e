"""Says in one line why a database file cannot be used, and what to do about it."""

import os
from pathlib import Path

from proxy.storage.errors import StorageDamagedError, StorageError, StorageLockedError, StorageNotADatabaseError


def why_unusable(path: Path, exc: StorageError) -> str:
    """The reason with the file's name and the next step, for an error of a command or of the start."""
    if isinstance(exc, StorageNotADatabaseError):
        return f"{path} is not an SQLite database; set DATABASE_URL to another file"
    if os.path.isdir(path):  # unlike Path.is_dir, it raises nothing if a folder above is closed to this user
        return folder_error(path)
    if isinstance(exc, StorageDamagedError):
        return f"the database {path} is damaged ({exc}): see `stellarchat check`, or restore a backup"
    if isinstance(exc, StorageLockedError):
        return f"the database {path} is locked by another program: try again when that program has ended"
    if os.path.exists(path) and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        return f"this user cannot write the database {path} and its folder: run this as the user of the server"
    return f"cannot use the database {path}: {exc}"


def folder_error(path: Path) -> str:
    """The error if the path of a database is a folder."""
    return f"cannot use the database {path}: it is a folder; set DATABASE_URL to a file"
