"""Shared by the commands: error output, confirmation, progress bars, and opening the database."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec

import click
import orjson

from proxy import settings
from proxy.settings import ConfigurationError, Settings

P = ParamSpec("P")


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")


def print_json(content: dict[str, Any]) -> None:
    """Prints the result of `--json`."""
    click.echo(orjson.dumps(content).decode())


def says_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Decorator: prints a ConfigurationError as one line on stderr and exits with code 2."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ConfigurationError as exc:
            click.echo(f"stellarchat: {exc}", err=True)
            sys.exit(2)

    return run


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
        raise ConfigurationError(f"there is no database {path}; DATABASE_URL names another")
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
