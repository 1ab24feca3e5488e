"""The end of a server: how many replies it waits for, and how many it cuts, each in one line for all its workers."""

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
# What uvicorn 0.54 says, with the count, when the grace time is over and before it cancels what is open.
_CANCELS = "Cancel %s running task(s), timeout graceful shutdown exceeded"
_COUNT, _COUNT_SECONDS = b"count", 2.0


def say_draining(count: int, grace_seconds: int | None) -> None:
    """Written past the buffers: a signal may come while one of them is being written to."""
    waiting = f"{count} open {'reply gets' if count == 1 else 'replies get'}"
    text = f"Draining: {waiting} up to {grace_seconds} s to end; a second signal leaves at once.\n"
    with suppress(OSError):
        os.write(sys.stderr.fileno(), text.encode())


def say_cut(count: int) -> None:
    """Nothing where no reply was cut."""
    if count:
        logger.warning(
            "the drain is over: %d open %s cut, and saved as far as %s come (STELLARCHAT_DRAIN_GRACE_SECONDS)",
            count,
            *(("reply was", "it had") if count == 1 else ("replies were", "they had")),
        )


class CutReplies(logging.Filter):
    """Counts the replies that the end of the grace time cuts. uvicorn logs a traceback for each: none of them is news,
    since every one is stored as incomplete."""

    def __init__(self, tell: Callable[[int], None] = lambda _count: None) -> None:
        """`tell` is called with the count at once: uvicorn ends a worker by the signal that it got."""
        super().__init__()
        self._tell = tell
        self.count = 0
        _UVICORN.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is logged."""
        if record.msg == _CANCELS and isinstance(record.args, tuple):
            self.count = int(str(record.args[0]))
            self._tell(self.count)
            return False
        # uvicorn's own message of the cancellation is in it; any other is a fault of ours.
        return not (self.count and record.exc_info and "graceful shutdown exceeded" in str(record.exc_info[1]))


class Worker(multiprocess.Process):
    """A worker process that tells the supervisor what it waits for and what it has cut."""

    def __init__(self, config: Config, sockets: list[socket]) -> None:
        self._cut = get_context("spawn").Value("i", 0)
        super().__init__(config, sockets)

    @property
    def cut(self) -> int:
        """How many replies it has cut, when it has ended."""
        return int(self._cut.value)

    def open_replies(self) -> int:
        """What is open in it now; 0 where it does not answer."""
        with suppress(OSError, EOFError):
            self.parent_conn.send(_COUNT)
            # Answers to earlier questions, which came too late, may lie before it.
            while self.parent_conn.poll(_COUNT_SECONDS):
                answer = self.parent_conn.recv()
                if isinstance(answer, tuple):
                    return int(answer[0])
        return 0

    def pong(self) -> None:
        """Answer the supervisor: whether the worker has started, or how many replies are open."""
        wants_count = self.child_conn.recv() == _COUNT
        self.child_conn.send((len(self.server.server_state.tasks),) if wants_count else self.server.started)

    def target(self, sockets: list[socket] | None = None) -> None:
        """Run the worker, in its own process."""
        CutReplies(lambda count: setattr(self._cut, "value", count))
        super().target(sockets)


def use_workers() -> None:
    """Have uvicorn's supervisor start such workers: it names its own class, also when it replaces one that died."""
    multiprocess.Process = Worker  # type: ignore[misc]
