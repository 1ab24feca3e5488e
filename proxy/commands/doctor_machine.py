"""The checks of `stellarchat doctor` on this machine: disk, logs, clock, descriptors and the port."""

import errno
import http.client
import os
import resource
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

from proxy.commands.console import os_trouble
from proxy.commands.finding import Finding, well, wrong
from proxy.settings import Settings

# Room for the write-ahead log, the index, the logs and the spill file, and 3.4 KB for each chat.
_DISK_BYTES = 2**30
# A chat takes two, its caller's and upstream's: with the usual 1,024, 900 streams once gave 809 errors.
_DESCRIPTORS = 4096
# The plausible range of the clock, in Unix time: from the release of this version to the year 2100.
_BUILT_AT, _FAR_AHEAD = 1_764_000_000.0, 4_102_444_800.0


def look_at_machine(loaded: Settings) -> Iterator[Finding]:
    """Everything outside the database and upstream."""
    yield from _disks(loaded)
    yield from (_logs(loaded), _clock(), _descriptors(), _port(loaded))


def existing_folder(path: Path) -> Path:
    """The nearest existing path above a file. It may be a file, in which nothing can be created either."""
    return next(each for each in path.absolute().parents if os.path.exists(each))


def refusal(folder: Path) -> str:
    """Why no file can be created in a folder, or "". Creates one to find out, because root ignores permissions."""
    try:
        with TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as exc:
        return os_trouble(exc)
    return ""


def _disks(loaded: Settings) -> Iterator[Finding]:
    """Each file system once."""
    seen = set()
    for path in (loaded.database_path, loaded.state_path or loaded.database_path, Path(loaded.log_dir, "log")):
        folder = existing_folder(path)
        if (device := folder.stat().st_dev) not in seen:
            seen.add(device)
            yield _disk(folder)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    message = f"{free / 2**30:,.1f} GiB free in {folder}"
    if free >= _DISK_BYTES:
        return well("disk", message)
    return wrong("disk", message, "free some space there, or set STELLARCHAT_RETENTION_DAYS")


def _logs(loaded: Settings) -> Finding:
    folder = Path(loaded.log_dir).absolute()
    if folder.exists() and not folder.is_dir():
        why = "it is not a folder"
    else:
        why = refusal(folder if folder.is_dir() else existing_folder(folder))
    if why:
        return wrong("logs", f"{folder} cannot be written: {why}", "make it writable, or set STELLARCHAT_LOG_DIR")
    return well("logs", str(folder))


def _clock() -> Finding:
    now = time.time()
    message = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if _BUILT_AT < now < _FAR_AHEAD:
        return well("clock", message)
    return wrong("clock", f"{message} cannot be right", "set this machine's clock: all stored times come from it")


def _descriptors() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    message = "no limit" if hard == resource.RLIM_INFINITY else f"up to {hard} connections and files"
    if hard == resource.RLIM_INFINITY or hard >= _DESCRIPTORS:
        return well("descriptors", message)
    return wrong("descriptors", message, f"allow {_DESCRIPTORS} or more: `ulimit -Hn`, LimitNOFILE= in systemd")


def _port(loaded: Settings) -> Finding:
    where = f"{loaded.host}:{loaded.port}"
    try:
        family = socket.getaddrinfo(loaded.host, loaded.port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((loaded.host, loaded.port), family=family).close()
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            return wrong("port", f"{where}: {os_trouble(exc)}", "set STELLARCHAT_HOST and STELLARCHAT_PORT")
        if is_stellarchat(loaded):
            return well("port", f"{where} is in use, by a running StellarChat")
        return wrong("port", f"{where} is in use, by another program", "stop it, or set STELLARCHAT_PORT")
    return well("port", f"{where} is free")


def is_stellarchat(loaded: Settings) -> bool:
    """Whether the program that listens on our port is a StellarChat server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(loaded.host, loaded.host)  # noqa: S104 - compared, not listened on
    connection = http.client.HTTPConnection(host, loaded.port, timeout=2)
    try:
        connection.request("GET", "/health", headers={"Connection": "close"})
        return connection.getresponse().read(100).strip() == b'{"status":"ok"}'
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
