"""Writes reply chunks directly to the caller's transport, framed like uvicorn does, instead of through ASGI `send`.

`send` passes through several coroutines, which is the largest cost per token, and makes one system call for the head
and one for the body. Replies in any other framing still use `send`.
"""

from collections.abc import Awaitable, Callable

from starlette.types import Message, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from proxy.wire.headers import Headers

EXTENSION = "stellarchat.outlet"

_CR, _LF = 13, 10
# RFC 9110 §5.5: not allowed in a header. CR and LF are found by counting the line ends.
_CONTROLS = bytes({*range(0x20), 0x7F} - {0x09, _CR, _LF})
# These decide about the framing of the body, which is left to uvicorn.
_FOR_SEND = frozenset({b"connection", b"transfer-encoding"})


class NotingSend:
    """Wraps `send` to record the reply's status. It does not modify messages, so direct writing stays possible."""

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
    """The destination of one request's reply."""

    __slots__ = ("_cycle", "_flow", "_on_left", "_transport")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._flow = cycle.flow
        self._transport = cycle.transport
        self._on_left: Callable[[], None] | None = None

    def watch(self, on_left: Callable[[], None]) -> bool:
        """Calls `on_left` once if the caller disconnects before its reply has ended. False if it already has."""
        if self._cycle.disconnected or self._cycle.response_complete:
            return False
        self._on_left = on_left
        self.keep_reading()
        return True

    def keep_reading(self) -> None:
        """Keeps reading from the connection while it is watched: otherwise a disconnect would go unnoticed."""
        if self._on_left is not None:
            self._flow.resume_reading()

    def unwatch(self) -> None:
        """Stops watching."""
        self._on_left = None

    def caller_has_left(self) -> None:
        """Called by the connection when its caller has disconnected."""
        on_left, self._on_left = self._on_left, None
        if on_left is not None:
            on_left()

    @property
    def is_open(self) -> bool:
        """Whether the reply has started, has not ended, and uses chunked encoding."""
        cycle = self._cycle
        return cycle.response_started and not cycle.response_complete and bool(cycle.chunked_encoding)

    def answer(self, send: Send, status: int, headers: Headers, body: bytes) -> bool:
        """Writes a whole reply at once. False if `send` must be used; nothing has been written then.

        A middleware that has wrapped uvicorn's `send` expects to see the reply, and may change it.
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
        # Otherwise a later `receive` would write `100 Continue` behind the reply.
        cycle.waiting_for_100_continue = False
        # One write is one system call; uvicorn makes one for the head and one for the body.
        self._transport.write(head + body)
        # Wakes a `receive` that waits for the caller to disconnect: the reply is complete.
        cycle.message_event.set()
        if not cycle.keep_alive:
            self._transport.close()
        cycle.on_response()
        if isinstance(send, NotingSend):
            send.status = status
        return True

    def _head(self, status: int, headers: Headers, length: int) -> bytes | None:
        """The serialized head of a reply whose Content-Length is correct; else None."""
        # uvicorn knows no reason phrase for other statuses, and adds its default headers in `send` only.
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
        # Deleting the characters takes half as many instructions as searching them by a pattern.
        if head.count(_LF) != ends or head.count(_CR) != ends or len(head.translate(None, _CONTROLS)) != len(head):
            return None
        return head

    def write(self, data: bytes) -> bool:
        """Writes a non-empty chunk unless the caller has left. False if the caller is slow: then await `drain`."""
        if not self._cycle.disconnected:
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return not self._flow.write_paused

    async def drain(self) -> None:
        """Waits until the caller has read most of the buffer, or has left."""
        await self._flow.drain()


def outlet_of(scope: Scope) -> Outlet | None:
    """The outlet of this request's connection, if it has one."""
    find = scope.get("extensions", {}).get(EXTENSION)
    return None if find is None else find(scope)
