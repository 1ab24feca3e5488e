"""Replays the events of a response from a given number on, byte for byte, from disk and memory."""

from collections.abc import Iterable

from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.wire.json_text import parsed_object
from proxy.wire.responses_reply import TERMINAL
from proxy.wire.sse import Decoder, Event


class Replay:
    """Reads a growing stream repeatedly and returns only new events after the requested number."""

    def __init__(self, exchange_id: str, *, after: int) -> None:
        self.exchange_id = exchange_id
        self.last = after  # number of the newest event returned or skipped
        self.has_ended = False  # the terminal event was read
        self._after = after
        self._decoder = Decoder()
        self._next = 0  # first fragment not read yet
        self._read_bytes = 0  # total size of the fragments before it
        self._taken_bytes = 0  # bytes consumed of the whole stream

    def read(self, connection: Connection, *, stop: int | None, tail: bytes) -> bytes:
        """Returns the new events from the fragments up to `stop` and from `tail`, the part not on disk yet."""
        fresh = b"".join(
            queries.fragments.list_fragment_range(connection, self.exchange_id, start=self._next, stop=stop)
        )
        skipped = self._taken_bytes - self._read_bytes
        stream = fresh + tail
        if stop is not None:
            self._next = max(self._next, stop)
        self._read_bytes += len(fresh)
        self._taken_bytes = max(self._taken_bytes, self._read_bytes + len(tail))
        return b"".join(event.raw for event in self._wanted(self._decoder.feed(stream[skipped:])))

    def _wanted(self, events: Iterable[Event]) -> Iterable[Event]:
        for event in events:
            parsed = parsed_object(event.data) or {}
            self.has_ended = self.has_ended or parsed.get("type") in TERMINAL
            number = parsed.get("sequence_number")
            if type(number) is int and number > self._after:
                self.last = max(self.last, number)
                yield event
