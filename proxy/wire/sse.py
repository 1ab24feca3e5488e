"""Server-sent events parser: bytes in, events out (WHATWG HTML §9.2.6), no I/O.

Line ends are LF, CRLF and CR only. Comments and fields other than `data` and `event` are kept only in `raw`.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import orjson

_CR, _LF = 13, 10  # `int in bytes` is a direct search; `bytes in bytes` first raises and catches a TypeError internally
# Ignored at the beginning of a stream (WHATWG HTML §9.2.6).
_BOM = b"\xef\xbb\xbf"
# The only line ends of the standard: `bytes.splitlines` agrees, but `str.splitlines` knows eight more.
_LINE_END = re.compile(rb"\r\n|\n|\r")
# A line end and the blank line after it. After a bare CR, the stream is assumed to use bare CRs, so that an event does
# not wait for an LF that may never arrive. If one does arrive, it becomes a blank event without data.
_BLANK_LINE = re.compile(rb"\n\n|\n\r\n?|\r\r")
# Blank lines of one kind, each an event without data. A CR counts only if the next byte shows that it is no CRLF.
_BLANK_RUN = re.compile(rb"\n+|(?:\r\n)+|\r+(?=\r)")
# Some gateways separate events by a single line end, against the standard: then a line after a complete JSON object
# starts another event. Once seen in a stream, every data line is its own event.
_LINE_BYTES = 2**20
_LINES_MAX = 100_000  # an event of more lines is not parsed
_DATA_LINE = re.compile(rb"(?:(?<=[\r\n])|\A)data:[^\r\n]*(?:\r\n|\n|\r)?")
_NEXT_LINE = re.compile(rb"(?:\}|\])[ \t]*\r?\n(?=(?:data|event|id|retry)?:)")


# Media types are not reliable: streams come as text/plain or application/octet-stream, too.
_BEGINNING = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:data|event|id|retry)?:")


def looks_like_stream(text: bytes) -> bool:
    """Whether a body starts like an event stream; JSON and HTML never do."""
    return _BEGINNING.match(text) is not None


def may_become_stream(text: bytes) -> bool:
    """Whether more bytes are needed to tell if a body is an event stream."""
    begun = text.removeprefix(b"\xef\xbb\xbf").lstrip()
    return any(field.startswith(begun) and field != begun for field in (b"data:", b"event:", b"id:", b"retry:"))


class Event(NamedTuple):
    """One event. The `raw` of all events plus the decoder's `rest` equal the input, byte for byte."""

    raw: bytes
    data: bytes  # the data fields joined by LF; empty for comments and blank lines
    name: bytes = b""  # value of the last `event` field


_new = tuple.__new__  # takes a third of the time of Event(...); this runs for every token


