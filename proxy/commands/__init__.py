"""The subcommands of `stellarchat` other than `serve`, a module for each subject."""

import click

from proxy.commands import backup, check, export, keys

COMMANDS: tuple[click.Command, ...] = (
    backup.backup_command,
    backup.restore_command,
    check.check_command,
    export.export_command,
    export.import_command,
    keys.keys,
)
