"""What the replies of the dialects other than chat have in common. Nothing raises on what an upstream sends."""

from abc import ABC, abstractmethod
from typing import Any

from proxy.wire.dialect import JSON
from proxy.wire.endpoint import Choice, Tokens
from proxy.wire.json_text import parsed_object
from proxy.wire.sse import Event

_LARGEST_INTEGER = 2**63 - 1


class DialectReply(ABC):
    """One reply. Feed it each event, or let it take a whole body."""

    def __init__(self) -> None:
        self.usage: JSON | None = None  # as upstream sent it
        self.error: Any = None
        self.malformed = 0
        self.has_token = False
        # No two events of these dialects are alike (see `endpoint.Reply`): none is batched.
        self.can_batch = False
        self.batched: list[bytes] = []

    def feed(self, event: Event) -> None:
        """Fold one event. What cannot be understood is counted, never raised."""
        data = event.data
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
        return False

    def take_batched(self) -> bytes:
        return b""

    @property
    def is_ordinary(self) -> bool:
        return False

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
