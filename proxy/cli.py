"""The command `stellarchat`."""

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NoReturn

import click

from proxy import settings
from proxy.commands import COMMANDS
from proxy.settings import ConfigurationError, Settings
from proxy.storage import queries
from proxy.storage.sqlite import Database
from proxy.telemetry import logs, worker_files


class _ServeCommand(click.Command):
    """Lists every setting below the options."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for each in fields(Settings):
            default = settings.shown(each.default)
            note = f" [default: {default}]" if default else ""
            rows.append((each.metadata["name"], each.metadata["meaning"] + note))
        with formatter.section("Settings (environment or .env)"):
            formatter.write_dl(rows, col_max=44)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="stellarchat")
def cli() -> None:
    """StellarChat: an OpenAI-compatible proxy that saves every chat, once, in SQLite."""


@cli.command(cls=_ServeCommand)
@click.option("--host", help="Address to listen on.")
@click.option("--port", help="Port to listen on; 0 takes a free one.")
@click.option("--upstream", help="vLLM's address.")
@click.option("--workers", help="Processes on the one database.")
@click.option("--backup-every", help="Time between backups, such as 24h.")
@click.option("--backup-keep", help="Backups kept, the newest ones.")
@click.option("--demo", is_flag=True, help="Chat with a small built-in echo model instead of vLLM.")
def serve(*, demo: bool, **given: str | None) -> None:
    """Run the proxy."""
    if demo and given["upstream"]:
        raise click.UsageError("--demo is instead of --upstream: give one of them.")
    options = {f"STELLARCHAT_{name.upper()}": value for name, value in given.items()}
    options["STELLARCHAT_UPSTREAM_URL"] = options.pop("STELLARCHAT_UPSTREAM")
    options["STELLARCHAT_DEMO"] = "on" if demo else None
    _run(lambda: _serve({name: value for name, value in options.items() if value is not None}))


def main() -> None:
    """The console script."""
    _run(cli)


for each_command in COMMANDS:
    cli.add_command(each_command)


def _run(command: Callable[[], None]) -> None:
    try:
        command()
    except ConfigurationError as exc:
        _refuse(str(exc))


def _refuse(message: str) -> NoReturn:
    click.echo(f"stellarchat: {message}", err=True)
    sys.exit(2)


def _serve(options: Mapping[str, str]) -> None:
    from proxy import server

    loaded = settings.load(options)
    for name, meant in settings.unknown_names().items():
        hint = f"; did you mean {meant}?" if meant else ""
        click.echo(f"stellarchat: warning: {name} is no setting of this program{hint}", err=True)
    os.environ.update(options)  # for the application, which each worker process makes of the environment
    logs.configure(loaded)
    asyncio.run(_migrate(loaded))
    worker_files.clear(loaded.database_path)
    listener = server.listen(loaded)
    server.serve(loaded, listener, announce=lambda: click.echo(_ready_line(loaded, listener.getsockname())))


async def _migrate(loaded: Settings) -> None:
    """Find out before the first worker starts whether the database can be used, and who may come in."""
    database = Database(loaded.database_path)
    await database.open(readers=1)
    try:
        has_key = loaded.admin_key is not None or await database.read(queries.key_exists)
    finally:
        await database.close()
    if not (has_key or loaded.is_loopback or loaded.auth == "off"):
        raise ConfigurationError(
            f"STELLARCHAT_HOST={loaded.host} lets others in and there is no API key: "
            "make one with `stellarchat keys create --user ID`, or set STELLARCHAT_AUTH=off"
        )


def _ready_line(loaded: Settings, address: tuple[Any, ...]) -> str:
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    model = "the built-in demo model, not vLLM" if loaded.demo else settings.without_password(loaded.upstream_url)
    return f"StellarChat is ready: http://{host}:{address[1]}/v1 · upstream: {model} · history: {loaded.database_path}"
