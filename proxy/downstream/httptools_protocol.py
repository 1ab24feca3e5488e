"""The server's side of HTTP: uvicorn's protocol with limits on what a caller may send, and how slowly.

uvicorn itself waits for ever for the end of a request's head and for a caller to take its reply, and bounds neither the
size of a head nor what it reads of a body that nobody wants.
"""

import asyncio
from typing import Any

import orjson
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from proxy.downstream.direct_writer import EXTENSION, Outlet
from proxy.errors import APIError
from proxy.settings import Settings

# What a caller may still send of a body after the reply to it: enough for most to come to its end, and be reused.
UNWANTED_LIMIT_BYTES = 4 * 2**20
UNWANTED_SECONDS = 5.0
# A body that comes slower than this, over one time limit, is not awaited any longer.
BODY_BYTES_A_SECOND = 100
_PIPELINE_LIMIT = 256


class WriteStallTimer:
    """Cuts a caller off that takes nothing of what waits for it, within a time limit."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, *, timeout_seconds: float
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._timeout_seconds = timeout_seconds
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Something waits."""
        if self._timer is None:
            left = self._transport.get_write_buffer_size()
            self._timer = self._loop.call_later(self._timeout_seconds, self._look, left)

    def begin_if_closing(self) -> None:
        """The connection ends when what waits has been taken."""
        if self._transport.is_closing() and self._transport.get_write_buffer_size():
            self.begin()

    def end(self) -> None:
        """It has taken enough, or is gone."""
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


