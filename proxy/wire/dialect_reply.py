"""Base class of the replies of the dialects other than chat. Never raises on upstream's data."""

from abc import ABC, abstractmethod
from typing import Any

import orjson

from proxy.wire import usage
from proxy.wire.dialect import JSON
from proxy.wire.endpoint import Choice, Tokens
from proxy.wire.json_text import object_of_reply
from proxy.wire.sse import Event

_CR = 13
_ERROR_LENGTH = 2000  # characters of upstream's text that an exchange keeps


class DialectReply(ABC):
    """One reply: call `feed` for each event, or `take_whole` for a whole body."""

    BATCHABLE: frozenset[bytes] = frozenset()  # names of events that can be folded later
    ENDS: frozenset[str] = frozenset()  # types of the events that end a stream

    def __init__(self) -> None:
        self.usage: JSON | None = None  # as upstream sent it
        self.error: Any = None
        self.malformed = 0
        self.unread = b""
        self.has_token = False
        # Read for every token, see `endpoint.Reply`.
        self.can_batch = False
        self.batched: list[bytes] = []
        self.is_ordinary = False
        self._unasked: list[bytes] = []  # events already folded but not yet returned by `take_batched`

    def feed(self, event: Event) -> None:
        """Folds one event. Malformed data is counted, never raised."""
        self.fold_batched()
        data = event.data
        self.is_ordinary = event.name in self.BATCHABLE
        if data[:1] != b"{" and (not data or data.isspace() or data.lstrip().startswith(b"[DONE]")):
            return
        parsed = object_of_reply(data)
        if parsed is None:
            self.malformed += 1
            self.unread = self.unread or data[:_ERROR_LENGTH]
        else:
            self.take(parsed)
        if event.name == b"error" and self.error is None:
            self.error = parsed or {"message": data[:_ERROR_LENGTH].decode("utf-8", "replace").strip()}

    def take_whole(self, body: bytes) -> None:
        """Takes a non-streamed reply or an error body."""
        whole = object_of_reply(body)
        if whole is None:
            self.malformed += 1
        else:
            self.take_body(whole)

    def is_end(self, event: Event) -> bool:
        """Whether this is a terminal event, by its name or type. Generated text may contain the same words: it is
        parsed."""
        data = event.data
        names = [name for end in self.ENDS if (name := end.encode()) == event.name or name in data]
        if not names or event.name in names:
            return bool(names)
        parsed = object_of_reply(data)
        return parsed is not None and parsed.get("type") in self.ENDS

    def is_usage_only(self, event: Event) -> bool:
        """False: the proxy never adds a usage request to these dialects."""
        return False

    def without_usage(self, event: Event) -> bytes:
        return event.raw

    def is_batchable(self, data: bytes) -> bool:
        """Whether this is one complete event that only extends a growing value."""
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
        """Returns all events batched since the last call, unmerged: responses are replayed event by event."""
        self.fold_batched()
        events, self._unasked = b"".join(self._unasked), []
        return events

    def fold_batched(self) -> None:
        """Folds the batched events. Parsing them together is several times cheaper."""
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
        """Folds a batch of events."""
        for event in events:
            self.take(event)

    @property
    def finish_reasons(self) -> list[str]:
        return [self.finish_reason] if self.finish_reason else []

    @abstractmethod
    def take(self, event: JSON) -> None:
        """Folds the data of one event."""

    @abstractmethod
    def take_body(self, body: JSON) -> None:
        """Takes a whole reply."""

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
    """A token count from a usage object, if it is a valid one."""
    return usage.count(holder.get(key)) if isinstance(holder, dict) else None
