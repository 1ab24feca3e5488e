"""`stellarchat export` and `stellarchat import`."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import click

from proxy.commands.console import as_json_option, confirmed, print_json, private_files, shown_progress
from proxy.commands.opening import existing_database, opened_or_created
from proxy.maintenance import broken_rows, export, imports
from proxy.maintenance.export import FORMATS, Format, Scope
from proxy.maintenance.imports import Imported
from proxy.settings import ConfigurationError
from proxy.storage import queries
from proxy.storage.engine import opened


@click.command("export", short_help="Write the history to a file.")
@click.argument("file", type=click.File("wb", lazy=True), default="-")
@click.option("--user", "user_id", help="Only this user's sessions.")
@click.option("--session", "session_id", help="Only this session, by its own id or the client's id.")
@click.option("--format", "format_", type=click.Choice(FORMATS), default="jsonl", show_default=True)
@click.option("--completed-only", is_flag=True, help="openai: only branches that end with a complete reply.")
def export_command(
    *, file: BinaryIO, user_id: str | None, session_id: str | None, format_: Format, completed_only: bool
) -> None:
    """Write the history to FILE, or to standard output, even while the database is in use. The file is readable only by
    its owner. Damaged rows are listed on stderr, and the exit code is then 1."""
    _refuse_file(file.name)
    with private_files(), opened(existing_database()) as connection, connection.snapshot():
        if session_id is not None:
            found = queries.sessions.find_session_id(connection, id_=session_id, user_id=user_id)
            if found is None:
                raise ConfigurationError(f"there is no session {session_id}")
            session_id = found
        scope = Scope(user_id=user_id, session_id=session_id, completed_only=completed_only)
        total = export.count_sessions(connection, scope)
        done = 0
        file.write(b"")  # creates the file even if there is nothing to write
        with shown_progress("export") as show:
            for text in export.export(connection, scope, format_=format_):
                file.write(text.encode())
                if text.startswith(_SESSION_STARTS):
                    done += 1
                    show(done, max(done, total))
        if file.name != "-":
            click.echo(f"{file.name}: {done:,} {'session' if done == 1 else 'sessions'}")
        found_broken = broken_rows.find_broken_rows(
            connection, limit=_NAMED_MAX, user_id=user_id, session_id=session_id
        )
        _say_broken(found_broken)


def _refuse_file(name: str) -> None:
    """Raises ConfigurationError before the export would replace a database or a backup of one, or without a folder."""
    if name == "-":
        return
    path = Path(name)
    if not path.parent.is_dir():
        raise ConfigurationError(f"there is no folder {path.parent}; create it first")
    if path.is_dir():
        raise ConfigurationError(f"{name or path} is a folder; name a file in it")
    if path.is_file() and _begins_as_database(path):
        raise ConfigurationError(f"{name} is a database, which the export would replace; name another file")


def _begins_as_database(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _say_broken(rows: list[str]) -> None:
    """Lists the rows that could not be exported exactly, and exits with code 1."""
    for row in rows:
        click.echo(f"stellarchat: {row}", err=True)
    if rows:
        sys.exit(1)


_NAMED_MAX = 1000  # broken rows listed
_SESSION_STARTS = ('{"kind":"session"', "# ", '{"messages"')


@click.command("import", short_help="Add an exported history to the database.")
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--yes", is_flag=True, help="Do not ask before importing into a database that contains chats.")
@as_json_option
def import_command(*, file: BinaryIO, yes: bool, as_json: bool) -> None:
    """Import a jsonl export from FILE or standard input; existing rows are kept. Invalid lines are listed and skipped;
    then the exit code is 1."""
    if file.isatty():
        raise click.UsageError("Name the FILE, or give it on standard input.")
    with opened_or_created(quiet=as_json) as connection, shown_progress("import") as show:
        if export.count_sessions(connection, Scope()):
            confirmed("The database contains chats, and an import cannot be undone.", yes=yes)
        size = _size(file)

        def progress(imported: Imported) -> None:
            show(imported.read_bytes, max(size, imported.read_bytes))

        imported = imports.load(connection, _lines(file), progress=progress)
    added = asdict(imported)
    del added["read_bytes"]
    refused, count = added.pop("refused"), added.pop("refused_count")
    if as_json:
        print_json({**added, **({"refused": refused, "refused_count": count} if count else {})})
    else:
        click.echo("added: " + ", ".join(f"{number:,} {kind}" for kind, number in added.items()))
        for reason in refused:
            click.echo(f"stellarchat: {reason}", err=True)
    if count:
        click.echo(f"stellarchat: {count:,} lines of the file were skipped", err=True)
        sys.exit(1)


def _size(file: BinaryIO) -> int:
    if not file.seekable():
        return 0
    size = file.seek(0, 2)
    file.seek(0)
    return size


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Reads line by line. Of a line over the limit, only enough is read to detect that."""
    while line := file.readline(imports.LINE_BYTES_MAX + 1):
        yield line
        while len(line) > imports.LINE_BYTES_MAX and not line.endswith(b"\n"):
            line = file.readline(imports.LINE_BYTES_MAX + 1)
