"""Records one exchange: folds its reply, measures its times, and decides with which status it ends."""

import asyncio
import time
from typing import Any

from proxy.recording.recorder import Recorder
from proxy.storage.exchange import Exchange, Outcome, Status
from proxy.wire.endpoint import Reply
from proxy.wire.endpoints import endpoint_of
from proxy.wire.json_text import parsed_object
from proxy.wire.sse import Event

CALLER_LEFT = {"message": "The caller left before the reply had ended.", "type": "caller_disconnected"}
CANCELLED = {"message": "The response was cancelled.", "type": "cancelled"}
# How much of an unparsable reply is kept in the exchange's error.
_BEGINNING_BYTES = 2000
_MEDIA_TYPE_LENGTH = 200  # upstream may send a header of any length

STOPPED = {"message": "The proxy was stopped before the reply had ended.", "type": "interrupted"}


class Recording:
    """One exchange being recorded. It ends exactly once."""

    def __init__(self, recorder: Recorder, exchange: Exchange, *, size: int) -> None:
        self._recorder = recorder
        self.is_strict = recorder.is_strict
        self._started = time.monotonic()
        self._first_token: float | None = None
        self._has_ended = False
        self.endpoint = endpoint_of(exchange.endpoint)
        self.reply: Reply = self.endpoint.reply(exchange.asked)
        self.live = recorder.open(exchange, self.reply, size=size)
        self.http_status: int | None = None
        self._media_type: str | None = None
        self._beginning = b""
        self.trouble: dict[str, Any] | None = None  # why the reply is not fully recorded
        self.upstream: str | None = None
        self._sent: float | None = None
        self._answered: float | None = None
        self._head: float | None = None
        self.saved: asyncio.Future[Any] | None = None

    def answered(
        self,
        http_status: int,
        media_type: bytes | None = None,
        *,
        upstream: str | None = None,
        sent_at: float | None = None,
    ) -> None:
        """Called when upstream's status has arrived."""
        self.upstream = upstream
        self.http_status = http_status
        self._media_type = None if media_type is None else media_type.decode("latin-1")[:_MEDIA_TYPE_LENGTH]
        self._sent, self._answered = sent_at, time.monotonic()

    def head_is_known(self) -> None:
        """Called when everything needed for the reply's head is known."""
        self._head = time.monotonic()

    @property
    def has_token(self) -> bool:
        """Whether the first token has arrived."""
        return self._first_token is not None

    def take(self, event: Event) -> None:
        """Folds one event of the stream."""
        self.reply.feed(event)
        # vLLM sends the head at once, even while the request is queued, and a first chunk that contains only the role.
        if self._first_token is None and self.reply.has_token:
            self._first_token = time.monotonic()

    def begins(self, data: bytes) -> None:
        """Keeps the start of the reply for the error message if it turns out to be unparsable."""
        if len(self._beginning) < _BEGINNING_BYTES:
            self._beginning += data[: _BEGINNING_BYTES - len(self._beginning)]

    def take_between(self, text: bytes) -> None:
        """Takes text in a stream that is not an event: an error, or a whole reply with the media type of a stream."""
        value = parsed_object(text)
        if value is None:
            return
        if value.get("error"):
            self.reply.feed(Event(text, text, b"error"))
        elif not self.reply.choices:
            self.reply.take_whole(text)

    def take_whole(self, body: bytes) -> None:
        """Takes a non-streamed reply."""
        self.live.size += len(body)
        self.begins(body)
        self.reply.take_whole(body)

    def end_streamed(self) -> asyncio.Future[Any] | None:
        """Ends a stream: completed if every choice has finished, otherwise failed or incomplete."""
        if self.reply.is_whole and self.trouble is None:
            return self.end("completed")
        error = self.reply.error or self.trouble
        if not self.reply.choices:
            return self.end("failed", error=error or self._unusable_reply("Upstream's stream contains no reply."))
        if error is None and self.reply.unread:
            self._beginning = self.reply.unread
            error = self._unusable_reply("Upstream's stream contains data that is not part of a reply.")
        return self.end("incomplete", error=error)

    def end_whole(self) -> asyncio.Future[Any] | None:
        """Ends a non-streamed reply."""
        is_2xx = self.http_status is not None and 200 <= self.http_status < 300
        is_reply = any(choice.finish_reason or choice.says_something for choice in self.reply.choices)
        if is_2xx and self.reply.error is None and is_reply:
            return self.end("completed")
        error = self.reply.error or self.trouble
        if error is None and not is_2xx:
            error = parsed_object(self._beginning)  # an upstream error in a format of its own
        return self.end("failed", error=error or self._unusable_reply("Upstream's reply could not be understood."))

    def end(self, status: Status, *, error: Any = None) -> asyncio.Future[Any] | None:
        """Ends the exchange. The future is done when it is on disk."""
        if self._has_ended:
            return None
        self._has_ended = True
        outcome = Outcome(
            status="completed" if status == "incomplete" and self.reply.is_whole and self.trouble is None else status,
            http_status=self.http_status,
            reply=self.reply,
            error=error,
            time_to_first_token_ms=self._since_start(self._first_token),
            duration_ms=self._since_start(time.monotonic()),
            upstream=self.upstream,
            queued_ms=self._since_start(self._sent),
            head_ms=self._since_start(self._answered),
            upstream_latency_seconds=None if self._answered is None else self._answered - self._started,
            overhead_seconds=None if self._head is None or self._answered is None else self._head - self._answered,
        )
        self.saved = self._recorder.finish(self.live, outcome)
        return self.saved

    def _unusable_reply(self, message: str) -> dict[str, Any]:
        return {
            "message": message,
            "type": "upstream_reply",
            "status": self.http_status,
            "media_type": self._media_type,
            "text": self._beginning.decode("utf-8", "replace"),
        }

    def _since_start(self, moment: float | None) -> int | None:
        return None if moment is None else round((moment - self._started) * 1000)


async def committed(recording: Recording, saved: asyncio.Future[Any] | None) -> None:
    """In strict mode, waits until the end of the exchange is on disk."""
    # A caller that disconnects while waiting cancels the future but not the write.
    if saved is not None and recording.is_strict and not saved.cancelled():
        await saved