class Decoder:
    """Splits a byte stream into events, wherever the chunk boundaries are."""

    __slots__ = ("_at_start", "_buffer", "_is_by_line", "_scanned")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0  # no event ends before this offset; keeps the scan linear for many small chunks
        self._at_start = True
        self._is_by_line = False

    @property
    def rest(self) -> bytes:
        """The bytes of the unfinished event (a copy)."""
        return bytes(self._buffer)

    @property
    def pending(self) -> int:
        """Length of the unfinished event in bytes."""
        return len(self._buffer)

    def feed(self, chunk: bytes) -> list[Event]:
        if self._buffer:
            if chunk.find(b"\n\n") < 0:
                return self._feed_any(chunk)
            chunk = self.rest + chunk  # each byte is copied at most once: the completed event leaves the buffer
            self._buffer.clear()
            self._scanned = 0
        if chunk[:6] == b"data: " and _CR not in chunk:
            end = len(chunk) - 2
            if chunk.find(b"\n") == end and chunk[-1:] == b"\n":
                self._at_start = False
                return [_new(Event, (chunk, chunk[6:end], b""))]
            if events := self._feed_plain(chunk):
                return events
        elif chunk[:7] == b"event: " and _CR not in chunk and (named := _named(chunk)) is not None:
            self._at_start = False
            return [named]
        return self._feed_any(chunk)

    # vLLM sends each event as one HTTP chunk: `data: {...}` and a blank line. The last event and `[DONE]` may arrive
    # together.
    def _feed_plain(self, chunk: bytes) -> list[Event]:
        """Fast path: events of one `data: ` line each, and perhaps the start of another; [] for anything else."""
        pieces = chunk.split(b"\n\n")
        tail = pieces.pop()
        if tail[:1] == b"\n":
            return []
        for piece in pieces:
            if piece[:6] != b"data: " or _LF in piece:
                return []
        self._at_start = self._at_start and not pieces
        if pieces:
            self._buffer += tail
            self._scanned = 0
        return [_new(Event, (piece + b"\n\n", piece[6:], b"")) for piece in pieces]

    def _feed_any(self, chunk: bytes) -> list[Event]:
        self._buffer += chunk
        return self._take_events()

    def _take_events(self) -> list[Event]:
        events: list[Event] = []
        buffer, start = self._buffer, 0
        while (end := self._event_end(start)) is not None:
            # Taken at once: a small compressed reply may decode to millions of blank lines.
            if (blank := _BLANK_RUN.match(buffer, start)) is not None:
                end = blank.end()
                events += _blank_events(blank.group())
                self._at_start = False
            else:
                events += self._events(bytes(buffer[start:end]))
            start = self._scanned = end
        # The event end may begin in the last two bytes (LF CR), which the next byte decides.
        self._scanned = max(0, len(buffer) - 2 - start)
        del buffer[:start]
        return events

    def finish(self) -> list[Event]:
        """The last event, if the stream ended without a blank line. Call once, after a clean end."""
        raw = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        return self._events(raw) if raw else []

    def _events(self, raw: bytes) -> list[Event]:
        text = raw[3:] if self._at_start and raw.startswith(_BOM) else raw
        self._at_start = False
        event = _event(raw, text)
        if b"\n" not in event.data or len(raw) > _LINE_BYTES or not all(map(_is_whole, event.data.split(b"\n"))):
            return [event]
        return list(_by_line(raw))

    def _line_end(self, start: int, first: int, *, before: int) -> int | None:
        """Where the event at `start` ends, in a stream with a single line end between events."""
        buffer = self._buffer
        if self._is_by_line:
            place = first
            while (end := buffer.find(b"\n", max(place, self._scanned), before)) >= 0:
                line = bytes(buffer[max(buffer.rfind(b"\n", first, end) + 1, first) : end])
                if line.startswith(b"data:"):
                    return end + 1
                place = self._scanned = end + 1
            return None
        found = _NEXT_LINE.search(buffer, max(first, self._scanned - 2), before)
        if (
            found is None
            or found.end() - first > _LINE_BYTES
            or not _is_whole(_event(b"", bytes(buffer[first : found.end()])).data)
        ):
            return None
        self._is_by_line = True
        return found.end()

    def _event_end(self, start: int) -> int | None:
        """Where the event at `start` ends; None if it is incomplete."""
        buffer = self._buffer
        first = start + 3 if self._at_start and buffer.startswith(_BOM) else start
        if buffer.startswith((b"\n", b"\r"), first):  # a blank line alone
            end = first + (2 if buffer[first : first + 2] == b"\r\n" else 1)
        else:
            found = _BLANK_LINE.search(buffer, max(first, self._scanned))
            before = len(buffer) if found is None else found.start() + 1
            if self._is_by_line or found is None:
                line_end = self._line_end(start, first, before=before)
                if line_end is not None:
                    return line_end
            if found is None:
                return None
            end = found.end()
            if found.group() == b"\r\r":
                return end
        may_be_half_a_crlf = end == len(buffer) and buffer[end - 1] == 13
        return None if may_be_half_a_crlf else end


def _named(chunk: bytes) -> Event | None:
    """Fast path: one `event: ` and one `data: ` line, as the dialects other than chat send them; else None."""
    end_of_name = chunk.find(b"\n")
    end = len(chunk) - 2
    if chunk[end_of_name + 1 : end_of_name + 7] != b"data: " or chunk[-1] != _LF:
        return None
    if chunk.find(b"\n", end_of_name + 1) != end:
        return None
    return _new(Event, (chunk, chunk[end_of_name + 7 : end], chunk[7:end_of_name]))


def _blank_events(run: bytes) -> list[Event]:
    line = run[:2] if run.startswith(b"\r\n") else run[:1]
    return [_new(Event, (line, b"", b""))] * (len(run) // len(line))


def _event(raw: bytes, text: bytes) -> Event:
    values: list[bytes] = []
    event, error = b"", None
    if len(text) > _LINES_MAX and text.count(b"\n") + text.count(b"\r") > _LINES_MAX:
        return Event(raw, text[:_LINES_MAX])  # no JSON, so it is counted as unreadable
    for line in _LINE_END.split(text):
        name, _, value = line.partition(b":")
        value = value[1:] if value[:1] == b" " else value
        if name == b"data":
            values.append(value)
        elif name == b"event":
            event = value
        elif name == b"error":  # not a standard field; some servers report errors this way
            error = value
    if error is not None and not values:
        return Event(raw, error, b"error")
    return Event(raw, b"\n".join(values), event)


def _by_line(raw: bytes) -> Iterator[Event]:
    """Splits an event of several data lines, each a complete object, into one event per line."""
    start = 0
    lines = list(_DATA_LINE.finditer(raw))
    for number, found in enumerate(lines, 1):
        end = len(raw) if number == len(lines) else found.end()
        yield _event(raw[start:end], raw[start:end])
        start = end


def _is_whole(data: bytes) -> bool:
    """Whether the data of one line is complete: a JSON object, or `[DONE]`."""
    text = data.strip()
    if text == b"[DONE]":
        return True
    if not (text.startswith(b"{") and text.endswith(b"}")):
        return False
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
