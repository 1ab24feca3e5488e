"""`stellarchat stats`: counts rows, tokens and disk space."""

import time
from pathlib import Path
from typing import Any

import click

from proxy.commands.console import as_json_option, print_json
from proxy.commands.opening import existing_database
from proxy.ids import timestamp
from proxy.settings import Settings
from proxy.storage import queries
from proxy.storage.engine import opened

_DAY_SECONDS = 86_400
# Suffixes of the database's name. The write-ahead log holds what is not yet in the database file.
_FILES = {"database": "", "log": "-wal", "search": "-search"}


@click.command("stats", short_help="Count users, sessions, messages and tokens.")
@click.option(
    "--days", type=click.IntRange(1, 36_600), default=30, show_default=True, help="Days of token usage to show."
)
@as_json_option
def stats_command(*, days: int, as_json: bool) -> None:
    """Show the numbers of users, sessions and messages, tokens by day and model, and the size on disk."""
    stats = _stats(existing_database(), days=days)
    if as_json:
        print_json(stats)
        return
    for name, count in stats["counts"].items():
        click.echo(f"{name:<12}{count:>16,}")
    for name, size in stats["bytes"].items():
        click.echo(f"{name + ' file':<14}{size / 2**20:>14,.1f} MiB")
    if stats["tokens"]:
        click.echo(f"\n{'day':<12}{'chats':>10}{'prompt':>14}{'completion':>14}  model")
    for row in stats["tokens"]:
        numbers = f"{row['exchanges']:>10,}{row['prompt_tokens']:>14,}{row['completion_tokens']:>14,}"
        click.echo(f"{row['day']:<12}{numbers}  {row['model'] or '-'}")


def _stats(loaded: Settings, *, days: int) -> dict[str, Any]:
    with opened(loaded) as connection, connection.snapshot():
        since = timestamp(max(0.0, time.time() - days * _DAY_SECONDS))
        counts = queries.stats.count_everything(connection)
        tokens = queries.stats.list_tokens_by_day(connection, since=since)
    files = {} if loaded.is_postgresql else _FILES
    sizes = {name: _size(loaded.database_path, suffix) for name, suffix in files.items()}
    return {"counts": counts, "bytes": sizes, "tokens": tokens}


def _size(path: Path, suffix: str) -> int:
    file = path.with_name(path.name + suffix)
    return file.stat().st_size if file.is_file() else 0
