"""`stellarchat backup` and `restore`."""

import time
from pathlib import Path

import click

from proxy import backup, settings
from proxy.commands.console import database_path, says_errors, shown_progress

# The disk is the chats' as long as they need it.
_PAUSE_SECONDS = 0.005


@click.command("backup")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace FILE where it is there already.")
@says_errors
def backup_command(*, file: Path, force: bool) -> None:
    """Copy the database into FILE, also while it is served. The copy is checked before it takes its name."""
    with shown_progress("backup") as show:

        def progress(done: int, total: int) -> None:
            show(done, total)
            time.sleep(_PAUSE_SECONDS)

        backup.backup(database_path(), file, progress=progress, overwrites=force)
    click.echo(f"{file}: {file.stat().st_size:,} bytes, checked")


@click.command("restore")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace the database that is there.")
@says_errors
def restore_command(*, file: Path, force: bool) -> None:
    """Put the backup FILE in the database's place, checked first. The server must be stopped."""
    path = settings.load().database_path
    with shown_progress("restore") as show:
        backup.restore(file, path, progress=show, overwrites=force)
    click.echo(f"{path}: restored from {file}")
