"""The commands beside `serve`: one module a group, each added to `stellarchat`."""

import click

from proxy.commands import backup, check, keys

COMMANDS: tuple[click.Command, ...] = (
    backup.backup_command,
    backup.restore_command,
    check.check_command,
    keys.keys,
)
