"""`stellarchat serve`: options and help, checks before the start, and output on the terminal."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import fields

import click

from proxy import setting_values, settings
from proxy.access.door_marker import DoorMarker
from proxy.commands import upstream_watch
from proxy.demo import MODEL
from proxy.settings import ConfigurationError, Settings
from proxy.storage import queries
from proxy.storage.engine import database_of, find_schema, newest_schema
from proxy.storage.errors import StorageError
from proxy.telemetry import logs, worker_files

# The settings by group, in the order of `serve --help`; all others follow under "Limits and time-outs".
_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "The usual settings",
        (
            "STELLARCHAT_UPSTREAM_URL",
            "STELLARCHAT_UPSTREAM_API_KEY",
            "DATABASE_URL",
            "STELLARCHAT_HOST",
            "STELLARCHAT_PORT",
            "STELLARCHAT_AUTH",
            "STELLARCHAT_ADMIN_KEY",
            "STELLARCHAT_WORKERS",
            "STELLARCHAT_LOG_DIR",
            "STELLARCHAT_DEMO",
        ),
    ),
    (
        "Recording and history",
        (
            "STELLARCHAT_RECORDING",
            "STELLARCHAT_RECORD",
            "STELLARCHAT_STORE_FALSE",
            "STELLARCHAT_DURABILITY",
            "STELLARCHAT_ON_DISCONNECT",
            "STELLARCHAT_STREAM_USAGE",
            "STELLARCHAT_STITCHING",
            "STELLARCHAT_SESSION_HEADERS",
            "STELLARCHAT_FORWARD_SESSION",
            "STELLARCHAT_READBACK",
            "STELLARCHAT_RESPONSES_STATE",
            "STELLARCHAT_SEARCH_INDEX",
            "STELLARCHAT_WEB",
        ),
    ),
    (
        "Backups, retention and files",
        (
            "STELLARCHAT_BACKUP_EVERY",
            "STELLARCHAT_BACKUP_KEEP",
            "STELLARCHAT_RETENTION_DAYS",
            "STELLARCHAT_STATE_DIR",
        ),
    ),
    (
        "Logs and traces",
        (
            "STELLARCHAT_QUIET",
            "STELLARCHAT_LOG_LEVEL",
            "STELLARCHAT_LOG_FILE_BYTES",
            "STELLARCHAT_ACCESS_LOG_SAMPLE",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        ),
    ),
)


class _ServeCommand(click.Command):
    """Lists all settings in groups below the options."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = {each.metadata["name"]: _described(each.metadata["meaning"], each.default) for each in fields(Settings)}
        with formatter.section("Settings (environment or .env; options win)"):
            formatter.write_text(
                "NAME_FILE, such as STELLARCHAT_ADMIN_KEY_FILE, is the path of a file that contains the secret."
            )
        for heading, names in _GROUPS:
            with formatter.section(heading):
                formatter.write_dl([(name, rows.pop(name)) for name in names if name in rows], col_max=44)
        with formatter.section("Limits and time-outs"):
            formatter.write_dl(list(rows.items()), col_max=44)


def _described(meaning: str, default: object) -> str:
    shown = setting_values.shown(default)
    return f"{meaning} [default: {shown}]" if shown else meaning


@click.command("serve", short_help="Run the proxy.", cls=_ServeCommand)
@click.option("--host", help="Address to listen on.")
@click.option("--port", help="Port to listen on; 0 chooses a free one.")
@click.option("--upstream", help="vLLM's address, such as http://127.0.0.1:8000.")
@click.option("--workers", help="Number of processes that share the database.")
@click.option("--backup-every", help="Time between backups, such as 24h.")
@click.option("--backup-keep", help="Number of backups to keep.")
@click.option("--demo", is_flag=True, help="Chat with a small built-in echo model instead of vLLM.")
@click.option("--quiet", is_flag=True, help="Do not print a line per request, or upstream's state.")
def serve_command(*, demo: bool, quiet: bool, upstream: str | None, **given: str | None) -> None:
    """Run the proxy."""
    if demo and upstream is not None:
        raise click.UsageError("--demo is instead of --upstream: give one of them.")
    options = {f"STELLARCHAT_{name.upper()}": value for name, value in given.items()}
    options["STELLARCHAT_UPSTREAM_URL"] = upstream
    options["STELLARCHAT_DEMO"] = "on" if demo else None
    options["STELLARCHAT_QUIET"] = "on" if quiet else None
    _serve({name: value for name, value in options.items() if value is not None})


