"""What the replies of the dialects other than chat have in common. Nothing raises on what an upstream sends."""

from abc import ABC, abstractmethod

from proxy.wire.dialect import JSON
from proxy.wire.endpoint import Choice
from proxy.wire.json_text import parsed_object

__all__ = ["Choice", "DialectReply"]


class DialectReply(ABC):
    """One reply. Feed it the data of each event, or take a whole body."""

    def __init__(self) -> None:
        self.usage: JSON | None = None  # with the names of chat completions
        self.error: object | None = None
        self.malformed = 0
        self.has_said = False  # whether a piece of text has come

    def feed(self, data: bytes) -> None:
        """Fold one event's data. What cannot be understood is counted, never raised."""
        if not data or data.isspace() or data.lstrip().startswith(b"[DONE]"):
            return
        event = parsed_object(data)
        if event is None:
            self.malformed += 1
        else:
            self.take(event)

    def take_whole(self, body: bytes) -> None:
        """Take a reply that is not a stream, or an error body."""
        whole = parsed_object(body)
        if whole is None:
            self.malformed += 1
        else:
            self.take_body(whole)

    @abstractmethod
    def take(self, event: JSON) -> None: ...

    @abstractmethod
    def take_body(self, body: JSON) -> None: ...

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
