"""Servers for tests: an application under real uvicorn in this loop, and the real command in a process of its own."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from proxy.app import create_app
from proxy.downstream.httptools_protocol import LimitedProtocol
from proxy.settings import Settings
from tests.engines import environment_of, make_tables, url_of

# What tests call the server in Host where they write requests by hand.
NAMES = ("a", "proxy", "model.example")

REPOSITORY = Path(__file__).parent.parent


def settings_for(folder: Path, *, upstream_url: str = "http://127.0.0.1:9", **changes: Any) -> Settings:
    """Settings with every file in `folder`, keys off, and a small reserve."""
    database_url = url_of(folder / "stellarchat.db")
    is_file = database_url.startswith("sqlite:")
    base = Settings(
        database_url=database_url,
        state_dir="" if is_file else str(folder / "state"),
        log_dir=str(folder / "logs"),
        upstream_url=upstream_url,
        auth="off",
        allowed_hosts=NAMES,
        spill_reserve_bytes=65536,
        quiet=True,
    )
    return replace(base, **changes)


@asynccontextmanager
async def running(app: ASGIApp, *, grace_seconds: int = 2, http: Any = "auto") -> AsyncIterator[str]:
    """The application's base URL while the block lasts."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        lifespan="on",
        http=http,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=grace_seconds,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve([listener]))
    try:
        while not server.started:
            if task.done():
                task.result()
            await asyncio.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()


@asynccontextmanager
async def running_proxy(settings: Settings) -> AsyncIterator[str]:
    """The proxy's base URL while the block lasts."""
    if not settings.is_postgresql:
        make_tables(settings.database_path)
    async with running(create_app(settings), http=LimitedProtocol) as url:
        yield url


class ServerProcess:
    """`stellarchat serve` in a process of its own."""

    def __init__(self, folder: Path, upstream_url: str, **environment: str) -> None:
        self.folder = folder
        self.prefix: Sequence[str] = ()  # what the command is run by
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("STELLARCHAT_")},
            "STELLARCHAT_UPSTREAM_URL": upstream_url,
            **environment_of(folder / "stellarchat.db"),
            "STELLARCHAT_LOG_DIR": str(folder / "logs"),
            "STELLARCHAT_AUTH": "off",
            "STELLARCHAT_ALLOWED_HOSTS": ",".join(NAMES),
            "STELLARCHAT_PORT": "0",
            "STELLARCHAT_QUIET": "on",
            "STELLARCHAT_SPILL_RESERVE_BYTES": str(2**20),
            "PYTHONPATH": str(REPOSITORY),
            **environment,
        }
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self.output: list[str] = []
        self.url = ""

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    def spawn(self, *options: str) -> "subprocess.Popen[str]":
        """Start, and do not wait."""
        self._process = subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "proxy", "serve", *options],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.url = ""
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        return self._process

    def start(self, *options: str, seconds: float = 30) -> None:
        """Start, and wait for the ready line."""
        process = self.spawn(*options)
        deadline = time.monotonic() + seconds
        while not self.url:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server did not start:\n" + "\n".join(self.output[-30:]))
            time.sleep(0.01)

    def kill(self) -> None:
        """`kill -9`, the workers included."""
        assert self._process is not None
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        assert self._reader is not None
        self._reader.join(10)

    def stop(self, *, seconds: float = 60) -> int:
        """SIGTERM, and wait for the drain; the exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.wait(seconds=seconds)

    def wait(self, *, seconds: float = 60) -> int:
        """Wait for the end; the exit code."""
        assert self._process is not None
        return self._process.wait(seconds)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.output.append(line.rstrip())
                if "is ready: http" in line:
                    self.url = line.split("is ready: ")[1].split("/v1")[0]


@contextmanager
def server_process(
    folder: Path, upstream_url: str, *options: str, prefix: Sequence[str] = (), **environment: str
) -> Iterator[ServerProcess]:
    """A started process, killed at the end where it still runs."""
    process = ServerProcess(folder, upstream_url, **environment)
    process.prefix = prefix
    process.start(*options)
    try:
        yield process
    finally:
        process.kill()


def until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def child_of(pid: int) -> int:
    """One of the server's worker processes."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
    raise RuntimeError("the server has no worker")
