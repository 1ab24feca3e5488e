"""Splits a stream in two: upstream's bytes go to the caller immediately, and a copy goes to the recorder."""

import logging

from proxy.recording.hidden_usage import HiddenUsage
from proxy.recording.one_exchange import Recording
from proxy.wire.content_coding import Decoding
from proxy.wire.sse import Decoder, Event

logger = logging.getLogger(__name__)

# Maximum buffered bytes per stream: an incomplete event, and what follows the end event.
_EVENT_BYTES = 64 * 2**20
TOO_LARGE = {
    "message": f"The reply has more than {_EVENT_BYTES} bytes in one event; the rest of it is not recorded.",
    "type": "reply_too_large",
}


class Tee:
    """Decides for each chunk what is sent now and what is held until the end of the exchange is on disk."""

    __slots__ = ("_decoder", "_gave_up", "_held", "_hidden", "_holds", "_last", "_recording", "has_ended")

    def __init__(self, recording: Recording, *, hides_usage: bool) -> None:
        self.has_ended = False  # the end event has arrived; nothing is recorded after it
        self._decoder = Decoder()
        self._recording = recording
        self._hidden = HiddenUsage(recording.reply) if hides_usage else None
        self._holds = recording.is_strict
        self._held = bytearray()
        self._gave_up = False
        self._last = b""

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
        if self._gave_up:
            return data
        if not self.has_ended:
            recording.live.feed(data)
            if not recording.has_token:
                recording.begins(data)
        out = self._pass(self._decoder.feed(data))
        if self._decoder.pending > _EVENT_BYTES or len(self._held) > _EVENT_BYTES:
            out.append(self._give_up())
        # Between two events, after the first token and before the end, batchable bytes are passed on without parsing.
        is_between = not self._decoder.pending and not self.has_ended
        reply.can_batch = is_between and recording.has_token and reply.is_ordinary
        return out[0] if len(out) == 1 else b"".join(out)

    def finish(self) -> None:
        """Called when upstream has ended: an unterminated last event still counts, and is sent by `rest`."""
        if not self._gave_up:
            self._last = b"".join(self._pass(self._decoder.finish()))

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
        if event.data:
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
        if self._gave_up:
            return b""
        return self._last + (self._hidden.end() if self._hidden else b"") + self.release() + self._decoder.rest

    def _give_up(self) -> bytes:
        """Stops recording: this is not an event stream, or it continues after its end.

        The rest is relayed unchanged.
        """
        logger.warning("a stream has an event of more than %d bytes; the rest is not recorded", _EVENT_BYTES)
        self._recording.trouble = TOO_LARGE
        rest = self.rest()
        self._gave_up = True
        return rest


class EncodedTee(Tee):
    """The tee of a compressed stream: chunks are relayed unchanged; the chunk that contains the end is held."""

    __slots__ = ("_decoding",)

    def __init__(self, recording: Recording, decoding: Decoding) -> None:
        super().__init__(recording, hides_usage=False)
        self._decoding = decoding

    def feed(self, data: bytes) -> bytes:
        """Like `Tee.feed`, but never batched."""
        return self.cut(data)

    def cut(self, data: bytes) -> bytes:
        """Records a chunk's content; returns the chunk, or b"" once the end has arrived."""
        if not self._gave_up:
            self._record(data)
        if self.has_ended and self._holds:
            self._held += data
            return b""
        return data

    def rest(self) -> bytes:
        """The held end."""
        return self.release()

    def _record(self, data: bytes) -> None:
        try:
            text = self._decoding.decode(data)
        except ValueError as exc:
            logger.warning("a compressed stream cannot be read any further: %s", exc)
            self._recording.trouble = {"message": f"The reply could not be decoded: {exc}", "type": "reply_not_decoded"}
            self._gave_up = True
            return
        if self.has_ended:
            return
        self._recording.live.feed(text)
        self._recording.begins(text)
        for event in self._decoder.feed(text):
            if not self.has_ended:
                self._record_event(event)

    def finish(self) -> None:
        """Records an unterminated last event."""
        if not self._gave_up and not self.has_ended:
            for event in self._decoder.finish():
                self._record_event(event)
