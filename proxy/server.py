"""Runs the application under uvicorn, with one or several worker processes on one socket."""

import gc
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.supervisors import Multiprocess

from proxy import settings
from proxy.app import create_app
from proxy.downstream import draining
from proxy.downstream.draining import Worker
from proxy.downstream.httptools_protocol import LimitedProtocol
from proxy.settings import ConfigurationError, Settings
from proxy.telemetry import logs

logger = logging.getLogger(__name__)

# uvicorn's default.
_BACKLOG = 2048
# Used if the system sets no limit.
_OPEN_FILES_MAX = 2**20
# Time allowed for closing, in addition to twice the commit timeout.
_LAST_RESORT_SECONDS = 10.0
# How long a thread that requests the GIL waits before the holder must release it. The writer requests it after every
# statement: with the default of 5 ms, commits become many times slower while streams keep the event loop busy.
_SWITCH_SECONDS = 0.0005


def application() -> ASGIApp:
    """Creates the application from the environment's settings; called in each worker process."""
    loaded = settings.load()
    logs.configure(loaded)
    if loaded.workers > 1:
        threading.Thread(target=_leave_with_supervisor, daemon=True, name="supervisor").start()
    end = partial(_kill_after, seconds=_LAST_RESORT_SECONDS + 2 * loaded.commit_timeout_seconds)
    app = create_app(loaded, closing=end)
    _thin_out_collections()
    sys.setswitchinterval(_SWITCH_SECONDS)
    return app


def _kill_after(*, seconds: float) -> None:
    """Kills the process if closing takes too long.

    Every step has a timeout, but a dead disk can still block a thread.
    """

    def end() -> None:
        logger.critical("closing took more than %.0f seconds; the next start stores the spilled writes", seconds)
        os._exit(3)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _thin_out_collections() -> None:
    """Excludes all current objects from garbage collection, and makes collections rare.

    A full collection takes up to 50 ms, during which all streams pause. Few objects created later are in cycles, but
    with many streams there are many objects to examine.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)


def raise_open_files(loaded: Settings) -> None:
    """Raises the limit of open files to the maximum: a stream needs two, and many systems start with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    needed = 2 * loaded.concurrency_limit
    if soft != resource.RLIM_INFINITY and soft < needed:
        logger.warning(
            "the system allows %d open files: about %d requests at a time (STELLARCHAT_CONCURRENCY_LIMIT is %d)",
            soft,
            soft // 2,
            loaded.concurrency_limit,
        )


def listen(loaded: Settings) -> socket.socket:
    """The listening socket. Raises ConfigurationError."""
    try:
        family = socket.getaddrinfo(loaded.host, loaded.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((loaded.host, loaded.port), family=family, backlog=_BACKLOG)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise ConfigurationError(
            f"cannot listen on {loaded.host}:{loaded.port} (STELLARCHAT_HOST, STELLARCHAT_PORT): {reason}"
        ) from exc
    listener.set_inheritable(True)
    return listener


def serve(loaded: Settings, listener: socket.socket, *, announce: Callable[[], None]) -> None:
    """Serves until a signal starts draining. `announce` is called when requests are accepted."""
    raise_open_files(loaded)
    config = uvicorn.Config(
        "proxy.server:application",
        factory=True,
        http=LimitedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        # Upstream's headers are passed to the caller; uvicorn's own would duplicate them.
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        workers=loaded.workers,
        timeout_graceful_shutdown=round(loaded.drain_grace_seconds),
        timeout_worker_healthcheck=30,
    )
    if loaded.workers == 1:
        replies = draining.CutReplies()
        _Server(config, announce).run(sockets=[listener])
        draining.say_cut(replies.count)
    else:
        _Workers(config, listener, announce).run()


def _leave_with_supervisor() -> None:
    """Drains if the supervisor has died: otherwise this worker would run forever and keep the port."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


class _Server(uvicorn.Server):
    """Drains on the first signal, exits at once on the second, and exits with 0 after draining."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(1)  # the next start recovers the unsaved data, as after a crash
        draining.say_draining(len(self.server_state.tasks), self.config.timeout_graceful_shutdown)
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # After draining, uvicorn raises the signal again, which would kill the process.
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, self.handle_exit)
        yield


class _Workers(Multiprocess):
    """uvicorn's supervisor, with the same signal behaviour."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, announce: Callable[[], None]) -> None:
        draining.use_workers()
        super().__init__(config, [listener])
        self._announce = announce
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, self._leave)

    def init_processes(self) -> None:
        super().init_processes()
        if all(process.wait_until_ready(60, self.should_exit) for process in self.processes):
            self._announce()

    def handle_hup(self) -> None:
        """Makes each worker reload the list of upstreams; uvicorn would restart them."""
        for process in self.processes:
            if process.pid is not None:
                os.kill(process.pid, signal.SIGHUP)

    def terminate_all(self) -> None:
        # Not in the signal handler, which may interrupt the supervisor while it talks to a worker.
        draining.say_draining(
            sum(each.open_replies() for each in self.processes if isinstance(each, Worker)),
            self.config.timeout_graceful_shutdown,
        )
        super().terminate_all()

    def join_all(self) -> None:
        super().join_all()
        draining.say_cut(sum(each.cut for each in self.processes if isinstance(each, Worker)))

    def _leave(self, sig: int, _frame: FrameType | None) -> None:
        if self.should_exit.is_set():
            for process in self.processes:
                process.process.kill()
            os._exit(1)
        self.should_exit.set()
        for listener in self.sockets:
            listener.close()  # while it is open, new connections would wait in its backlog
