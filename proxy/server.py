"""Runs the application under uvicorn: one process, or several on one socket."""

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

_BACKLOG = 2048
_OPEN_FILES_MAX = 2**20
# Closing may take so long, and twice the commit timeout.
_LAST_RESORT_SECONDS = 10.0
# How long a thread that wants Python's lock lets another hold it. The writer needs it after every statement: with the
# usual 5 ms a commit takes many times as long as it has to do, where streams keep the event loop busy.
_SWITCH_SECONDS = 0.0005


def application() -> ASGIApp:
    """The application of the environment's settings: what each worker process loads."""
    loaded = settings.load()
    logs.configure(loaded)
    if loaded.workers > 1:
        threading.Thread(target=_leave_with_supervisor, daemon=True, name="supervisor").start()
    end = partial(_end_at_last, seconds=_LAST_RESORT_SECONDS + 2 * loaded.commit_timeout_seconds)
    app = create_app(loaded, closing=end)
    _thin_out_collections()
    sys.setswitchinterval(_SWITCH_SECONDS)
    return app


def _end_at_last(*, seconds: float) -> None:
    """Every step of closing has its limit; this is for a thread that a dead disk or folder holds all the same."""

    def end() -> None:
        logger.critical("closing has taken more than %.0f seconds; the next start stores what is spilled", seconds)
        os._exit(3)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _thin_out_collections() -> None:
    """What has been loaded by now stays: looking through all of it for garbage takes up to 50 ms, in which every stream
    waits. Of what comes after it little refers to itself, but with many streams there is much to look through."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)


def raise_open_files(loaded: Settings) -> None:
    """Take all the descriptors that the system allows: a stream needs two, and many systems begin with 1,024."""
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
        reason = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else str(exc)
        raise ConfigurationError(
            f"cannot listen on {loaded.host}:{loaded.port} (STELLARCHAT_HOST, STELLARCHAT_PORT): {reason}"
        ) from exc
    listener.set_inheritable(True)
    return listener


def serve(loaded: Settings, listener: socket.socket, *, announce: Callable[[], None]) -> None:
    """Serve until a signal says to drain. `announce` is called when the first request can come."""
    raise_open_files(loaded)
    config = uvicorn.Config(
        "proxy.server:application",
        factory=True,
        http=LimitedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        # Upstream's own headers go to the caller; ours of the same name would stand beside them.
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
    """Drain when the supervisor is gone: nobody else would ever stop this worker, and it keeps the port."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


class _Server(uvicorn.Server):
    """Drains on the first signal, leaves at once on the second, and exits with 0 when it has drained."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(1)  # what is unsaved is saved by the next start, as after a crash
        draining.say_draining(len(self.server_state.tasks), self.config.timeout_graceful_shutdown)
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn raises the signal again after it has drained, and the process would end by it.
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, self.handle_exit)
        yield


class _Workers(Multiprocess):
    """uvicorn's supervisor, with the same manners."""

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
        """Each worker reads the list of upstreams again; uvicorn would end them."""
        for process in self.processes:
            if process.pid is not None:
                os.kill(process.pid, signal.SIGHUP)

    def terminate_all(self) -> None:
        # Here, not in the signal's handler: the supervisor may be talking to a worker when a signal comes.
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
            listener.close()  # while it is open here, callers wait in its backlog
