"""The tee of a stream: upstream's bytes to the caller as they come, and to the recorder on the side."""

import logging

from proxy.recording.one_exchange import Recording
from proxy.wire.sse import Decoder

logger = logging.getLogger(__name__)

# What is held of one stream at most: an event until it is whole, and what follows its end.
_EVENT_BYTES = 32 * 2**20


class Tee:
    """A stream's bytes: what goes out now, and what is held until its end is on disk."""

    __slots__ = ("_decoder", "_gave_up", "_held", "_hides_usage", "_holds", "_recording", "has_ended")

    def __init__(self, recording: Recording, *, hides_usage: bool) -> None:
        self.has_ended = False  # the end has come: nothing is recorded after it
        self._decoder = Decoder()
        self._recording = recording
        self._hides_usage = hides_usage
        self._holds = recording.is_strict
        self._held = bytearray()
        self._gave_up = False

    def feed(self, data: bytes) -> bytes:
        """Record a piece of the stream; the bytes of its whole events that the caller gets at once."""
        reply = self._recording.reply
        if reply.can_batch and reply.is_batchable(data):
            reply.batched.append(data)
            return data
        return self.cut(data)

    def cut(self, data: bytes) -> bytes:
        """The same for a piece that may not wait."""
        recording, reply = self._recording, self._recording.reply
        if self._gave_up:
            return data
        if not self.has_ended:
            recording.live.feed(data)
        out = []
        for event in self._decoder.feed(data):
            raw = event.raw
            if event.data and not self.has_ended:
                recording.take(event)
                if reply.is_end(event):
                    self.has_ended = True
                elif self._hides_usage:
                    raw = reply.without_usage(event)
            if self.has_ended and self._holds:
                self._held += raw
            elif raw:
                out.append(raw)
        if self._decoder.pending > _EVENT_BYTES or len(self._held) > _EVENT_BYTES:
            out.append(self._give_up())
        # Between two events, past the first token and before the end, what may wait goes out as it is.
        is_between = not self._decoder.pending and not self.has_ended
        reply.can_batch = is_between and recording.has_token and reply.is_ordinary
        return out[0] if len(out) == 1 else b"".join(out)

    def release(self) -> bytes:
        """What was held; nothing is from now on."""
        held, self._held, self._holds = bytes(self._held), bytearray(), False
        return held

    def rest(self) -> bytes:
        """What is left when upstream has ended: the held end, and an event that was not finished."""
        return b"" if self._gave_up else self.release() + self._decoder.rest

    def _give_up(self) -> bytes:
        """This is no event stream, or does not stop after its end: from here on it passes as it is, unrecorded."""
        logger.warning("a stream has an event of more than %d bytes: its rest is not recorded", _EVENT_BYTES)
        rest = self.rest()
        self._gave_up = True
        return rest
