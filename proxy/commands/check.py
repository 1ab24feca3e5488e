"""`stellarchat check`."""

import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import click

from proxy import settings
from proxy.commands.console import as_json_option, database_path, print_json, says_errors, shown_progress
from proxy.maintenance import check
from proxy.maintenance.check import Problem
from proxy.settings import ConfigurationError
from proxy.storage.errors import StorageDamagedError, StorageError
from proxy.storage.sqlite import connect_existing


@click.command("check")
@as_json_option
@says_errors
def check_command(*, as_json: bool) -> None:
    """Check the database, also while it is served. Exit code 1 when something is wrong."""
    path = database_path()
    problems = _find_problems(path)
    if as_json:
        content = {"database": str(path), "ok": not problems, "problems": [asdict(each) for each in problems]}
        print_json(content)
    elif problems:
        for problem in problems:
            click.echo(f"{problem.message} ({problem.count}): {', '.join(problem.examples)}".rstrip(": "))
    else:
        click.echo(f"{path}: nothing is wrong")
    if problems:
        sys.exit(1)


def _find_problems(path: Path) -> list[Problem]:
    problems: list[Problem] = []
    steps = check.steps(path, state_path=settings.load().state_path)
    try:
        # One snapshot for all, however much is saved meanwhile.
        with closing(connect_existing(path)) as connection, connection.snapshot(), shown_progress("check") as show:
            for done, (name, find) in enumerate(steps):
                show(done, len(steps))
                problems += find(connection)
                if name in ("schema", "file") and problems:
                    break  # what follows would only say the same in other words
            show(len(steps), len(steps))
    except StorageDamagedError as exc:
        # Where the damage is decides which step comes upon it, and how.
        if not any(problem.kind == "file" for problem in problems):
            problems.append(Problem("file", "the file is damaged", 1, (str(exc),)))
    except StorageError as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc}") from exc
    return problems
