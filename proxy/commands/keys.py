"""`stellarchat keys`: creates, lists and revokes API keys. Changes reach a running server within seconds."""

import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from proxy.access.keys import NewKey, create_key
from proxy.commands.console import as_json_option, print_json
from proxy.commands.opening import existing_database, opened_or_created
from proxy.ids import timestamp
from proxy.maintenance import export
from proxy.maintenance.export import Scope
from proxy.settings import ConfigurationError
from proxy.storage import queries
from proxy.storage.engine import opened
from proxy.storage.queries.keys import ApiKey
from proxy.storage.queries.users import DEFAULT_USER_ID

# JSON numbers are exact up to here (RFC 8259 §6). 0 would be a key that can do nothing: revoke it instead.
_COUNT = click.IntRange(min=1, max=2**53)
_COLUMNS = ("KEY ID", "KEY", "USER", "NAME", "ADMIN", "STATE", "CREATED", "LAST USED", "EXPIRES")


def _expiry(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Parses a duration from now (`90d`, `12h`) or a date into a timestamp."""
    if value is None:
        return None
    now = datetime.now(UTC)
    try:
        moment = _moment(value, now)
    except (ValueError, OverflowError):
        raise click.BadParameter("expected a time from now such as 90d or 12h, or a date such as 2027-01-31") from None
    if moment <= now:
        raise click.BadParameter("this is in the past")
    return timestamp(moment.timestamp())


def _moment(value: str, now: datetime) -> datetime:
    if match := re.fullmatch(r"([0-9]{1,6})([dh])", value):
        number = int(match[1])
        return now + (timedelta(days=number) if match[2] == "d" else timedelta(hours=number))
    moment = datetime.fromisoformat(value)
    # The server's own time zone may differ from the operator's; UTC is the same for both.
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@click.group()
def keys() -> None:
    """Manage API keys. Only their SHA-256 hashes are stored."""


@keys.command()
@click.option("--user", "user_id", required=True, help="The user whose data the key reads and writes.")
@click.option("--admin", "is_admin", is_flag=True, help="The key may access all users' data and control the engine.")
@click.option("--name", help="A name to tell keys apart.")
@click.option("--expires", "expires_at", callback=_expiry, help="90d, 12h, or a date. Default: never.")
@click.option("--requests-per-minute", type=_COUNT, help="Quota, over all workers. Default: none.")
@click.option("--tokens-per-day", type=_COUNT, help="Quota for all endpoints together. Default: none.")
@as_json_option
def create(*, as_json: bool, **given: Any) -> None:
    """Create a key and print it. It is shown only once."""
    grant = NewKey(**given)
    if not grant.user_id.strip():
        raise click.BadParameter("it is empty", param_hint="'--user'")
    with opened_or_created(quiet=as_json) as connection, connection.transaction():
        # Read before the key is created: the first key changes what other callers need, and that must be said.
        is_first = not queries.keys.key_exists(connection)
        others = export.count_sessions(connection, Scope(user_id=DEFAULT_USER_ID))
        secret, row = create_key(connection, grant)
    if as_json:
        print_json({"key": secret, **_shown(row)})
        return
    # Alone on stdout, so that a shell can capture it; all else goes to stderr.
    click.echo(secret)
    click.echo(f"Key {row.key_id} of user {_printable(row.user_id)}. It is not shown again: save it now.", err=True)
    if is_first:
        _say_what_changes(row.user_id, has_sessions=bool(others))


def _say_what_changes(user_id: str, *, has_sessions: bool) -> None:
    click.echo(
        "From now on every caller needs a key (a running server notices within 2 s), unless STELLARCHAT_AUTH=off.",
        err=True,
    )
    if has_sessions and user_id != DEFAULT_USER_ID:
        click.echo(
            f"The chats without a key belong to {DEFAULT_USER_ID}, whose data this key cannot access; "
            f"`stellarchat keys create --user {DEFAULT_USER_ID}` creates one that can.",
            err=True,
        )


@keys.command("list")
@click.option("--user", "user_id", help="Only the keys of this user.")
@as_json_option
def list_(*, user_id: str | None, as_json: bool) -> None:
    """List all keys by their first characters."""
    with opened(existing_database()) as connection:
        listed = queries.keys.list_keys(connection, user_id=user_id)
    if as_json:
        print_json({"keys": [_shown(key) for key in listed]})
        return
    rows = [_COLUMNS, *map(_row, listed)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys.command(short_help="Revoke a key.")
@click.argument("key")
def revoke(*, key: str) -> None:
    """Revoke a key, given by its id or by its first characters as shown by `list`."""
    try:
        loaded = existing_database()
    except ConfigurationError as exc:
        raise click.ClickException(f"There is no such key: {exc}") from exc
    with opened(loaded) as connection, connection.transaction():
        revoked = queries.keys.revoke_key(connection, key, now=timestamp())
        if len(revoked) > 1:  # leaves the transaction, so that none is revoked
            raise click.ClickException(f"{len(revoked)} keys begin with these characters; give the full id.")
    if not revoked:
        raise click.ClickException(
            "There is no such key, or it has already been revoked; `stellarchat keys list` shows all."
        )
    click.echo(f"Revoked {revoked[0]}; a running server rejects it within 2 s.")


def _state(key: ApiKey) -> str:
    return "revoked" if key.revoked_at else "expired" if key.expires_at and key.expires_at <= timestamp() else "valid"


def _shown(key: ApiKey) -> dict[str, Any]:
    """The stored data of a key, without its hash."""
    shown = asdict(key) | {"is_admin": bool(key.is_admin), "state": _state(key)}
    del shown["key_hash"]
    return shown


def _row(key: ApiKey) -> tuple[str, ...]:
    return (
        key.key_id,
        key.hint + "…",
        _printable(key.user_id),
        _printable(key.name or "-"),
        "yes" if key.is_admin else "-",
        _state(key),
        key.created_at,
        key.last_used_at or "never",
        key.expires_at or "never",
    )


def _printable(text: str) -> str:
    """Removes control characters: user ids come from callers and must not control the terminal."""
    return text if text.isprintable() else ascii(text)
