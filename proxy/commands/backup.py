"""`stellarchat backup` and `stellarchat restore`."""

import time
from pathlib import Path

import click

from proxy import settings
from proxy.access.door_marker import DoorMarker
from proxy.commands.console import as_json_option, print_json, shown_progress
from proxy.commands.opening import database_file
from proxy.maintenance import backup
from proxy.settings import ConfigurationError

# Pause between steps, so that chats have priority on the disk.
_PAUSE_SECONDS = 0.005


@click.command("backup", short_help="Copy the database into a file.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@as_json_option
def backup_command(*, file: Path, force: bool, as_json: bool) -> None:
    """Copy the database into FILE, even while it is in use. The copy is verified before it gets its name."""
    with shown_progress("backup") as show:

        def progress(done: int, total: int) -> None:
            show(done, total)
            time.sleep(_PAUSE_SECONDS)

        backup.backup(database_file(), file, progress=progress, overwrites=force)
    size = file.stat().st_size
    if as_json:
        print_json({"file": str(file), "bytes": size})
    else:
        click.echo(f"{file}: {size:,} bytes, checked")


@click.command("restore", short_help="Replace the database by a backup.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace the existing database.")
@as_json_option
def restore_command(*, file: Path, force: bool, as_json: bool) -> None:
    """Replace the database with the verified backup FILE. The server must be stopped."""
    loaded = settings.load()
    if loaded.is_postgresql:
        raise ConfigurationError("the history is on PostgreSQL: use pg_restore, or the tools of your host")
    path = loaded.database_path
    with shown_progress("restore") as show:
        backup.restore(file, path, progress=show, overwrites=force, state_path=loaded.state_path)
    if as_json:
        print_json({"database": str(path), "file": str(file), "bytes": path.stat().st_size})
    else:
        click.echo(f"{path}: restored from {file}")
    if (marker := DoorMarker(loaded.database_path, folder=loaded.state_path).find()) is not None:
        click.echo(
            f"API keys stay required, because {marker.absolute()} exists; the valid keys are those in {file}.", err=True
        )
