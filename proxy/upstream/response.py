"""A response of upstream: its head, and a pipe that holds the body until its one reader takes it."""

import asyncio
import math
from collections.abc import Callable
from typing import Protocol

import httpx

from proxy.wire.headers import Headers

Sink = Callable[[bytes], bool]
"""Takes a piece of a body at once, and says whether the next may come."""

UPLOAD_STOP_S = 1.0


class Source(Protocol):
    """The connection that a response comes from."""

    def expect(self, wait_s: float) -> None:
        """The response's reader waits from now on, at most so long."""

    def resume_reading(self) -> None:
        """There is room for more."""

    def close(self) -> None:
        """Take no more."""


class Response:
    """A response; its body waits here, in pieces, until its one reader takes it."""

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
        "http_version",
        "is_uploading",
        "reason",
        "replayable",
        "status",
        "unread_bytes",
    )

    def __init__(self, connection: Source, loop: asyncio.AbstractEventLoop, read_s: float) -> None:
        self.status = 0
        self.headers: Headers = []
        self.http_version = b""
        self.reason = b""
        self._connection = connection
        self._loop = loop
        self._read_s = read_s
        self._pieces: list[bytes] = []
        self.unread_bytes = 0  # bytes off the wire, framing included, so that endless framing is bounded too
        self._paused = False
        self._over = False  # nothing will follow what is in _pieces
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Sink | None = None  # gets what comes while its reader waits in `pump`
        self._upload: asyncio.Task[None] | None = None
        self.is_uploading = False
        self.replayable = True  # nothing has been taken from a body that can be read once

    @property
    def is_over(self) -> bool:
        """The body has come to its end, and has been read."""
        return self._over and self._error is None and not self._pieces

    @property
    def unanswered(self) -> bool:
        """The exchange ended before a byte of an answer."""
        return self._over and not self.unread_bytes and not self.status

    async def read(self) -> bytes:
        """The next bytes of the body, b"" at its end. Waits only when none are there.

        Raises httpx.ReadTimeout, ReadError, RemoteProtocolError (cut short); what came before is read first.
        """
        while not self._pieces:
            if self._over:
                if self._error is not None:
                    raise self._error
                return b""
            await self._wait()
        return self._take()

    def read_whole_nowait(self) -> bytes | None:
        """The body, for who has read none of it; None where it has not come to its end."""
        if not self._over or self._error is not None:
            return None
        return self._take() if self._pieces else b""

    async def pump(self, sink: Sink) -> bool:
        """Give the body to the sink, each piece as soon as it has come. True at the body's end, False when the sink
        said to stop: what comes then waits here for the next call.

        Raises what `read` raises, and what the sink does.
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
        except BaseException:  # cancelled: nobody will read on
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
        """Raises what kept the head from coming. An upload in progress has its own time limits."""
        try:
            while not self.status and not self._over:
                self._waiter = waiter = self._loop.create_future()
                self._connection.expect(math.inf if self.is_uploading else head_s)
                await waiter
        except BaseException:  # cancelled: nobody will read the answer
            await self.aclose()
            raise
        finally:
            self._waiter = None
        if not self.status and self._error is not None:
            raise self._error

    def close(self) -> None:
        """Leave. Drops the connection unless the response is whole."""
        if not self._over:
            self.finish(httpx.ReadError("The response was closed"))
            self._pieces.clear()
            self._connection.close()

    async def aclose(self) -> None:
        """As `close`, and wait until an upload has stopped."""
        self.close()
        if self._upload is not None and not self._upload.done():
            await asyncio.wait((self._upload,), timeout=UPLOAD_STOP_S)

    # For the connection

    @property
    def has_pieces(self) -> bool:
        """Whether something of the body waits to be read."""
        return bool(self._pieces)

    @property
    def is_awaited(self) -> bool:
        """Whether the reader waits."""
        return self._waiter is not None and not self._waiter.done()

    def append(self, piece: bytes) -> None:
        """Take a piece of the body."""
        self._pieces.append(piece)

    def push(self) -> bool:
        """Hand what has come to the sink of a reader in `pump`. False where there is none, or nothing has come."""
        sink = self._sink
        if sink is None or not self._pieces:
            return False
        try:
            if sink(self._take()):
                self._connection.expect(self._read_s)
                return True
        except Exception as exc:  # noqa: BLE001 - it is for the reader to see
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(exc)
        self._sink = None
        self.wake()
        return True

    def note_pause(self) -> None:
        """The connection reads no more until the reader has taken what waits."""
        self._paused = True

    def end_pause(self) -> bool:
        """The exchange is over. Whether the connection had stopped reading."""
        was_paused, self._paused = self._paused, False
        return was_paused

    def begin_upload(self, upload: "asyncio.Task[None]") -> None:
        """The request's body is being written."""
        self.is_uploading = True
        self._upload = upload

    def finish(self, error: Exception | None) -> None:
        """Nothing follows. An upload still running has lost its purpose."""
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
