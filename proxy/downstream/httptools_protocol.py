"""uvicorn's HTTP protocol with limits on the size and speed of requests.

uvicorn waits indefinitely for a request head and for a client that does not read its response, and limits neither the
size of a head nor how much of an unwanted body it reads.
"""

import asyncio
from typing import Any, NoReturn

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from proxy.downstream.direct_writer import EXTENSION, Outlet
from proxy.downstream.refusals import (
    bad_http,
    head_error,
    head_is_too_large,
    refusal,
    request_is_late,
    without_upgrade,
)
from proxy.downstream.write_stall import WriteStallTimer
from proxy.errors import APIError
from proxy.settings import Settings

# How much of a request body is still read after its response: enough for most bodies to end, so the connection is
# reused.
UNWANTED_LIMIT_BYTES = 4 * 2**20
# After an early refusal the caller may still be sending; uvicorn itself would wait without limit.
UNWANTED_SECONDS = 5.0
# A slower body, averaged over one timeout, is not awaited any longer.
BODY_BYTES_A_SECOND = 100
# Pipelined requests wait in memory. Browsers and SDKs send none; HTTP/1.1 allows any number (RFC 9112 §9.3.2).
_PIPELINE_LIMIT = 256


class _UntilClosed(RequestResponseCycle):
    """A response to an HTTP/1.0 request: without Content-Length it ends with the connection, because 1.0 has no
    chunks."""

    _is_unframed = False

    async def send(self, message: Any) -> None:
        """Sends one ASGI message."""
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", ())}
            if b"content-length" not in names:
                self._is_unframed, self.chunked_encoding = True, False
        elif self._is_unframed:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class LimitedProtocol(HttpToolsProtocol):
    """One client connection, with the limits of the settings in the lifespan state."""

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        settings: Settings = app_state["settings"]
        self._head_limit = settings.head_limit_bytes
        self._timeout_seconds = settings.caller_timeout_seconds
        self.timeout_keep_alive = settings.idle_timeout_seconds  # type: ignore[assignment]
        self._is_in_head = False
        self._head_bytes = 0  # of a head received in several reads
        self._piece_bytes = 0
        self._body_bytes = 0
        self._has_body_in_piece = False
        self._between_bytes = 0  # bytes of chunk framing and trailers since the last byte of a body
        self._trailer_bytes = 0
        self._unwanted_bytes = 0
        self._refusal: APIError | None = None
        self._working: RequestResponseCycle | None = None
        self._outlet: Outlet | None = None
        self._extensions: dict[str, Any] = {EXTENSION: self._outlet_of}
        self._head_timer: asyncio.TimerHandle | None = None
        self._body_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the request-head timeout."""
        super().connection_made(transport)
        self._write_stall = WriteStallTimer(self.loop, transport, timeout_seconds=self._timeout_seconds)
        self._head_timer = self.loop.call_later(self._timeout_seconds, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Informs the request in progress; uvicorn informs only the last request of a pipeline."""
        self.stop_timers()
        self._extensions.clear()  # breaks the cycle: requests refer to it, and it refers to this object
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
        """Stops all timers of this connection."""
        for timer in (self._head_timer, self._body_timer):
            if timer is not None:
                timer.cancel()
        self._write_stall.end()

    def data_received(self, data: bytes) -> None:
        """Parses received data."""
        if self.transport.is_closing():
            return
        self._piece_bytes, self._has_body_in_piece = len(data), False
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        if self._is_in_head:
            self._head_bytes += len(data)
        elif self.cycle is not None and self.cycle.more_body:
            self._between_bytes = 0 if self._has_body_in_piece else self._between_bytes + len(data)
        if self._head_bytes > self._head_limit or self._between_bytes > self._head_limit:
            self._refuse(head_is_too_large(self._head_limit))
            return
        self._begin_timers()

    def _begin_timers(self) -> None:
        if self._body_timer is None and self.cycle is not None and self.cycle.more_body:
            self._await_body()
        # If no request is in progress and no body is expected, a head is expected.
        if self._head_timer is None and (self._is_in_head or self.cycle is None or self.cycle.response_complete):
            self._head_timer = self.loop.call_later(self._timeout_seconds, self._head_is_late)

    def _parse(self, data: bytes) -> None:
        """Feeds the parser.

        The parser skips the body of a request with an Upgrade header (Java's HTTP client sends one for h2c with its
        first request). Such a request is parsed again without that header.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            method, version = self.parser.get_method(), self.parser.get_http_version().encode()
            lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
            lines += [b": ".join(header) for header in without_upgrade(self.headers)]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._parse(b"\r\n".join(lines) + b"\r\n\r\n" + data[upgrade.args[0] :])

    def on_message_begin(self) -> None:
        """The first byte of a request has arrived."""
        self._is_in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collects a header; after the body it is a trailer, which is dropped (RFC 9110 §6.5.1)."""
        if not self._is_in_head:
            self._trailer_bytes += len(name) + len(value) + 4
            if self._trailer_bytes > self._head_limit:
                self._stop_parser(head_is_too_large(self._head_limit))
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._has_body_in_piece = True  # this read contains the end of a head, which has its own limit
        if self._head_bytes + self._piece_bytes > self._head_limit and self._size_of_head() > self._head_limit:
            self._stop_parser(head_is_too_large(self._head_limit))
        version = self.parser.get_http_version()
        error = head_error(self.parser.get_method(), self.url, version, self.headers)
        if error is not None:
            self._stop_parser(error)
        if self.parser.should_upgrade():
            return  # parsed again, see _parse
        self._is_in_head = False
        if len(self.pipeline) >= _PIPELINE_LIMIT:
            self._stop_parser(
                APIError("Too many requests are waiting on this connection.", status=429, type_="requests")
            )
        self._head_bytes = self._trailer_bytes = self._between_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()
        if version == "1.0":
            self.cycle.waiting_for_100_continue = False
            self.cycle.__class__ = _UntilClosed  # possible because its task has not started yet
        if self.pipeline and self._outlet is not None:
            self._outlet.keep_reading()  # uvicorn has paused reading; pipelined data is limited by number and size
        # Its task has not started yet. Avoid a reference cycle from the request to itself, which only the GC would
        # free.
        self.scope["extensions"] = self._extensions

    def on_body(self, body: bytes) -> None:
        """Passes on part of a body; limits how much of an unwanted body is read."""
        self._has_body_in_piece = True
        if self.cycle.response_complete:
            self._unwanted_bytes += len(body)
            if self._unwanted_bytes > UNWANTED_LIMIT_BYTES:
                self.transport.abort()
            return
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        if self.parser.should_upgrade():
            return
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
        self._body_bytes = self._unwanted_bytes = 0
        self.cycle.more_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The response was written, possibly before the end of its request."""
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
        """The idle timeout has passed; the client should also have read its response by now."""
        super().timeout_keep_alive_handler()
        self._write_stall.begin_if_closing()

    def pause_writing(self) -> None:
        """The client reads slower than its response is produced."""
        super().pause_writing()
        self._write_stall.begin()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_stall.end()

    def send_400_response(self, msg: str) -> None:
        """Rejects invalid HTTP with an error in the usual JSON format."""
        self._refuse(self._refusal or bad_http(msg))

    def _stop_parser(self, error: APIError) -> NoReturn:
        self._refusal = error
        raise ValueError(error.message)  # stops httptools; send_400_response is called next

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
        """Sends an error outside the application, unless it could be taken for another request's response; then
        closes."""
        if self.transport.is_closing():
            return
        working = self._working
        is_of_working = working is not None and working is self.cycle and not working.response_started
        if working is not None and is_of_working:
            working.disconnected = True
            working.message_event.set()
            self._tell_outlet()
        # A request that was already answered, and whose body is malformed after that, gets no second response.
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
            # Another request is in progress: the next head gets more time, but not indefinitely.
            self._head_timer = self.loop.call_later(self._timeout_seconds, self._head_is_late)
        elif self._is_in_head:
            self._refuse(request_is_late())
        else:
            self.transport.close()

    def _await_body(self) -> None:
        self._body_bytes = 0
        self._body_timer = self.loop.call_later(self._timeout_seconds, self._look_at_body, self.flow.read_paused)

    def _look_at_body(self, was_paused: bool) -> None:  # noqa: FBT001 - called by the timer
        """Checks that the body is still arriving. Time during which we paused reading does not count."""
        is_slow = self._body_bytes < BODY_BYTES_A_SECOND * self._timeout_seconds
        if is_slow and not (was_paused or self.flow.read_paused or self.cycle.waiting_for_100_continue):
            self.transport.abort()
        else:
            self._await_body()