class LimitedProtocol(HttpToolsProtocol):
    """One connection of a caller. Its limits are those of the settings in the lifespan state."""

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        settings: Settings = app_state["services"].settings
        self._head_limit = settings.head_limit_bytes
        self._timeout_seconds = settings.caller_timeout_seconds
        self.timeout_keep_alive = settings.idle_timeout_seconds  # type: ignore[assignment]
        self._is_in_head = False
        self._head_bytes = 0  # of a head that came in more than one piece
        self._piece_bytes = 0
        self._body_bytes = 0
        self._unwanted_bytes = 0
        self._refusal: APIError | None = None
        self._working: RequestResponseCycle | None = None
        self._outlet: Outlet | None = None
        self._extensions: dict[str, Any] = {EXTENSION: self._outlet_of}
        self._head_timer: asyncio.TimerHandle | None = None
        self._body_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller has come: it has to say something."""
        super().connection_made(transport)
        self._write_stall = WriteStallTimer(self.loop, transport, timeout_seconds=self._timeout_seconds)
        self._head_timer = self.loop.call_later(self._timeout_seconds, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller has gone; uvicorn tells the last request of a pipeline, and not the one in work."""
        self.stop_timers()
        self._extensions.clear()  # requests hold it too, and it refers to this
        working = self._working
        is_awaited = working is not None and not working.response_complete
        if working is not None and working is not self.cycle and is_awaited:
            working.disconnected = True
            working.message_event.set()
        super().connection_lost(exc)
        if is_awaited:
            self._tell_outlet()
        self._outlet = None
        self._unset_keepalive_if_required()

    def stop_timers(self) -> None:
        """Nothing more is expected of this connection here."""
        for timer in (self._head_timer, self._body_timer):
            if timer is not None:
                timer.cancel()
        self._write_stall.end()

    def data_received(self, data: bytes) -> None:
        """Parse the next piece."""
        if self.transport.is_closing():
            return
        self._piece_bytes = len(data)
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._head_limit:
                self._refuse(head_is_too_large(self._head_limit))
                return
        if self._body_timer is None and self.cycle is not None and self.cycle.more_body:
            self._await_body()
        # No request in work, and no body awaited: then a head is.
        if self._head_timer is None and (self._is_in_head or self.cycle is None or self.cycle.response_complete):
            self._head_timer = self.loop.call_later(self._timeout_seconds, self._head_is_late)

    def on_message_begin(self) -> None:
        """The first byte of a request has come."""
        self._is_in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._is_in_head = False
        if self._head_bytes + self._piece_bytes > self._head_limit and self._size_of_head() > self._head_limit:
            self._refusal = head_is_too_large(self._head_limit)
        elif len(self.pipeline) >= _PIPELINE_LIMIT:
            self._refusal = APIError("Too many requests are waiting on this connection.", status=429, type_="requests")
        if self._refusal is not None:
            raise ValueError(self._refusal.message)  # stops the parser; send_400_response comes next
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()
        if self.pipeline and self._outlet is not None:
            self._outlet.keep_reading()  # uvicorn has paused it; what comes is bounded, by number and by size
        # Its task has not begun yet. A request is not to refer to itself: the garbage collector would have to find it.
        self.scope["extensions"] = self._extensions

    def on_body(self, body: bytes) -> None:
        """A piece of a body; of one that nobody wants any more not too much is read."""
        if self.cycle.response_complete:
            self._unwanted_bytes += len(body)
            if self._unwanted_bytes > UNWANTED_LIMIT_BYTES:
                self.transport.abort()
            return
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The whole request is there."""
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
        self._body_bytes = self._unwanted_bytes = 0
        self.cycle.more_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The reply is written; what it answered may not have come to its end."""
        self._outlet = None
        super().on_response_complete()
        if self.transport.is_closing():
            self._write_stall.begin_if_closing()
        elif self.cycle.more_body and self.cycle.response_complete:
            self._unset_keepalive_if_required()
            if self._body_timer is not None:
                self._body_timer.cancel()
            self._body_timer = self.loop.call_later(UNWANTED_SECONDS, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        """Nothing more has come; what was written should have been taken by now."""
        super().timeout_keep_alive_handler()
        self._write_stall.begin_if_closing()

    def pause_writing(self) -> None:
        """The caller is slower than its reply."""
        super().pause_writing()
        self._write_stall.begin()

    def resume_writing(self) -> None:
        """It has taken most of it."""
        super().resume_writing()
        self._write_stall.end()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, as every other error is told."""
        self._refuse(self._refusal or bad_http(msg))

    def _unsupported_upgrade_warning(self) -> None:
        """The request is answered as if it had not asked for another protocol; what follows it is not HTTP to the
        parser, so that the connection ends with the answer."""
        self.cycle.keep_alive = False
        if self.cycle.response_complete:
            self.transport.close()

    def _outlet_of(self, scope: Scope) -> Outlet | None:
        working = self._working
        if working is None or working.scope is not scope:
            return None
        if self._outlet is None:
            self._outlet = Outlet(working)
        return self._outlet

    def _tell_outlet(self) -> None:
        if self._outlet is not None:
            self._outlet.caller_has_left()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._working, self._outlet = cycle, None
        super()._start_asgi_task(cycle, app)

    def _refuse(self, error: APIError) -> None:
        """Answer outside the application, unless that would be read as the answer to another request; then close."""
        if self.transport.is_closing():
            return
        working = self._working
        is_of_working = working is not None and working is self.cycle and not working.response_started
        if working is not None and is_of_working:
            working.disconnected = True
            working.message_event.set()
            self._tell_outlet()
        # A request that has its answer, and whose body is broken after that, gets no other one.
        is_next = working is None or (working.response_complete and not working.more_body)
        if is_next or is_of_working:
            self.transport.write(refusal(error))
        self.transport.close()
        self._write_stall.begin_if_closing()

    def _size_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._working is not None and not self._working.response_complete:
            # A request is in work: the next one has time, but not for ever.
            self._head_timer = self.loop.call_later(self._timeout_seconds, self._head_is_late)
        elif self._is_in_head:
            self._refuse(request_is_late())
        else:
            self.transport.close()

    def _await_body(self) -> None:
        self._body_bytes = 0
        self._body_timer = self.loop.call_later(self._timeout_seconds, self._look_at_body, self.flow.read_paused)

    def _look_at_body(self, was_paused: bool) -> None:  # noqa: FBT001 - called by the timer
        """Whether the body still comes; where it waits for us, that is not the caller's fault."""
        is_slow = self._body_bytes < BODY_BYTES_A_SECOND * self._timeout_seconds
        if is_slow and not (was_paused or self.flow.read_paused or self.cycle.waiting_for_100_continue):
            self.transport.abort()
        else:
            self._await_body()


def refusal(error: APIError) -> bytes:
    """A whole response, after which the connection closes."""
    body = orjson.dumps(error.as_json())
    head = STATUS_LINE[error.status] + b"content-type: application/json\r\nconnection: close\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


def bad_http(message: str) -> APIError:
    """400 for what is no HTTP."""
    return APIError(message, status=400, type_="invalid_request_error", code="bad_http")


def request_is_late() -> APIError:
    """408."""
    return APIError("The request did not come to its end.", status=408, type_="invalid_request_error")


def head_is_too_large(limit_bytes: int) -> APIError:
    """431."""
    return APIError(
        f"The request's headers are larger than {limit_bytes} bytes.",
        status=431,
        type_="invalid_request_error",
        code="headers_too_large",
    )
