"""Splits a stream in two: upstream's bytes go to the caller immediately, and a copy goes to the recorder."""

import logging
from collections.abc import Iterator
from typing import Any

from proxy.recording import large_replies
from proxy.recording.hidden_usage import HiddenUsage
from proxy.recording.large_replies import LARGE_BYTES, not_decoded, too_large
from proxy.recording.one_exchange import Recording
from proxy.wire.content_coding import Decoding
from proxy.wire.sse import Decoder, Event

logger = logging.getLogger(__name__)

# Maximum buffered bytes per stream: an incomplete event, and what follows the end event.
_EVENT_BYTES = 64 * 2**20
# Maximum bytes of a stream that are recorded; ordinary events count only by their text.
_STREAM_BYTES = 64 * 2**20


class Tee:
    """Decides for each chunk what is sent now and what is held until the end of the exchange is on disk."""

    __slots__ = (
        "_decoder",
        "_excess",
        "_held",
        "_hidden",
        "_holds",
        "_last",
        "_recording",
        "has_ended",
        "has_given_up",
    )

    def __init__(self, recording: Recording, *, hides_usage: bool) -> None:
        self.has_ended = False  # the end event has arrived; nothing is recorded after it
        self._decoder = Decoder()
        self._recording = recording
        self._hidden = HiddenUsage(recording.reply) if hides_usage else None
        self._holds = recording.is_strict
        self._held = bytearray()
        self.has_given_up = False  # nothing more is recorded; the rest is relayed unchanged
        self._last = b""
        self._excess: dict[str, Any] | None = None  # why recording must stop

    def feed(self, data: bytes) -> bytes:
        """Records a chunk; returns the bytes of its complete events for the caller."""
        reply = self._recording.reply
        if reply.can_batch and reply.is_batchable(data):
            reply.batched.append(data)
            return data
        return self.cut(data)

    def cut(self, data: bytes) -> bytes:
        """Like `feed`, for a chunk that may not be batched."""
        recording, reply = self._recording, self._recording.reply
        if self.has_given_up:
            return data
        self.note(data)
        out = self.fold(data)
        # Between two events, after the first token and before the end, batchable bytes are passed on without parsing.
        is_between = not self._decoder.pending and not self.has_ended
        reply.can_batch = is_between and recording.has_token and reply.is_ordinary and not self.has_given_up
        return out

    @property
    def is_large(self) -> bool:
        """Whether the unfinished event is large, so that `fold` and `finish` must run in a thread."""
        return self._decoder.pending > LARGE_BYTES and not self.has_given_up

    def may_end_large(self, data: bytes) -> bool:
        """Whether the slice may complete a large event."""
        return self.is_large and (b"\n" in data or b"\r" in data)

    def fits(self, data: bytes) -> bool:
        """Whether `cut` can process the chunk at once; else `slices` must be used."""
        return self.has_given_up or (large_replies.is_slice(data) and self._decoder.pending <= LARGE_BYTES)

    def slices(self, data: bytes) -> Iterator[bytes]:
        """Cuts a chunk into slices for `note` and `fold`; other tasks may run between two of them."""
        start = 0
        while start < len(data):
            piece = data[start:] if self.has_given_up else large_replies.slice_at(data, start)
            start += len(piece)
            yield piece

    def after(self, data: bytes) -> bytes:
        """The bytes for the caller after all slices of a chunk have been folded."""
        return b""

    def note(self, data: bytes) -> None:
        """Adds a chunk to the bytes that are saved while the reply streams."""
        recording = self._recording
        if self.has_ended or self.has_given_up:
            return
        recording.live.feed(data)
        if not recording.has_token:
            recording.begins(data)
        if recording.live.length > _STREAM_BYTES:
            self._excess = too_large(_STREAM_BYTES, "bytes")

    def fold(self, data: bytes) -> bytes:
        """Folds a chunk that has been noted; returns the bytes for the caller."""
        if self.has_given_up:
            return data
        out = self._pass(self._decoder.feed(data))
        if self._decoder.pending > _EVENT_BYTES or len(self._held) > _EVENT_BYTES:
            self._excess = too_large(_EVENT_BYTES, "bytes in one event")
        if self._excess is not None:
            out.append(self.rest())
        self._stop_if_excessive()
        return out[0] if len(out) == 1 else b"".join(out)

    def finish(self) -> None:
        """Called when upstream has ended: an unterminated last event still counts, and is sent by `rest`."""
        if not self.has_given_up:
            self._last = b"".join(self._pass(self._decoder.finish()))
            self._stop_if_excessive()

    def _pass(self, events: list[Event]) -> list[bytes]:
        """Records events; returns the bytes of those that are sent now."""
        hidden = self._hidden
        out = []
        for event in events:
            raw = event.raw
            if not self.has_ended:
                self._record_event(event)
                if hidden is not None:
                    raw = hidden.end() + raw if self.has_ended else hidden.pass_on(event)
            if self.has_ended and self._holds:
                self._held += raw
            elif raw:
                out.append(raw)
        return out

    def _record_event(self, event: Event) -> None:
        if self._excess is not None:
            return
        if len(event.data) > LARGE_BYTES and large_replies.has_too_many_values(event.data):
            self._excess = large_replies.TOO_MANY_VALUES
        elif event.data:
            self._recording.take(event)
            self.has_ended = self._recording.reply.is_end(event)
        elif event.raw.lstrip().startswith(b"{"):
            self._recording.take_between(event.raw)

    def release(self) -> bytes:
        """Returns the held bytes and stops holding."""
        held, self._held, self._holds = bytes(self._held), bytearray(), False
        return held

    def rest(self) -> bytes:
        """The remaining bytes after upstream's end: the held end event, and an incomplete event."""
        return self._last + (self._hidden.end() if self._hidden else b"") + self.release() + self._decoder.rest

    def _stop_if_excessive(self) -> None:
        if self._excess is not None:
            self._give_up(self._excess)

    def _give_up(self, reason: dict[str, Any]) -> None:
        """Stops recording: the reply is too large, is not an event stream, or continues after its end."""
        logger.warning("a stream is not recorded any further: %s", reason["message"])
        if not self.has_ended:  # nothing is missing if only data after the end is left out
            self._recording.trouble = reason
        self.has_given_up = True
        self._decoder = Decoder()


