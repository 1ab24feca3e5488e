"""The same limits where uvicorn speaks HTTP with h11: for callers of HTTP/1.0, and those who ask for an upgrade."""

import asyncio
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from proxy.downstream.httptools_protocol import (
    BODY_BYTES_A_SECOND,
    UNWANTED_LIMIT_BYTES,
    UNWANTED_SECONDS,
    WriteStallTimer,
    bad_http,
    head_is_too_large,
    refusal,
    request_is_late,
)
from proxy.errors import APIError
from proxy.settings import Settings

# What the caller has to send next: the rest of a head, of a body, or of one that nobody wants any more.
Awaited = Literal["head", "body", "unwanted"]


class LimitedH11Protocol(H11Protocol):
    """One connection of a caller. It reads one request at a time; what comes with it of the next waits."""

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        settings: Settings = app_state["services"].settings
        self.conn = h11.Connection(h11.SERVER, settings.head_limit_bytes)
        self.timeout_keep_alive = settings.idle_timeout_seconds  # type: ignore[assignment]
        self._head_limit = settings.head_limit_bytes
        self._timeout_seconds = settings.caller_timeout_seconds
        self._awaited: Awaited | None = None
        self._came_bytes = 0  # of what is awaited, since it was last looked at
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller is handed over, with the first bytes it sent."""
        super().connection_made(transport)
        self._write_stall = WriteStallTimer(self.loop, transport, timeout_seconds=self._timeout_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller has gone."""
        self._stop_timer()
        self._write_stall.end()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Parse the next piece."""
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self._has_large_head(data):
            self._refuse(head_is_too_large(self._head_limit))
            return
        self._came_bytes += len(data)
        super().data_received(data)
        if self._awaited == "unwanted" and self._came_bytes > UNWANTED_LIMIT_BYTES:
            self.transport.abort()
        self._watch()

    def on_response_complete(self) -> None:
        """The reply is written; what it answered may not have come to its end."""
        super().on_response_complete()
        self._write_stall.begin_if_closing()
        self._watch()

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
        self._refuse(bad_http(msg))

    def _unsupported_upgrade_warning(self) -> None:
        """The request is answered as if it had not asked: nothing to warn of, and strangers can ask often."""

    def _has_large_head(self, data: bytes) -> bool:
        head = self.conn.trailing_data[0] + data
        end = head.find(b"\r\n\r\n")
        return (len(head) if end < 0 else end) > self._head_limit

    def _what_is_awaited(self) -> Awaited | None:
        if self.transport.is_closing():
            return None
        if self.conn.their_state is h11.SEND_BODY:
            return "unwanted" if self.cycle.response_complete else "body"
        # While nothing has come of the next head, uvicorn's timer for idle connections runs.
        is_in_head = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None
        return "head" if is_in_head else None

    def _watch(self) -> None:
        """Give what is awaited its time, from when it is awaited."""
        awaited = self._what_is_awaited()
        if awaited == self._awaited:
            return
        self._stop_timer()
        self._awaited = awaited
        if awaited is not None:
            self._begin_timer(UNWANTED_SECONDS if awaited == "unwanted" else self._timeout_seconds)

    def _begin_timer(self, seconds: float) -> None:
        self._came_bytes = 0
        self._timer = self.loop.call_later(seconds, self._look, self.flow.read_paused)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, was_paused: bool) -> None:  # noqa: FBT001 - called by the timer
        """The time is over. A body that still comes gets more; where it waits for us, it is not the caller's fault."""
        if self._awaited == "head":
            self._refuse(request_is_late())
            return
        is_slow = self._came_bytes < BODY_BYTES_A_SECOND * self._timeout_seconds
        is_ours = was_paused or self.flow.read_paused or self.cycle.waiting_for_100_continue
        if self._awaited == "unwanted" or (is_slow and not is_ours):
            self.transport.abort()
        else:
            self._begin_timer(self._timeout_seconds)

    def _refuse(self, error: APIError) -> None:
        """Answer outside the application, unless the answer to the request has begun; then close."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        # A request that has its answer, and whose body is broken after that, gets no other one.
        is_next = cycle is None or (cycle.response_complete and not cycle.more_body)
        if is_next or not cycle.response_started:
            self.transport.write(refusal(error))
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self._stop_timer()
        self.transport.close()
        self._write_stall.begin_if_closing()
