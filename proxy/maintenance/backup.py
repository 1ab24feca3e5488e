"""Backup and restore: copies a database in use, verifies the copy, and puts a copy in place."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from proxy.ids import timestamp
from proxy.maintenance import check
from proxy.maintenance.job import is_leased, jobs_lock_path
from proxy.settings import ConfigurationError
from proxy.storage import queries, sqlite_file
from proxy.storage.errors import StorageDamagedError, StorageError
from proxy.storage.file_identity import sync_folder
from proxy.storage.sqlite import connect, connect_existing, prepare

Progress = Callable[[int, int], None]
"""Called with the bytes copied and the total after each step. An exception aborts the copy and removes it."""

_NAME = "stellarchat-"


def backup(source: Path, target: Path, *, progress: Progress, overwrites: bool = False) -> None:
    """Copies the database to a file, verified and synced. Raises ConfigurationError."""
    if not source.is_file():
        raise ConfigurationError(f"there is no database {source}")
    _refuse_target(source, target)
    if target.exists() and not overwrites:
        raise ConfigurationError(f"{target} is there already; choose another name or give --force")
    with closing(connect_existing(source)) as connection, _replacing(target) as partial:
        sqlite_file.copy_snapshot(connection, partial, progress=progress)
        _refuse_unusable(partial, name=str(source))


def restore(
    source: Path, database: Path, *, progress: Progress, overwrites: bool = False, state_path: Path | None = None
) -> None:
    """Replaces the database by a verified copy, migrated to the current schema. Raises ConfigurationError."""
    if not source.is_file():
        raise ConfigurationError(f"there is no file {source}")
    if database.exists() and database.samefile(source):
        raise ConfigurationError(f"{source} is the database itself; name a backup")
    _refuse_served(database, state_path)
    if database.exists() and not overwrites:
        raise ConfigurationError(f"{database} is there already; --force replaces it")
    _refuse_unusable(source, name=str(source))
    database.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(database) as partial:
        with closing(sqlite_file.open_read_only(source)) as connection:
            sqlite_file.copy(connection, partial, progress=progress)
        with closing(connect(partial)) as connection:
            prepare(connection)
            if _requires_keys(database):
                with connection.transaction():
                    queries.keys.require_keys(connection, now=timestamp())
            sqlite_file.checkpoint(connection)
        _refuse_unusable(partial, name=str(source))
        _refuse_served(database, state_path)
        _delete_log(database)


def _requires_keys(database: Path) -> bool:
    """Whether the replaced database required keys: restoring an older backup must not disable them."""
    try:
        with closing(sqlite_file.open_read_only(database)) as connection:
            return queries.keys.keys_were_required(connection)
    except StorageError:  # missing or damaged, which is why it is being replaced
        return False


def back_up_into(folder: Path, source: Path, *, keep: int, progress: Progress) -> Path:
    """Makes a scheduled backup named by its time; deletes the oldest ones so that `keep` remain."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = timestamp().replace(":", "").replace("-", "").replace(".", "")
    target = folder / f"{_NAME}{name}.db"
    for left in folder.glob(f".{_NAME}*.partial-*"):
        left.unlink(missing_ok=True)  # left by a killed process; only one process at a time makes scheduled backups
    backup(source, target, progress=progress)
    # Backups with a future date were made while the clock was ahead: delete them first. Never delete the new one.
    others = sorted(set(copies_in(folder)) - {target}, key=lambda copy: (copy.name <= target.name, copy.name))
    for old in others[: max(0, len(others) - (keep - 1))]:
        old.unlink(missing_ok=True)
    return target


def copies_in(folder: Path) -> list[Path]:
    """The scheduled backups, oldest first."""
    return sorted(folder.glob(f"{_NAME}*.db"))


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A temporary name beside `target`; renamed to it when the block ends without an exception."""
    if target.exists() and not target.is_file():  # a device or a socket would be gone for the whole machine
        raise ConfigurationError(f"{target} is not a file; name another one")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        yield partial
        os.replace(partial, target)
        sync_folder(target.parent)
    except OSError as exc:
        raise ConfigurationError(f"cannot write {target}: {exc.strerror}") from exc
    except StorageDamagedError:  # of the file that is copied
        raise
    except StorageError as exc:
        raise ConfigurationError(f"cannot write {target}: {exc}") from exc
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            partial.with_name(partial.name + suffix).unlink(missing_ok=True)


def _refuse_unusable(path: Path, *, name: str) -> None:
    try:
        with closing(sqlite_file.open_read_only(path)) as connection:
            for find in (check.find_foreign_schema, check.find_damage, check.find_broken_links):
                for problem in find(connection):
                    raise ConfigurationError(f"{name}: {problem.message}: {', '.join(problem.examples)}".rstrip(": "))
    except StorageError as exc:
        raise ConfigurationError(f"{name} cannot be read as a database: {exc}") from exc


def _refuse_target(source: Path, target: Path) -> None:
    """A backup must not overwrite a file of the database."""
    if not target.name:
        raise ConfigurationError("the name of the file is empty")
    if not target.parent.is_dir():
        raise ConfigurationError(f"there is no folder {target.parent}; create it first")
    if target.exists() and target.samefile(source):
        raise ConfigurationError(f"{target} is the database itself; name another file")
    if target.parent.samefile(source.parent) and target.name.startswith(f"{source.name}-"):
        raise ConfigurationError(f"{target} has the name of one of the database's own files; name another file")
    _refuse_served(target, None)


def _refuse_served(database: Path, state_path: Path | None) -> None:
    if check.living_workers(database, state_path=state_path) or is_leased(jobs_lock_path(database)):
        raise ConfigurationError(f"a server uses {database}; stop it first")


def _delete_log(database: Path) -> None:
    """Deletes the replaced file's log, which would damage the new database."""
    for suffix in ("-wal", "-shm", "-journal", "-search", "-search-wal", "-search-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