class EncodedTee(Tee):
    """The tee of a compressed stream: chunks are relayed unchanged; the chunk that contains the end is held."""

    __slots__ = ("_decoding",)

    def __init__(self, recording: Recording, decoding: Decoding) -> None:
        super().__init__(recording, hides_usage=False)
        self._decoding = decoding

    def fits(self, data: bytes) -> bool:
        """False: the decoded text is processed in slices."""
        return self.has_given_up

    def slices(self, data: bytes) -> Iterator[bytes]:
        """The chunk's text in slices."""
        if not self._records():
            return
        try:
            for text in self._decoding.pieces(data):
                yield from super().slices(text)
                if not self._records():
                    return
        except ValueError as exc:
            self._give_up(not_decoded(exc))

    def _records(self) -> bool:
        return not (self.has_given_up or self.has_ended)

    def fold(self, data: bytes) -> bytes:
        """Records a slice of text; the caller gets the compressed chunk from `after`."""
        if not self.has_given_up:
            super().fold(data)
        self._held.clear()
        return b""

    def after(self, data: bytes) -> bytes:
        """The chunk, or b"" once the end has arrived."""
        if self.has_ended and self._holds:
            self._held += data
            return b""
        return data

    def rest(self) -> bytes:
        """The held end."""
        return self.release()

    def finish(self) -> None:
        """Records an unterminated last event."""
        if not self.has_given_up and not self.has_ended:
            for event in self._decoder.finish():
                self._record_event(event)
            self._stop_if_excessive()
