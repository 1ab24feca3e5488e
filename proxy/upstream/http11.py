"""One HTTP/1.1 connection: writes a request, parses its response, notices when either side has gone.

llhttp (httptools) is strict by itself about line ends, header characters, lengths, and chunk sizes; the callbacks here
refuse what it lets pass: other transfer codings, odd versions, control characters in the reason, oversized heads
(RFC 9112 §6.3, §11).
"""

import asyncio
import math
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from typing import cast

import httptools
import httpx

from proxy.upstream.response import Response
from proxy.wire.headers import Headers

Body = bytes | AsyncIterable[bytes]
UNREAD_LIMIT_BYTES = 64 * 1024
"""Bytes off the wire that may wait unread: a head has to fit; a body beyond it stops the reading."""
HEADER_LIMIT = 256
SMALL_BODY_BYTES = 64 * 1024

_VERSIONS = {"1.1": b"HTTP/1.1", "1.0": b"HTTP/1.0"}
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
_METHODS_WITH_BODY = frozenset((b"POST", b"PUT", b"PATCH"))
_CR, _LF = 13, 10
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Longest waits; `math.inf` is no limit."""

    connect_s: float = 10.0
    write_s: float = 60.0
    """Upstream takes nothing of what is to be written."""
    head_s: float = 600.0
    """From the end of the request to the response's head."""
    read_s: float = 300.0
    """Silence within a body."""
    pool_s: float = 10.0
    """No connection is free."""


def request_head(method: bytes, target: bytes, headers: Headers, body: Body) -> tuple[bytes, int | None]:
    """The head with its framing, and the body's length (None: chunked). Raises httpx.LocalProtocolError."""
    length = len(body) if isinstance(body, bytes) else None
    lines = [b"%b %b HTTP/1.1" % (method, target)]
    for header in headers:
        if header[0] not in _FRAMING:
            lines.append(b": ".join(header))
        elif header[0] == b"content-length":
            length = _declared_length(header[1], length)
    if length is None:
        lines.append(b"transfer-encoding: chunked")
    elif length or method in _METHODS_WITH_BODY:
        lines.append(b"content-length: %d" % length)
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    # Counting is the cheap proof that no value brings a line of its own.
    ends = len(lines) + 1
    if head.count(_LF) != ends or head.count(_CR) != ends or 0 in head:
        raise httpx.LocalProtocolError("Illegal character in the request head")
    if lines[0].count(b" ") != 2:
        raise httpx.LocalProtocolError("Illegal space in the request line")
    return head, length


def _declared_length(value: bytes, known: int | None) -> int:
    if not value.isdigit():
        raise httpx.LocalProtocolError("Malformed Content-Length in the request")
    if known is not None and int(value) != known:
        raise httpx.LocalProtocolError(f"Content-Length is {int(value)}, not {known}")
    return int(value)


