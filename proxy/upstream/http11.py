"""A single HTTP/1.1 client connection: writes a request, feeds the response, detects when either side has closed."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from typing import cast

import httptools
import httpx

from proxy.upstream.request import Body, Timeouts
from proxy.upstream.response import Response
from proxy.upstream.response_parser import UNREAD_LIMIT_BYTES, ResponseParser

# Up to this size head and body are joined for a single write; joining a larger body would copy it.
SMALL_BODY_BYTES = 64 * 1024


class Connection(asyncio.Protocol):
    """A socket and its parser, used for one exchange at a time. Closed on the first protocol violation."""

    __slots__ = (
        "_busy",
        "_deadline",
        "_drained",
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
        """`on_free`: can take another exchange; `on_closed`: takes no more; `on_lost`: its socket is closed as well."""
        self._on_free = on_free
        self._on_closed = on_closed
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport  # set in `connection_made`
        self._made = False
        self._response: Response  # of the current exchange, else of the last one
        self._busy = False
        self._parser = ResponseParser()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = self._deadline = math.inf
        self._drained: asyncio.Future[None] | None = None
        self._write_paused = False
        self.closed = False
        self.exchanges = 0
        self.received = 0  # number of reads; changes with each received byte

    @property
    def usable(self) -> bool:
        return not self.closed and not self._transport.is_closing()

    def send(self, head: bytes, body: Body, length: int | None, *, head_only: bool, timeouts: Timeouts) -> Response:
        """Writes a request. The part that cannot be written at once is written by a task that the response owns."""
        self.exchanges += 1
        self._busy = True
        self._response = response = Response(self, self._loop, timeouts.read_s)
        self._parser.begin(response, head_only=head_only)
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
        """Writes the body; without one, waits until the data written so far has been sent."""
        error: Exception | None = None
        try:
            if body is None:
                await self._drain(write_s)
            else:
                response.replayable = False
                await self._write_pieces(aiter(body), length, write_s)
        except Exception as exc:  # noqa: BLE001 - errors of the caller's own body are reported to the caller
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
        """Starts the response's read timeout.

        One timer serves all waits of the connection: a wait only moves the deadline, which the timer checks when it
        fires.
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

    # Callbacks of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._made = True
        if self.closed:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            self.close()  # data without a request
            return
        self.received += 1
        response, parser = self._response, self._parser
        response.unread_bytes += len(data)
        try:
            parser.llhttp.feed_data(data)
        except httptools.HttpParserError as exc:
            self._refuse(response, str(exc.__context__ or exc))
            return
        if response.push() and not parser.is_complete:
            return
        if parser.is_complete:
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
            self._response.finish(self._closing_error(self._response, exc))
        self.close()

    def _closing_error(self, response: Response, exc: Exception | None) -> Exception | None:
        if exc is not None:
            return httpx.WriteError(str(exc)) if response.is_uploading else httpx.ReadError(str(exc))
        if not response.status:
            return httpx.RemoteProtocolError("Upstream closed the connection without a response")
        if self._parser.body_is_framed:
            return httpx.RemoteProtocolError("Upstream closed the connection within the body")
        return None  # valid: a body without a length ends with its connection

    def _refuse(self, response: Response, reason: str) -> None:
        response.finish(None if self._parser.is_complete else httpx.RemoteProtocolError(reason))
        self.close()

    def _complete_exchange(self, response: Response) -> None:
        reusable = self._parser.end() and not response.is_uploading
        response.finish(None)
        self._busy = False
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
        self._parser.close()
        if self._busy:
            self._busy = False
            self._response.finish(httpx.ReadError("The connection was closed"))
        self._on_closed(self)
        if self._made:
            self._transport.abort()
        else:
            self._on_lost(self)
