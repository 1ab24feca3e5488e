"""`stellarchat prune`: deletes old sessions."""

import re
import time
from datetime import timedelta

import click

from proxy.commands.console import as_json_option, confirmed, print_json, shown_progress
from proxy.commands.opening import existing_database
from proxy.maintenance import prune
from proxy.maintenance.prune import Pruned
from proxy.storage.connection import Connection
from proxy.storage.engine import opened

# Chats wait while a transaction holds the lock, so rest this many times longer between two transactions.
_REST = 4.0
# At least: after a very short transaction, a server's writer must get its turn, too.
_PAUSE_SECONDS = 0.03
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def _age(_ctx: click.Context, _param: click.Parameter, value: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,5})([hdw])", value)
    if match is None:
        raise click.BadParameter("expected an age such as 90d, 12w or 36h")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


@click.command("prune", short_help="Delete old sessions.")
@click.option("--older-than", "age", callback=_age, required=True, help="Time without activity, such as 90d.")
@click.option("--dry-run", is_flag=True, help="Only show what would be deleted.")
@click.option("--yes", is_flag=True, help="Do not ask before deleting.")
@as_json_option
def prune_command(*, age: timedelta, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete old sessions and free their disk space, even while the server is running."""
    before = prune.moment_before(age, now_seconds=time.time())
    with opened(existing_database()) as connection:
        pruned = prune.count_old(connection, before=before)
        if pruned and not dry_run:
            confirmed(
                f"{pruned.sessions:,} sessions, {pruned.messages:,} messages will be deleted permanently.",
                yes=yes,
            )
        if not dry_run:
            pruned = _prune(connection, before=before, expected=pruned)
    if as_json:
        content = {"before": before, "dry_run": dry_run, "sessions": pruned.sessions, "messages": pruned.messages}
        print_json(content)
    else:
        verb = "would be deleted" if dry_run else "deleted"
        click.echo(f"{pruned.sessions:,} sessions, {pruned.messages:,} messages {verb}")


def _prune(connection: Connection, *, before: str, expected: Pruned) -> Pruned:
    pruned = Pruned()
    with shown_progress("prune") as show:
        while some := _step(connection, before=before):
            pruned += some
            show(pruned.messages, max(pruned.messages, expected.messages))
        while _give_back(connection):
            pass
    return pruned


def _step(connection: Connection, *, before: str) -> Pruned:
    started = time.monotonic()
    with connection.transaction():
        some = prune.prune_some(connection, before=before)
    time.sleep(max(_PAUSE_SECONDS, _REST * (time.monotonic() - started)))
    return some


def _give_back(connection: Connection) -> bool:
    started = time.monotonic()
    with connection.transaction():
        has_more = prune.give_back_some(connection)
    time.sleep(max(_PAUSE_SECONDS, _REST * (time.monotonic() - started)) if has_more else 0)
    return has_more
