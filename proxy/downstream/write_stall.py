"""A write timeout for clients that do not read their response."""

import asyncio


class WriteStallTimer:
    """Aborts a client that reads none of its pending response within the timeout."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, *, timeout_seconds: float
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._timeout_seconds = timeout_seconds
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Called when data is waiting to be read by the client."""
        if self._timer is None:
            left = self._transport.get_write_buffer_size()
            self._timer = self._loop.call_later(self._timeout_seconds, self._look, left)

    def begin_if_closing(self) -> None:
        """Called when the connection closes as soon as its buffer is empty."""
        if self._transport.is_closing() and self._transport.get_write_buffer_size():
            self.begin()

    def end(self) -> None:
        """Called when the client has read enough, or is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, left_before: int) -> None:
        self._timer = None
        left = self._transport.get_write_buffer_size()
        if left >= left_before:
            self._transport.abort()
        elif left:
            self.begin()
