"""A response of upstream: its head, and a buffer that passes the body from the connection to its single reader."""

import asyncio
import math
from collections.abc import Callable
from time import monotonic
from typing import Protocol

import httpx

from proxy.wire.headers import Headers

Sink = Callable[[bytes], bool]
"""Receives a piece of a body; returns whether to continue."""

# How long closing waits for the task that sends the request's body; the connection is closed already.
UPLOAD_STOP_S = 1.0


class Source(Protocol):
    """The connection that feeds a response."""

    def expect(self, wait_s: float) -> None:
        """Starts the read timeout: the response's reader is waiting."""

    def resume_reading(self) -> None:
        """The buffer has room again."""

    def close(self) -> None:
        """Closes the connection."""


class Response:
    """A response whose body is buffered until its single reader takes it."""

    __slots__ = (
        "_connection",
        "_error",
        "_loop",
        "_over",
        "_paused",
        "_pieces",
        "_read_s",
        "_sink",
        "_upload",
        "_waiter",
        "headers",
        "is_uploading",
        "reason",
        "replayable",
        "sent_at",
        "status",
        "unread_bytes",
    )

    def __init__(self, connection: Source, loop: asyncio.AbstractEventLoop, read_s: float) -> None:
        self.status = 0
        self.sent_at: float | None = monotonic()
        self.headers: Headers = []
        self.reason = b""
        self._connection = connection
        self._loop = loop
        self._read_s = read_s
        self._pieces: list[bytes] = []
        self.unread_bytes = 0  # bytes received including framing, so that endless framing is limited, too
        self._paused = False
        self._over = False  # nothing will follow after _pieces
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Sink | None = None  # receives pieces directly while the reader waits in `pump`
        self._upload: asyncio.Task[None] | None = None
        self.is_uploading = False
        self.replayable = True  # the request can be sent again: nothing was read from a one-shot body

    @property
    def is_over(self) -> bool:
        """Whether the body has ended and was read."""
        return self._over and self._error is None and not self._pieces

    @property
    def unanswered(self) -> bool:
        """Whether the exchange ended before the first byte of a response."""
        return self._over and not self.unread_bytes and not self.status

    async def read(self) -> bytes:
        """The next bytes of the body; b"" at its end. Waits only if nothing is buffered.

        Raises httpx.ReadTimeout, ReadError, or RemoteProtocolError (incomplete body), after the buffered data was read.
        """
        while not self._pieces:
            if self._over:
                if self._error is not None:
                    raise self._error
                return b""
            await self._wait()
        return self._take()

    def read_whole_nowait(self) -> bytes | None:
        """Returns the whole body if it has been received and not read, else None."""
        if not self._over or self._error is not None:
            return None
        return self._take() if self._pieces else b""

    async def pump(self, sink: Sink) -> bool:
        """Passes each piece of the body to `sink` as it arrives. True at the end of the body, False if the sink
        stopped.

        After False, further data is buffered for the next call. Raises what `read` raises, and what the sink raises.
        """
        while True:
            if self._pieces and not sink(self._take()):
                return False
            if self._over:
                if self._error is not None:
                    raise self._error
                return True
            self._sink = sink
            try:
                await self._wait()
            finally:
                stopped, self._sink = self._sink is None, None
            if stopped:
                return False

    async def _wait(self) -> None:
        self._waiter = waiter = self._loop.create_future()
        self._connection.expect(self._read_s)
        try:
            await waiter
        except BaseException:  # cancelled: nobody will read the rest
            self.close()
            raise
        finally:
            self._waiter = None

    def _take(self) -> bytes:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.unread_bytes = 0
        if self._paused:
            self._paused = False
            self._connection.resume_reading()
        return data

    async def wait_for_head(self, head_s: float) -> None:
        """Raises the error that prevented the head. An upload in progress has its own timeouts."""
        try:
            while not self.status and not self._over:
                self._waiter = waiter = self._loop.create_future()
                self._connection.expect(math.inf if self.is_uploading else head_s)
                await waiter
        except BaseException:  # cancelled: nobody will read the response
            await self.aclose()
            raise
        finally:
            self._waiter = None
        if not self.status and self._error is not None:
            raise self._error

    def close(self) -> None:
        """Closes the response. Closes the connection, too, unless the response is complete."""
        if not self._over:
            self.finish(httpx.ReadError("The response was closed"))
            self._pieces.clear()
            self._connection.close()

    async def aclose(self) -> None:
        """Like `close`, and waits until the upload has stopped."""
        self.close()
        if self._upload is not None and not self._upload.done():
            await asyncio.wait((self._upload,), timeout=UPLOAD_STOP_S)

    # Called by the connection

    @property
    def has_pieces(self) -> bool:
        """Whether part of the body is buffered."""
        return bool(self._pieces)

    @property
    def is_awaited(self) -> bool:
        """Whether the reader is waiting."""
        return self._waiter is not None and not self._waiter.done()

    def append(self, piece: bytes) -> None:
        """Buffers a piece of the body."""
        self._pieces.append(piece)

    def push(self) -> bool:
        """Passes buffered pieces to the sink of a reader in `pump`. False if there is no such reader, or no data."""
        sink = self._sink
        if sink is None or not self._pieces:
            return False
        try:
            if sink(self._take()):
                self._connection.expect(self._read_s)
                return True
        except Exception as exc:  # noqa: BLE001 - raised in the reader instead
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(exc)
        self._sink = None
        self.wake()
        return True

    def note_pause(self) -> None:
        """Records that the connection stopped reading until the buffer is taken."""
        self._paused = True

    def end_pause(self) -> bool:
        """Called at the end of the exchange; returns whether the connection had stopped reading."""
        was_paused, self._paused = self._paused, False
        return was_paused

    def begin_upload(self, upload: "asyncio.Task[None]") -> None:
        """Records the task that writes the request's body."""
        self.is_uploading = True
        self._upload = upload

    def finish(self, error: Exception | None) -> None:
        """Ends the response. Stops an upload that is still running."""
        if not self._over:
            self._over = True
            self._error = error
            self.stop_upload()
            self.wake()

    def stop_upload(self) -> None:
        if self.is_uploading and self._upload is not None:
            self._upload.cancel()

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
