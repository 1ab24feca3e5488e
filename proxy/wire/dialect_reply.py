"""What the replies of the dialects other than chat have in common. Nothing raises on what an upstream sends."""

from abc import ABC, abstractmethod
from typing import Any

import orjson

from proxy.wire.dialect import JSON
from proxy.wire.endpoint import Choice, Tokens
from proxy.wire.json_text import parsed_object
from proxy.wire.sse import Event

_CR = 13
_LARGEST_INTEGER = 2**63 - 1


class DialectReply(ABC):
    """One reply. Feed it each event, or let it take a whole body."""

    BATCHABLE: frozenset[bytes] = frozenset()  # the names of events that need not be looked into at once

    def __init__(self) -> None:
        self.usage: JSON | None = None  # as upstream sent it
        self.error: Any = None
        self.malformed = 0
        self.has_token = False
        # For the hot path, see `endpoint.Reply`.
        self.can_batch = False
        self.batched: list[bytes] = []
        self.is_ordinary = False
        self._unasked: list[bytes] = []  # events that waited and have been folded, for `take_batched`

    def feed(self, event: Event) -> None:
        """Fold one event. What cannot be understood is counted, never raised."""
        self.fold_batched()
        data = event.data
        self.is_ordinary = event.name in self.BATCHABLE
        if data[:1] != b"{" and (not data or data.isspace() or data.lstrip().startswith(b"[DONE]")):
            return
        parsed = parsed_object(data)
        if parsed is None:
            self.malformed += 1
        else:
            self.take(parsed)

    def take_whole(self, body: bytes) -> None:
        """Take a reply that is not a stream, or an error body."""
        whole = parsed_object(body)
        if whole is None:
            self.malformed += 1
        else:
            self.take_body(whole)

    def is_usage_only(self, event: Event) -> bool:
        """Never: nobody asks for usage on the caller's behalf."""
        return False

    def without_usage(self, event: Event) -> bytes:
        return event.raw

    def is_batchable(self, data: bytes) -> bool:
        """Whether this is one whole event with another piece of something that grows."""
        name_end = data.find(b"\n")
        name = data[7:name_end]
        return (
            name in self.BATCHABLE
            and data[:7] == b"event: "
            and data[name_end + 1 : name_end + 8] == b"data: {"
            and data[-3:] == b"}\n\n"
            and data.find(b"\n", name_end + 1) == len(data) - 2
            and _CR not in data
            and data.find(b'"type":"' + name + b'"', name_end) > 0
        )

    def take_batched(self) -> bytes:
        """All events that have waited since the last call: a response is read again event by event."""
        self.fold_batched()
        events, self._unasked = b"".join(self._unasked), []
        return events

    def fold_batched(self) -> None:
        """Fold the events that have waited. Parsing them at once costs a fraction."""
        if not self.batched:
            return
        events = self.batched.copy()
        self.batched.clear()
        self._unasked += events
        texts = [event[event.find(b"\n") + 7 : -2] for event in events]
        try:
            parsed = orjson.loads(b"[" + b",".join(texts) + b"]")
        except orjson.JSONDecodeError:
            parsed = []
        if len(parsed) == len(texts) and set(map(type, parsed)) == {dict}:
            self.take_pieces(parsed)
        else:
            for text in texts:
                self.feed(Event(text, text))

    def take_pieces(self, events: list[JSON]) -> None:
        """Fold events that were batched."""
        for event in events:
            self.take(event)

    @property
    def finish_reasons(self) -> list[str]:
        return [self.finish_reason] if self.finish_reason else []

    @abstractmethod
    def take(self, event: JSON) -> None:
        """Fold the data of one event."""

    @abstractmethod
    def take_body(self, body: JSON) -> None:
        """Take a whole reply."""

    @abstractmethod
    def is_end(self, event: Event) -> bool: ...

    @property
    @abstractmethod
    def tokens(self) -> Tokens: ...

    @property
    @abstractmethod
    def id(self) -> str | None: ...

    @property
    @abstractmethod
    def model(self) -> str | None: ...

    @property
    @abstractmethod
    def created(self) -> int | None: ...

    @property
    @abstractmethod
    def envelope(self) -> JSON: ...

    @property
    @abstractmethod
    def choices(self) -> list[Choice]: ...

    @property
    @abstractmethod
    def finish_reason(self) -> str | None: ...

    @property
    @abstractmethod
    def is_whole(self) -> bool: ...

    @abstractmethod
    def to_json_dict(self) -> JSON: ...


def count(holder: Any, key: str) -> int | None:
    """A token count of a usage, where it is one."""
    value = holder.get(key) if isinstance(holder, dict) else None
    return value if type(value) is int and 0 <= value <= _LARGEST_INTEGER else None
