"""A time limit for callers that read nothing of their response."""

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
        """Something waits to be read."""
        if self._timer is None:
            left = self._transport.get_write_buffer_size()
            self._timer = self._loop.call_later(self._timeout_seconds, self._look, left)

    def begin_if_closing(self) -> None:
        """The connection closes once its buffer is empty."""
        if self._transport.is_closing() and self._transport.get_write_buffer_size():
            self.begin()

    def end(self) -> None:
        """The client has read enough, or is gone."""
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
