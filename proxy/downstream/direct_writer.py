"""The short way out: a piece of a reply written to its caller's connection at once, framed as uvicorn frames it.

`send` is a coroutine behind others, which costs more than all else about a token, and writes a head and its body one by
one, each with a system call. What can be written without it is; every other framing goes through `send`.
"""

import re
from collections.abc import Awaitable, Callable

from starlette.types import Message, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from proxy.wire.headers import Headers

EXTENSION = "stellarchat.outlet"

_CR, _LF = 13, 10
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_FOR_SEND = frozenset({b"connection", b"transfer-encoding"})


class NotingSend:
    """A `send` that notes the status of the reply. It changes nothing, so a reply may still go the short way."""

    __slots__ = ("__self__", "_send", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.__self__ = getattr(send, "__self__", None)
        self.status = 0

    def __call__(self, message: Message) -> Awaitable[None]:
        """Send a message."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        return self._send(message)


class Outlet:
    """Where the reply to one request goes."""

    __slots__ = ("_cycle", "_flow", "_on_left", "_transport")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._flow = cycle.flow
        self._transport = cycle.transport
        self._on_left: Callable[[], None] | None = None

    def watch(self, on_left: Callable[[], None]) -> bool:
        """Have `on_left` called once if the caller leaves before its reply has ended. False if it has left."""
        if self._cycle.disconnected or self._cycle.response_complete:
            return False
        self._on_left = on_left
        self.keep_reading()
        return True

    def keep_reading(self) -> None:
        """While it is watched: a caller who is not read from is not seen to leave."""
        if self._on_left is not None:
            self._flow.resume_reading()

    def unwatch(self) -> None:
        """Nobody wants to know any more."""
        self._on_left = None

    def caller_has_left(self) -> None:
        """For the connection: its caller has left, and waits for no reply."""
        on_left, self._on_left = self._on_left, None
        if on_left is not None:
            on_left()

    @property
    def is_open(self) -> bool:
        """Whether the reply has begun, has not ended, and is in chunks."""
        cycle = self._cycle
        return cycle.response_started and not cycle.response_complete and bool(cycle.chunked_encoding)

    def answer(self, send: Send, status: int, headers: Headers, body: bytes) -> bool:
        """Write a whole reply at once. False where that is for `send` to do, and nothing has been written.

        Whoever has put a `send` of its own before uvicorn's wants to see the reply, and perhaps to change it.
        """
        cycle = self._cycle
        if getattr(send, "__self__", None) is not cycle:
            return False
        if cycle.response_started or cycle.disconnected or self._flow.write_paused or cycle.scope["method"] == "HEAD":
            return False
        head = self._head(status, headers, len(body))
        if head is None:
            return False
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        self._transport.write(head + body)
        cycle.message_event.set()
        if not cycle.keep_alive:
            self._transport.close()
        cycle.on_response()
        if isinstance(send, NotingSend):
            send.status = status
        return True

    def _head(self, status: int, headers: Headers, length: int) -> bytes | None:
        """The head of a reply that says how long it is, and is of that length."""
        if status not in STATUS_LINE or self._cycle.default_headers:
            return None
        lines = [STATUS_LINE[status][:-2]]
        declared = None
        for header in headers:
            if header[0] == b"content-length":
                if declared is not None or not header[1].isdigit():
                    return None
                declared = int(header[1])
            elif header[0] in _FOR_SEND:
                return None
            lines.append(b": ".join(header))
        if declared != length:
            return None
        if not self._cycle.keep_alive:
            lines.append(b"connection: close")
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        ends = len(lines) + 1
        if head.count(_LF) != ends or head.count(_CR) != ends or _CONTROL.search(head):
            return None
        return head

    def write(self, data: bytes) -> bool:
        """Write a piece that is not empty, unless the caller has left. False where the caller is slow: `drain` then."""
        if not self._cycle.disconnected:
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return not self._flow.write_paused

    async def drain(self) -> None:
        """Wait until the caller has taken most of it, or has left."""
        await self._flow.drain()


def outlet_of(scope: Scope) -> Outlet | None:
    """The short way to the caller of this request, where its connection has one."""
    find = scope.get("extensions", {}).get(EXTENSION)
    return None if find is None else find(scope)
