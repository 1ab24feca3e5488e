"""`stellarchat doctor`: finds configuration and environment problems, and says how to fix them."""

import asyncio
import errno
import os
import platform
import resource
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from proxy import settings
from proxy.commands.console import as_json_option, print_json
from proxy.settings import ConfigurationError, Settings
from proxy.storage import queries
from proxy.storage.database import Database
from proxy.storage.engine import database_of
from proxy.upstream.client import Upstream

_DISK_BYTES = 2**30
_DESCRIPTORS = 4096
# The clock cannot be right if it shows an earlier time.
_BUILT_AT = 1_764_000_000.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. If it is a problem, `advice` says how to fix it."""

    about: str
    is_well: bool
    message: str
    advice: str = ""


def _well(about: str, message: str) -> Finding:
    return Finding(about, is_well=True, message=message)


def _wrong(about: str, message: str, advice: str) -> Finding:
    return Finding(about, is_well=False, message=message, advice=advice)


@click.command("doctor")
@as_json_option
def doctor_command(*, as_json: bool) -> None:
    """Find problems and say how to fix them. Exit code 1 if there are any."""
    findings = list(_findings())
    if as_json:
        print_json({"ok": all(each.is_well for each in findings), "findings": [asdict(each) for each in findings]})
    else:
        for each in findings:
            mark = click.style("ok   ", fg="green") if each.is_well else click.style("wrong", fg="red", bold=True)
            click.echo(f"{mark} {each.about:<12} {each.message}")
            if not each.is_well:
                click.echo(f"      {'':<12} -> {each.advice}")
    if not all(each.is_well for each in findings):
        sys.exit(1)


def _findings() -> Iterator[Finding]:
    yield _well("python", f"{platform.python_version()} on {platform.system()}")
    try:
        loaded = settings.load()
    except ConfigurationError as exc:
        yield _wrong("settings", str(exc), "correct it in the environment or in .env")
        return
    yield _well("settings", "understood")
    yield from asyncio.run(_upstreams(loaded))
    database = asyncio.run(_database(loaded))
    yield database
    if database.is_well:
        yield asyncio.run(_keys(loaded))
    yield from (_disk(loaded), _logs(loaded), _clock(), _descriptors(), _port(loaded))


async def _upstreams(loaded: Settings) -> list[Finding]:
    if loaded.demo:
        return [_well("upstream", "the built-in demo model")]
    return [await _upstream(Upstream(loaded, address)) for address in loaded.upstreams]


async def _upstream(upstream: Upstream) -> Finding:
    try:
        if not await upstream.probe():
            advice = "start vLLM there, or set STELLARCHAT_UPSTREAM_URL to its address"
            return _wrong("upstream", f"{upstream.name}: {upstream.health.reason}", advice)
        await upstream.read_models()
    finally:
        await upstream.close()
    if not upstream.models:
        advice = "set STELLARCHAT_UPSTREAM_API_KEY if it requires a key, and check that a model is loaded"
        return _wrong("upstream", f"{upstream.name} answers, but lists no model", advice)
    return _well("upstream", f"{upstream.name} serves {', '.join(sorted(upstream.models)[:5])}")


async def _database(loaded: Settings) -> Finding:
    if loaded.is_postgresql:
        return await _server(loaded)
    path = loaded.database_path
    if not path.exists():
        folder = next(each for each in path.absolute().parents if each.exists())
        if not os.access(folder, os.W_OK):
            return _wrong("database", f"{path} cannot be created", f"make {folder} writable, or set DATABASE_URL")
        return _well("database", f"{path} is created at the first start")
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        advice = f"make {path} and its folder writable for this user, or set DATABASE_URL"
        return _wrong("database", f"{path} cannot be written", advice)
    database = Database(path)
    try:
        await database.open(readers=1)
    except ConfigurationError as exc:
        return _wrong("database", str(exc), "see `stellarchat check`, or restore a backup")
    await database.close()
    return _well("database", f"{path}, {path.stat().st_size / 2**20:,.1f} MiB")


async def _server(loaded: Settings) -> Finding:
    try:
        database = database_of(loaded)
        await database.open(readers=1)
    except ConfigurationError as exc:
        return _wrong("database", str(exc), "start the server, or set DATABASE_URL")
    await database.close()
    return _well("database", f"{loaded.database_name} (PostgreSQL: experimental, for one proxy)")


async def _keys(loaded: Settings) -> Finding:
    if loaded.auth == "off":
        advice = "set STELLARCHAT_AUTH=auto and make a key, or be sure that only trusted callers reach this address"
        message = f"no key is required on {loaded.host} (STELLARCHAT_AUTH=off)"
        return _well("keys", message) if loaded.is_loopback else _wrong("keys", message, advice)
    has_key = loaded.admin_key is not None
    if not has_key and (loaded.is_postgresql or loaded.database_path.exists()):
        database = database_of(loaded)
        await database.open(readers=1)
        try:
            has_key = await database.read(queries.keys.key_exists)
        finally:
            await database.close()
    if has_key:
        return _well("keys", "every caller needs a key")
    if loaded.is_loopback and loaded.auth == "auto":
        return _well("keys", "optional on this machine until you create the first one")
    return _wrong("keys", "keys are required, but none exists", "stellarchat keys create --user ID")


def _disk(loaded: Settings) -> Finding:
    folder = next(each for each in loaded.database_path.absolute().parents if each.exists())
    free = shutil.disk_usage(folder).free
    message = f"{free / 2**30:,.1f} GiB free in {loaded.database_path.parent}"
    advice = "free some space, or set STELLARCHAT_RETENTION_DAYS"
    return _well("disk", message) if free >= _DISK_BYTES else _wrong("disk", message, advice)


def _logs(loaded: Settings) -> Finding:
    folder = Path(loaded.log_dir).absolute()
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if existing.is_dir() and os.access(existing, os.W_OK):
        return _well("logs", loaded.log_dir)
    return _wrong("logs", f"{loaded.log_dir} cannot be written", "make it writable, or set STELLARCHAT_LOG_DIR")


def _clock() -> Finding:
    now = time.time()
    message = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now > _BUILT_AT:
        return _well("clock", message)
    return _wrong("clock", message, "set this machine's clock: what is stored is dated by it")


def _descriptors() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    message = "no limit" if hard == resource.RLIM_INFINITY else f"up to {hard} connections and files"
    if hard == resource.RLIM_INFINITY or hard >= _DESCRIPTORS:
        return _well("descriptors", message)
    return _wrong("descriptors", message, "raise the limit: `ulimit -Hn`, LimitNOFILE= in systemd")


def _port(loaded: Settings) -> Finding:
    where = f"{loaded.host}:{loaded.port}"
    try:
        family = socket.getaddrinfo(loaded.host, loaded.port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((loaded.host, loaded.port), family=family).close()
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            return _well("port", f"{where} is in use, by a running StellarChat perhaps")
        reason = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else str(exc)
        return _wrong("port", f"{where}: {reason}", "set STELLARCHAT_HOST and STELLARCHAT_PORT")
    return _well("port", f"{where} is free")
