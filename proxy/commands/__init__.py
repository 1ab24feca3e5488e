"""The subcommands, one module per group, each registered with `stellarchat`."""

import click

from proxy.commands import backup, check, doctor, export, keys, migrate, prune, serve, stats

COMMANDS: tuple[click.Command, ...] = (
    serve.serve_command,
    doctor.doctor_command,
    backup.backup_command,
    backup.restore_command,
    check.check_command,
    export.export_command,
    export.import_command,
    migrate.migrate_command,
    prune.prune_command,
    stats.stats_command,
    keys.keys,
)
