"""`stellarchat check`: verifies the database's integrity."""

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict

import click

from proxy.commands.console import as_json_option, print_json, shown_progress
from proxy.commands.opening import existing_database
from proxy.maintenance import check
from proxy.maintenance.check import Problem
from proxy.settings import Settings
from proxy.storage import sqlite_file
from proxy.storage.connection import Connection
from proxy.storage.engine import opened, refuse_old_schema
from proxy.storage.errors import StorageDamagedError, StorageNotADatabaseError
from proxy.storage.sqlite import connect_existing

_DAMAGED = (
    "stellarchat: stop the server and restore a backup (`stellarchat restore FILE --force`); "
    "before that, `stellarchat export FILE` may save the part that can still be read"
)


@click.command("check", short_help="Check the database for damage.")
@as_json_option
def check_command(*, as_json: bool) -> None:
    """Check the database, even while it is in use. Exit code 1 if there are problems."""
    loaded = existing_database()
    name = loaded.database_name
    problems = _find_problems(loaded)
    if as_json:
        content = {"database": name, "ok": not problems, "problems": [asdict(each) for each in problems]}
        print_json(content)
    elif problems:
        for problem in problems:
            click.echo(f"{problem.message} ({problem.count}): {', '.join(problem.examples)}".rstrip(": "))
        if any(problem.kind == "file" for problem in problems):
            click.echo(_DAMAGED, err=True)
    else:
        click.echo(f"{name}: no problems found")
    if problems:
        sys.exit(1)


def _find_problems(loaded: Settings) -> list[Problem]:
    problems: list[Problem] = []
    living = check.living_anywhere if loaded.is_postgresql else None
    steps = check.steps(loaded.database_path, state_path=loaded.state_path, living=living)
    if loaded.is_postgresql:
        steps = [step for step in steps if step[0] not in check.OF_FILES]
    try:
        # One snapshot for all steps, so that concurrent chats do not matter.
        with _opened(loaded) as connection, connection.snapshot(), shown_progress("check") as show:
            for done, (name, find) in enumerate(steps):
                show(done, len(steps))
                problems += find(connection)
                if name in ("schema", "file") and problems:
                    break  # later steps would report the same damage
                if name == "schema":
                    refuse_old_schema(loaded, connection)
            show(len(steps), len(steps))
    except StorageNotADatabaseError:
        raise
    except StorageDamagedError as exc:
        # A damaged file may make any step fail, in any way.
        if not any(problem.kind == "file" for problem in problems):
            problems.append(Problem("file", "the file is damaged", 1, (str(exc),)))
    return problems


@contextmanager
def _opened(loaded: Settings) -> Iterator[Connection]:
    """Opens the database; a newer or changed schema is reported by a step."""
    if loaded.is_postgresql:
        with opened(loaded) as connection:
            yield connection
        return
    with closing(connect_existing(loaded.database_path)) as connection:
        if not sqlite_file.is_ours(connection):  # it is empty; `connect_existing` rejects other programs' files
            refuse_old_schema(loaded, connection)
        yield connection
