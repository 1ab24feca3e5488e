"""An upstream on bare sockets: it keeps what it was sent, byte by byte, and plays the script a test gives it."""

import contextlib
import enum
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.raw_http import WAIT_SECONDS, Address, EndedEarly, Head, Wire


class Step(enum.Enum):
    CLOSE = "close the connection"
    RESET = "reset the connection"
    AWAIT_RELEASE = "wait until the test calls release()"
    AWAIT_HANGUP = "wait until the caller has left"


@dataclass(slots=True)
class Received:
    head: Head
    body: bytes = b""
    hung_up: threading.Event = field(default_factory=threading.Event)

    @property
    def method(self) -> bytes:
        return self.head.first_line.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.head.first_line.split(b" ")[1]

    @property
    def version(self) -> bytes:
        return self.head.first_line.split(b" ")[-1]


Script = Callable[[Received], Iterator[bytes | Step]]


def respond(
    body: bytes = b"", *, status: bytes = b"200 OK", headers: bytes = b"Content-Type: application/json\r\n"
) -> bytes:
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, headers, len(body), body)


def always(*steps: bytes | Step) -> Script:
    return lambda _: iter(steps)


def echo(received: Received) -> Iterator[bytes | Step]:
    """What was received, in a form that is also a chat completion."""
    content = f"{received.method.decode()} {received.target.decode('latin-1')}: {len(received.body)} bytes"
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    whole = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }
    answer = respond(json.dumps(whole).encode())
    yield answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if received.method == b"HEAD" else answer


class ScriptedUpstream:
    """Listens on a free port of 127.0.0.1 until closed. `script` may be replaced at any time."""

    def __init__(self) -> None:
        self.script: Script = echo
        self.received: list[Received] = []
        self._arrivals = threading.Condition()
        self._released = threading.Semaphore(0)
        self._open: set[Wire] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> Address:
        host, port = self._listener.getsockname()
        return host, port

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.address)

    def play(self, script: Script) -> None:
        """Start anew with this script."""
        self.script = script
        self.received = []
        self._released = threading.Semaphore(0)

    def release(self) -> None:
        """Let a script that waits go one step further."""
        self._released.release()

    def await_request(self, count: int = 1) -> Received:
        """The last of `count` requests, as soon as its head is here."""
        with self._arrivals:
            assert self._arrivals.wait_for(lambda: len(self.received) >= count, WAIT_SECONDS), "no request came"
            return self.received[count - 1]

    def close(self) -> None:
        # shutdown wakes a thread that is blocked in accept or recv; close alone does not
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for wire in self._open.copy():
            with contextlib.suppress(OSError):
                wire.connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(Wire(connection),), daemon=True).start()

    def _serve(self, wire: Wire) -> None:
        self._open.add(wire)
        try:
            while self._answer(wire):
                pass
        except (OSError, EndedEarly):
            pass
        finally:
            self._open.discard(wire)
            wire.close()

    def _answer(self, wire: Wire) -> bool:
        received = Received(wire.read_head())
        if received.target == b"/health":
            wire.send(respond())
            return True
        script = self.script
        with self._arrivals:
            self.received.append(received)
            self._arrivals.notify_all()
        if b"100-continue" in received.head.tokens(b"expect"):
            wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        for piece in wire.read_body(received.head):
            received.body += piece
        try:
            finished = all(self._take(step, wire, received) for step in script(received))
            return finished and b"close" not in received.head.tokens(b"connection")
        except OSError:
            received.hung_up.set()
            raise

    def _take(self, step: bytes | Step, wire: Wire, received: Received) -> bool:
        if isinstance(step, bytes):
            wire.send(step)
        elif step is Step.AWAIT_RELEASE:
            return self._released.acquire(timeout=WAIT_SECONDS)
        elif step is Step.AWAIT_HANGUP:
            if wire.has_ended():
                received.hung_up.set()
            return False
        elif step is Step.RESET:
            wire.reset()
            return False
        return step is not Step.CLOSE
