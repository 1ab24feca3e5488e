"""Terminal input and output that all commands share: errors, confirmation, progress bars, JSON, private files."""

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
from proxy.settings import ConfigurationError
from proxy.storage.errors import StorageError
from proxy.storage.unusable import why_unusable

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
            message = _why_unusable(exc)
        except OSError as exc:
            if exc.errno == errno.EPIPE:  # click handles it without a message
                raise
            message = f"{f'{exc.filename}: ' if exc.filename else ''}{os_trouble(exc)}"
        click.echo(f"stellarchat: {message}", err=True)
        raise click.exceptions.Exit(2)


def _why_unusable(exc: StorageError) -> str:
    loaded = settings.load()
    if loaded.is_postgresql:
        return f"cannot use the database {loaded.database_name}: {exc}"
    return why_unusable(Path(loaded.database_name), exc)


def os_trouble(exc: OSError) -> str:
    """The operating system's message, without Python's prefix."""
    return exc.strerror or str(exc)


@contextmanager
def private_files() -> Iterator[None]:
    """Files created in the block are accessible only by their owner."""
    # The mask applies when a file is created; after a later chmod, others could have opened the file in between.
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def confirmed(consequence: str, *, yes: bool) -> None:
    """Asks for confirmation on a terminal unless `--yes` was given; without a terminal, `--yes` is required."""
    if yes:
        return
    # A script that nobody watches must not wait for an answer for ever.
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{consequence} Confirm with --yes.")
    click.confirm(f"{consequence} Continue?", abort=True, err=True)


@contextmanager
def shown_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A function that takes done and total: shows a bar on a terminal, nothing in a pipe."""
    # A bar in a pipe or a log would be one line for each step.
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    with click.progressbar(length=0, label=label, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield show
