"""`stellarchat migrate`: copies a history from SQLite to PostgreSQL or back."""

from dataclasses import replace
from importlib.util import find_spec

import click

from proxy import settings
from proxy.commands.console import as_json_option, print_json, shown_progress
from proxy.commands.opening import want_file
from proxy.maintenance import check
from proxy.recording.spill import spill_files
from proxy.settings import ConfigurationError, Settings
from proxy.storage.connection import Connection
from proxy.storage.engine import opened
from proxy.storage.errors import StorageDamagedError, StorageError
from proxy.storage.unusable import why_unusable


@click.command("migrate", short_help="Copy the history to another database.")
@click.argument("source")
@click.argument("target")
@as_json_option
def migrate_command(*, source: str, target: str, as_json: bool) -> None:
    """Copy the whole history, including keys, from SOURCE into the empty TARGET, and compare both.

    One must be sqlite:///FILE, the other postgresql://…. No server may use SOURCE, which is not changed.
    """
    loaded = settings.load()
    of_source, of_target = (replace(loaded, database_url=url) for url in (source, target))
    if len({each.is_postgresql for each in (of_source, of_target)}) != 2:
        raise ConfigurationError("one of the two is sqlite:///FILE, the other postgresql://…")
    if find_spec("psycopg") is None:
        raise ConfigurationError("PostgreSQL needs psycopg: pip install 'stellarchat[postgresql]'")
    from proxy.storage import migration

    if not of_source.is_postgresql:
        want_file(of_source.database_path)
    try:
        with opened(of_source) as there, opened(of_target, makes=True) as here, shown_progress("migrate") as show:
            _refuse_served(of_source, there)
            copied = migration.copy(*migration.sides(there, here), progress=show)
    except StorageDamagedError as exc:
        of_file = of_target if of_source.is_postgresql else of_source
        raise ConfigurationError(f"nothing is migrated: {why_unusable(of_file.database_path, exc)}") from exc
    except StorageError as exc:
        raise ConfigurationError(f"nothing is migrated: {exc}") from exc
    counts = {table: each.rows for table, each in copied.items()}
    if as_json:
        print_json({"source": of_source.database_name, "target": of_target.database_name, "rows": counts})
    else:
        click.echo(f"{sum(counts.values()):,} rows of {len(counts)} tables are in {of_target.database_name}, compared")


def _refuse_served(source: Settings, connection: Connection) -> None:
    """Raises ConfigurationError if a server or a spill file still has writes for the source, which would be missing."""
    is_served = source.is_postgresql and check.living_anywhere(connection)
    if is_served or spill_files(source.database_path, folder=source.state_path):
        raise ConfigurationError(
            f"{source.database_name} is in use by a server, or a spill file has writes for it: stop the server, "
            "or start and stop it once so that they are stored"
        )
