"""Shared by the commands: error output, confirmation, progress bars, and opening the database."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import orjson

from proxy import settings
from proxy.settings import ConfigurationError, Settings
from proxy.storage.errors import StorageDamagedError, StorageError

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")


def print_json(content: dict[str, Any]) -> None:
    """Prints the result of `--json`."""
    click.echo(orjson.dumps(content).decode())


class ErrorsInOneLine(click.Group):
    """Prints configuration, database and file errors of its commands as one line on stderr, exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ConfigurationError as exc:
            message = str(exc)
        except StorageError as exc:
            message = storage_trouble("the database cannot be used", exc)
        except OSError as exc:
            if exc.errno == errno.EPIPE:  # click ends it in silence
                raise
            message = f"{os_trouble(exc)}{f': {exc.filename}' if exc.filename else ''}"
        click.echo(f"stellarchat: {message}", err=True)
        raise click.exceptions.Exit(2)


def storage_trouble(what: str, exc: StorageError) -> str:
    """What is wrong with a database, and what to do."""
    advice = "; `stellarchat check` says more; else restore a backup" if isinstance(exc, StorageDamagedError) else ""
    return f"{what}: {exc}{advice}"


def os_trouble(exc: OSError) -> str:
    """The system's own words, without Python's."""
    return exc.strerror or str(exc)


@contextmanager
def private_files() -> Iterator[None]:
    """Files created in the block are accessible only by their owner."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def confirmed(question: str, *, yes: bool) -> None:
    """Asks for confirmation on a terminal unless `--yes` was given; without a terminal, `--yes` is required."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{question} Confirm with --yes.")
    click.confirm(question, abort=True, err=True)


def existing_database() -> Settings:
    """The settings; raises ConfigurationError if their database does not exist."""
    loaded = settings.load()
    if not loaded.is_postgresql:
        _existing(loaded.database_path)
    return loaded


def database_file() -> Path:
    """The SQLite file. Raises ConfigurationError if there is none."""
    loaded = settings.load()
    if loaded.is_postgresql:
        raise ConfigurationError("the history is on PostgreSQL: use pg_dump, pg_basebackup or what your host has")
    return _existing(loaded.database_path)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ConfigurationError(
            f"there is no database {path.absolute()}: go to the folder the server was started in, or set DATABASE_URL"
        )
    return path


@contextmanager
def shown_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A function that takes done and total: shows a bar on a terminal, nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    with click.progressbar(length=0, label=label, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield show