class Connection(asyncio.Protocol):
    """A socket and its parser, for one exchange after the other. Closed at the first thing out of order."""

    __slots__ = (
        "_busy",
        "_chunked",
        "_complete",
        "_deadline",
        "_drained",
        "_extra",
        "_head_only",
        "_interim",
        "_keep_alive",
        "_length_given",
        "_loop",
        "_made",
        "_on_closed",
        "_on_free",
        "_on_lost",
        "_parser",
        "_response",
        "_timer",
        "_timer_at",
        "_transport",
        "_write_paused",
        "closed",
        "exchanges",
        "received",
    )

    def __init__(
        self,
        *,
        on_free: Callable[["Connection"], None],
        on_closed: Callable[["Connection"], None],
        on_lost: Callable[["Connection"], None],
    ) -> None:
        """`on_free`: ready for another exchange; `on_closed`: takes no more; `on_lost`: its socket is closed too."""
        self._on_free = on_free
        self._on_closed = on_closed
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport  # once made
        self._made = False
        self._response: Response  # of the exchange when busy, else of the last one
        self._busy = False
        self._parser = httptools.HttpResponseParser(self)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = self._deadline = math.inf
        self._drained: asyncio.Future[None] | None = None
        self._write_paused = False
        self.closed = False
        self.exchanges = 0
        self.received = 0  # how often bytes have come

    @property
    def usable(self) -> bool:
        return not self.closed and not self._transport.is_closing()

    def send(self, head: bytes, body: Body, length: int | None, *, head_only: bool, timeouts: Timeouts) -> Response:
        """Write a request; what cannot be written at once is written by a task that the response owns."""
        self._head_only = head_only
        self._chunked = self._length_given = False
        self._interim = self._complete = self._extra = self._keep_alive = False
        self.exchanges += 1
        self._busy = True
        self._response = response = Response(self, self._loop, timeouts.read_s)
        if not isinstance(body, bytes):
            self._transport.write(head)
            self._start_upload(response, body, length, timeouts.write_s)
        elif len(body) <= SMALL_BODY_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
            if self._write_paused:
                self._start_upload(response, None, length, timeouts.write_s)
        return response

    # Uploads

    def _start_upload(
        self, response: Response, body: AsyncIterable[bytes] | None, length: int | None, write_s: float
    ) -> None:
        response.begin_upload(self._loop.create_task(self._upload(response, body, length, write_s)))

    async def _upload(
        self, response: Response, body: AsyncIterable[bytes] | None, length: int | None, write_s: float
    ) -> None:
        """Without a body: wait until what has been written is on its way."""
        error: Exception | None = None
        try:
            if body is None:
                await self._drain(write_s)
            else:
                response.replayable = False
                await self._write_pieces(aiter(body), length, write_s)
        except Exception as exc:  # noqa: BLE001 - whatever the caller's own body raises is for the caller to see
            error = exc
        response.is_uploading = False
        if error is None:
            response.wake()
        else:
            response.finish(error)
            self.close()

    async def _write_pieces(self, pieces: AsyncIterator[bytes], length: int | None, write_s: float) -> None:
        left = length
        try:
            async for piece in pieces:
                if left is not None:
                    left -= len(piece)
                    if left < 0:
                        raise httpx.LocalProtocolError("The request body is longer than its Content-Length")
                    self._transport.write(piece)
                elif piece:  # an empty chunk would end the body
                    self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                if self._write_paused:
                    await self._drain(write_s)
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()
        if left:
            raise httpx.LocalProtocolError("The request body is shorter than its Content-Length")
        if left is None:
            self._transport.write(b"0\r\n\r\n")

    async def _drain(self, write_s: float) -> None:
        while self._write_paused:
            size = self._transport.get_write_buffer_size()
            self._drained = self._loop.create_future()
            try:
                async with asyncio.timeout(None if write_s == math.inf else write_s):
                    await self._drained
            except TimeoutError:
                if self._transport.get_write_buffer_size() >= size:
                    raise httpx.WriteTimeout(f"Nothing could be written for {write_s} s") from None
            finally:
                self._drained = None

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # Time

    def expect(self, wait_s: float) -> None:
        """The response's reader waits from now on, at most so long.

        One timer serves all waits of the connection: a wait only moves the deadline, and the timer looks when it fires.
        """
        self._deadline = deadline = self._loop.time() + wait_s
        if deadline < self._timer_at:
            self._set_timer(deadline)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._check_deadline)

    def _check_deadline(self) -> None:
        self._timer = None
        self._timer_at = math.inf
        if not self._busy:
            return
        response = self._response
        if not response.is_awaited:
            return
        if self._deadline > self._loop.time():
            if self._deadline < math.inf:
                self._set_timer(self._deadline)
            return
        response.finish(httpx.ReadTimeout("Upstream was silent for too long"))
        self.close()

    # What the event loop reports

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._made = True
        if self.closed:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            self.close()  # nobody asked
            return
        self.received += 1
        response = self._response
        response.unread_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._refuse(response, str(exc.__context__ or exc))
            return
        if response.push() and not self._complete:
            return
        if self._complete:
            self._complete_exchange(response)
        elif response.unread_bytes > UNREAD_LIMIT_BYTES:
            if not response.has_pieces:
                self._refuse(response, "Oversized head or framing")
                return
            response.note_pause()
            self._pause_reading()
        response.wake()

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)
        self._on_lost(self)

    def _end(self, exc: Exception | None) -> None:
        if self._busy:
            self._response.finish(self._loss(self._response, exc))
        self.close()

    def _loss(self, response: Response, exc: Exception | None) -> Exception | None:
        if exc is not None:
            return httpx.WriteError(str(exc)) if response.is_uploading else httpx.ReadError(str(exc))
        if not response.status:
            return httpx.RemoteProtocolError("Upstream closed the connection without a response")
        if self._chunked or self._length_given:
            return httpx.RemoteProtocolError("Upstream closed the connection within the body")
        return None  # a body may end with its connection

    def _refuse(self, response: Response, reason: str) -> None:
        response.finish(None if self._complete else httpx.RemoteProtocolError(reason))
        self.close()

    def _complete_exchange(self, response: Response) -> None:
        reusable = self._keep_alive and not self._extra and not response.is_uploading
        response.finish(None)
        self._busy = False
        if self._head_only:
            self._parser = httptools.HttpResponseParser(
                self
            )  # the old one waits for a body that a response to HEAD does not have
        if response.end_pause():
            self.resume_reading()
        if reusable:
            self._on_free(self)
        else:
            self.close()

    def _pause_reading(self) -> None:
        if not self.closed:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self.closed:
            self._transport.resume_reading()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        del self._parser  # they refer to each other
        if self._busy:
            self._busy = False
            self._response.finish(httpx.ReadError("The connection was closed"))
        self._on_closed(self)
        if self._made:
            self._transport.abort()
        else:
            self._on_lost(self)

    # What the parser reports; an exception raised here makes it stop

    def on_message_begin(self) -> None:
        if self._complete:
            self._extra = True  # a second answer to one request

    def on_status(self, reason: bytes) -> None:
        if not self._complete:
            self._response.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        response = self._response
        if response.status:
            return  # trailers are not passed on
        name = name.lower()
        value = value.rstrip()
        if name in _FRAMING:
            self._note_framing(name, value)
        response.headers.append((name, value))

    def _note_framing(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            self._length_given = True
        elif self._chunked or value.lower() != b"chunked":
            raise httpx.RemoteProtocolError("Unknown or repeated Transfer-Encoding")
        else:
            self._chunked = True

    def on_headers_complete(self) -> None:
        response, parser = self._response, self._parser
        if self._complete:
            raise httpx.RemoteProtocolError("A second response to one request")
        status = parser.get_status_code()
        version = _VERSIONS.get(parser.get_http_version())
        self._check_head(response, status, version)
        if status < 200:
            self._interim = True
            self._chunked = self._length_given = False
            response.headers, response.reason = [], b""
            return
        self._keep_alive = parser.should_keep_alive()
        response.http_version = version or b""
        response.status = status
        if status in (204, 304):
            self._length_given = True  # of nothing, whatever it says
        if status >= 300:
            response.stop_upload()
        if self._head_only:
            self._complete = True
            self._extra = self._chunked  # a body in spite of HEAD would go unnoticed by the parser's events

    def _check_head(self, response: Response, status: int, version: bytes | None) -> None:
        if version is None or (self._chunked and version == b"HTTP/1.0"):
            raise httpx.RemoteProtocolError("Unsupported HTTP version or framing")
        if status < 100 or status == 101 or status > 599:
            raise httpx.RemoteProtocolError(f"Unexpected status {status}")
        if response.reason != b"OK" and _CONTROL.search(response.reason):
            raise httpx.RemoteProtocolError("Illegal character in the reason phrase")
        headers = response.headers
        if len(headers) > HEADER_LIMIT:
            raise httpx.RemoteProtocolError("Too many header lines")
        if response.unread_bytes > UNREAD_LIMIT_BYTES:
            size = sum(len(name) + len(value) + 4 for name, value in headers)
            if size > UNREAD_LIMIT_BYTES:
                raise httpx.RemoteProtocolError("Oversized head")

    def on_body(self, piece: bytes) -> None:
        if self._complete:
            self._extra = True
        else:
            self._response.append(piece)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        else:
            self._complete = True
