"""Estimates the tokens of a relayed request and reply, in any dialect, without parsing JSON. Pure.

It searches for the names of usage members; inside generated text their quotes would be escaped. If upstream reports
no usage, for example because the stream was cut, each event counts as one token.
"""

import re

_COUNT = re.compile(rb'"(prompt|input|completion|output|total)_tokens"\s*:\s*([0-9]{1,12})')
# A usage member may be split across chunks, so the end of each chunk is scanned again with the next one.
_LONGEST_COUNT = 64
# A rough estimate, used only until upstream reports its usage.
_BYTES_A_TOKEN = 4


class TokenMeter:
    """The tokens of one request and its reply."""

    __slots__ = ("_bytes", "_counts", "_events", "_has_ended", "_is_stream", "_request_bytes", "_status", "_tail")

    def __init__(self, *, request_bytes: int) -> None:
        self._request_bytes = request_bytes
        self._status: int | None = None
        self._is_stream = False
        self._counts: dict[bytes, int] = {}
        self._events = 0  # since the last usage
        self._bytes = 0
        self._has_ended = False
        self._tail = b""

    @property
    def request_tokens(self) -> int:
        """Estimate from the request's size."""
        return self._request_bytes // _BYTES_A_TOKEN

    def begin(self, status: int, *, is_stream: bool) -> None:
        """Called when the response head has arrived."""
        self._status, self._is_stream = status, is_stream

    def feed(self, data: bytes) -> None:
        """Scans one piece of the reply."""
        self._bytes += len(data)
        window = self._tail + data
        after = 0
        for match in _COUNT.finditer(window):
            name = match[1]
            self._counts[name] = max(self._counts.get(name, 0), int(match[2]))
            after = match.end()
        if after > len(self._tail):
            self._events = 0
        self._events += _events_in(window[after:]) - _events_in(self._tail[after:])
        self._tail = window[-_LONGEST_COUNT:]

    def end(self) -> None:
        """Called when the reply is complete."""
        self._has_ended = True

    @property
    def total(self) -> int:
        """Tokens used, as far as known."""
        if self._status is None or self._status >= 400:
            return 0
        counts = self._counts
        if not counts and self._is_stream:
            return self.request_tokens + self._events
        if not counts:
            # Models report usage at the end of a whole reply; a complete reply without it (a list of models) used no
            # tokens.
            return 0 if self._has_ended else self.request_tokens + self._bytes // _BYTES_A_TOKEN
        asked = max(counts.get(b"prompt", 0), counts.get(b"input", 0))
        replied = max(counts.get(b"completion", 0), counts.get(b"output", 0))
        # A complete stream sends only its terminator after the last usage.
        uncounted = max(0, self._events - 2) if self._is_stream else 0
        return max(counts.get(b"total", 0), asked + replied) + uncounted


def _events_in(data: bytes) -> int:
    return max(data.count(b"\n\n"), data.count(b"\r\n\r\n"), data.count(b"\r\r"))