def _serve(options: Mapping[str, str]) -> None:
    from proxy import server  # imports uvicorn, which other commands do not need

    loaded = settings.load(options)
    for name, meant in settings.unknown_names().items():
        hint = f"; did you mean {meant}?" if meant else ""
        click.echo(f"stellarchat: warning: {name} is not a setting of this program{hint}", err=True)
    # Only a warning: a newer `.env` must not keep an older program from starting.
    os.environ.update(options)  # each worker process reads its settings from the environment
    # Before the database is opened, so that its errors are in the log, too.
    logs.configure(loaded)
    asyncio.run(_migrate(loaded))
    # Before workers start: files of a server that was killed would be counted as living workers.
    worker_files.clear(loaded.database_path)
    # Bound here and not in the workers: a port that is in use is one error and not one of each worker.
    listener = server.listen(loaded)
    address = listener.getsockname()[:2]
    try:
        upstream_watch.refuse_own_address(loaded, address)
    except ConfigurationError:
        listener.close()
        raise
    server.serve(loaded, listener, announce=lambda: _announce(loaded, address))


async def _migrate(loaded: Settings) -> None:
    """Checks before the first worker starts that the database can be used and whether keys are needed."""
    database = database_of(loaded)
    before = _schema_before(loaded)
    await database.open(readers=1)
    if before is not None and before < newest_schema(loaded):
        click.echo(
            f"The database was migrated from schema {before} to {newest_schema(loaded)}; "
            "older versions of StellarChat now reject it, and need a backup from before."
        )
    try:
        has_key = loaded.admin_key is not None or await database.read(queries.keys.key_exists)
        is_locked = loaded.auth == "required" or await database.read(queries.keys.keys_were_required)
    finally:
        await database.close()
    if not (has_key or loaded.is_loopback or loaded.auth == "off"):
        raise ConfigurationError(
            f"STELLARCHAT_HOST={loaded.host} is reachable by others, and there is no API key: "
            "create one with `stellarchat keys create --user ID`, or set STELLARCHAT_AUTH=off"
        )
    if loaded.auth != "off" and not has_key:
        _say_locked(loaded, is_locked=is_locked)


def _say_locked(loaded: Settings, *, is_locked: bool) -> None:
    """If keys are required although none exists, says why, and the next step."""
    marker = DoorMarker(loaded.database_path, folder=loaded.state_path).find()
    if is_locked:
        reason, other = "because they were before, but none exists", "set STELLARCHAT_AUTH=off"
    elif marker is not None:
        reason = f"because {marker.absolute()} says that they were before, but the database has none"
        other = "stop the server and delete that file to open it to everyone again"
    else:
        return
    click.echo(
        f"stellarchat: warning: API keys are required, {reason}: create one with "
        f"`stellarchat keys create --user ID`, or {other}",
        err=True,
    )


def _schema_before(loaded: Settings) -> int | None:
    try:
        return find_schema(loaded)
    except (ConfigurationError, StorageError):  # `open` reports it
        return None


def _announce(loaded: Settings, address: tuple[str, int]) -> None:
    base = base_url(address)
    upstream = (
        "the built-in demo model, not vLLM" if loaded.demo else setting_values.without_password(loaded.upstream_url)
    )
    page = f" · page: {base}/ui" if loaded.web else ""
    click.echo(f"StellarChat is ready: {base}/v1{page} · upstream: {upstream} · history: {loaded.database_name}")
    if loaded.is_postgresql:
        click.echo("PostgreSQL is experimental, for one proxy; no search. See docs/scale.md.")
    if loaded.demo:
        click.echo(upstream_watch.sample_line(base, MODEL))
    elif not loaded.quiet:
        upstream_watch.start(loaded, base)


def base_url(address: tuple[str, int]) -> str:
    """The server's base URL as seen from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0])  # noqa: S104 - compared, not listened on
    return f"http://[{host}]:{address[1]}" if ":" in host else f"http://{host}:{address[1]}"
