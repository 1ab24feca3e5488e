"""The events of a response from one on, byte for byte, of what its stream has left on disk and in memory."""

from collections.abc import Iterable

from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.wire.json_text import parsed_object
from proxy.wire.responses_reply import TERMINAL
from proxy.wire.sse import Decoder, Event


class Replay:
    """Takes a stream as far as it has been written down, again and again, and gives what is new and wanted of it."""

    def __init__(self, exchange_id: str, *, after: int) -> None:
        self.exchange_id = exchange_id
        self.last = after  # the number of the newest event that was given, or is not wanted
        self.has_ended = False  # the terminal event has been read
        self._after = after
        self._decoder = Decoder()
        self._next = 0  # the first piece that has not been read
        self._read_bytes = 0  # of the pieces before it
        self._taken_bytes = 0  # of the whole stream

    def read(self, connection: Connection, *, stop: int | None, tail: bytes) -> bytes:
        """The new events: of the pieces up to `stop`, and of what comes after those and is not written down yet."""
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
