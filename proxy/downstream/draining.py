"""Counts and logs the replies that a shutdown waits for and cancels, in one line for all worker processes."""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from socket import socket

from uvicorn import Config
from uvicorn.supervisors import multiprocess

logger = logging.getLogger(__name__)

_UVICORN = logging.getLogger("uvicorn.error")
# uvicorn 0.54 logs this message, with the count, before it cancels open requests after the grace period.
_CANCELS = "Cancel %s running task(s), timeout graceful shutdown exceeded"
_COUNT, _COUNT_SECONDS = b"count", 2.0


def say_draining(count: int, grace_seconds: int | None) -> None:
    """Writes directly to the file descriptor: a signal may arrive while a buffered stream is being written."""
    waiting = f"{count} open {'reply gets' if count == 1 else 'replies get'}"
    text = f"Draining: {waiting} up to {grace_seconds} s to end; a second signal stops the server at once.\n"
    with suppress(OSError):
        os.write(sys.stderr.fileno(), text.encode())


def say_cut(count: int) -> None:
    """Logs nothing if no reply was cancelled."""
    if count:
        logger.warning(
            "the drain is over: %d open %s cut; what had arrived is saved (STELLARCHAT_DRAIN_GRACE_SECONDS)",
            count,
            "reply was" if count == 1 else "replies were",
        )


class CutReplies(logging.Filter):
    """Counts the replies cancelled at the end of the grace period, and suppresses uvicorn's traceback for each.

    The tracebacks carry no information: every such reply is stored as incomplete.
    """

    def __init__(self, tell: Callable[[int], None] = lambda _count: None) -> None:
        """`tell` is called with the count immediately, because uvicorn ends a worker with the signal it received."""
        super().__init__()
        self._tell = tell
        self.count = 0
        _UVICORN.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record."""
        if record.msg == _CANCELS and isinstance(record.args, tuple):
            self.count = int(str(record.args[0]))
            self._tell(self.count)
            return False
        # Suppress only uvicorn's cancellation; any other traceback is our own error.
        return not (self.count and record.exc_info and "graceful shutdown exceeded" in str(record.exc_info[1]))


class Worker(multiprocess.Process):
    """A worker process that reports its open and cancelled replies to the supervisor."""

    def __init__(self, config: Config, sockets: list[socket]) -> None:
        self._cut = get_context("spawn").Value("i", 0)
        super().__init__(config, sockets)

    @property
    def cut(self) -> int:
        """How many replies it cancelled, known after it has ended."""
        return int(self._cut.value)

    def open_replies(self) -> int:
        """The number of open replies; 0 if the worker does not answer."""
        with suppress(OSError, EOFError):
            self.parent_conn.send(_COUNT)
            # Skip late answers to earlier questions.
            while self.parent_conn.poll(_COUNT_SECONDS):
                answer = self.parent_conn.recv()
                if isinstance(answer, tuple):
                    return int(answer[0])
        return 0

    def pong(self) -> None:
        """Answers the supervisor: whether the worker has started, or how many replies are open."""
        wants_count = self.child_conn.recv() == _COUNT
        self.child_conn.send((len(self.server.server_state.tasks),) if wants_count else self.server.started)

    def target(self, sockets: list[socket] | None = None) -> None:
        """Runs in the worker process."""
        CutReplies(lambda count: setattr(self._cut, "value", count))
        super().target(sockets)


def use_workers() -> None:
    """Makes uvicorn's supervisor use `Worker`: it refers to its own class by name, also when it replaces a dead
    worker."""
    multiprocess.Process = Worker  # type: ignore[misc]
