"""Finds and opens the database of a command, or says in one line why it cannot be used."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from proxy import settings
from proxy.settings import ConfigurationError, Settings
from proxy.storage.connection import Connection
from proxy.storage.engine import opened
from proxy.storage.unusable import folder_error


def existing_database() -> Settings:
    """The settings; raises ConfigurationError if their database does not exist."""
    loaded = settings.load()
    if not loaded.is_postgresql:
        want_file(loaded.database_path)
    return loaded


def database_file() -> Path:
    """The SQLite file. Raises ConfigurationError if there is none."""
    loaded = settings.load()
    if loaded.is_postgresql:
        raise ConfigurationError("the history is on PostgreSQL: use pg_dump, pg_basebackup or what your host has")
    return want_file(loaded.database_path)


@contextmanager
def opened_or_created(*, quiet: bool) -> Iterator[Connection]:
    """The database; says so if it was created, because the command may have been given in the wrong folder."""
    loaded = settings.load()
    is_new = not loaded.is_postgresql and not os.path.lexists(loaded.database_path)
    with opened(loaded, makes=True) as connection:
        if is_new and not quiet:
            click.echo(f"The database {loaded.database_name} did not exist; it has been created.", err=True)
        yield connection


def want_file(path: Path) -> Path:
    """The path of an existing file. Raises ConfigurationError."""
    try:
        path.stat()
    except PermissionError as exc:
        raise ConfigurationError(
            f"cannot use the database {path.absolute()}: {exc.strerror}: run this as the user of the server"
        ) from exc
    except OSError:
        pass  # it is not there
    if path.is_dir():
        raise ConfigurationError(folder_error(path.absolute()))
    if not path.is_file():
        raise ConfigurationError(
            f"there is no database {path.absolute()}: go to the folder the server was started in, or set DATABASE_URL"
        )
    return path
