"""The protocols that every dialect implements: parse a request, fold a reply, format an error. Pure.

Code outside `wire/` uses only these protocols; `endpoints.py` lists the dialects.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from proxy.wire.sse import Event

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the replies to a request, as an OpenAI message in every dialect."""

    index: int
    message: JSON  # can be sent back to upstream
    finish_reason: str | None  # exactly as sent
    extra: JSON  # logprobs, stop_reason, token_ids and unknown keys

    @property
    def says_something(self) -> bool:
        """Whether the message is not empty."""
        return any(value for key, value in self.message.items() if key != "role")


class Tokens(NamedTuple):
    """Token counts of a usage object; None if upstream did not report them."""

    prompt: int | None = None
    completion: int | None = None
    total: int | None = None
    reasoning: int | None = None
    cached: int | None = None


class Request(Protocol):
    """A request body that is a JSON object."""

    @property
    def body(self) -> JSON:
        """The JSON object as the caller sent it."""

    @property
    def messages(self) -> list[JSON]:
        """The messages in OpenAI's chat shape; [] if it has none that can be stored."""

    @property
    def parameters(self) -> JSON:
        """The other keys, stored verbatim; `metadata` has its own column."""

    @property
    def wire(self) -> JSON | None:
        """Data that changes with every turn, and is stored with the exchange instead of the conversation."""

    @property
    def wants_stream(self) -> bool:
        """Whether the caller asked for a stream."""


class Reply(Protocol):
    """One reply: feed it events, or give it a whole body. Never raises on upstream's data."""

    # Hot path, see `tee.py`: while `can_batch` is set, `is_batchable` events are only appended to `batched`.
    can_batch: bool
    batched: list[bytes]
    error: Any  # the error upstream reported, as JSON, else None
    unread: bytes  # the start of the first event that could not be parsed

    def feed(self, event: Event) -> None:
        """Folds one event of a stream."""

    def take_whole(self, body: bytes) -> None:
        """Takes a non-streamed reply, or the output of `to_json_dict`."""

    def is_end(self, event: Event) -> bool:
        """Whether the event ends the stream. In strict mode it is sent after the exchange has been committed."""

    def is_usage_only(self, event: Event) -> bool:
        """Whether the event may be the one that a usage request adds to a stream."""

    def without_usage(self, event: Event) -> bytes:
        """The event's bytes without usage, for a caller who did not request it."""

    def is_batchable(self, data: bytes) -> bool:
        """Whether these bytes are one complete event that can be folded later."""

    def take_batched(self) -> bytes:
        """Returns the events batched since the last call, merged into as few events as possible."""

    @property
    def is_ordinary(self) -> bool:
        """Whether the next event probably differs from the last one only in its text."""

    @property
    def has_token(self) -> bool:
        """Whether generated text has arrived."""

    @property
    def is_whole(self) -> bool:
        """Whether the reply is complete: every choice has finished without an error."""

    @property
    def choices(self) -> list[Choice]:
        """The choices received so far."""

    @property
    def finish_reason(self) -> str | None:
        """The first choice's finish reason."""

    @property
    def finish_reasons(self) -> list[str]:
        """The finish reasons received so far."""

    @property
    def tokens(self) -> Tokens:
        """The token counts of `usage`."""

    @property
    def usage(self) -> JSON | None:
        """The usage object as upstream sent it."""

    @property
    def id(self) -> str | None:
        """Upstream's id of the reply."""

    @property
    def model(self) -> str | None:
        """The model that answered."""

    @property
    def created(self) -> int | None:
        """Unix time in seconds."""

    @property
    def envelope(self) -> JSON:
        """Every top-level key except choices, usage and error."""

    def to_json_dict(self) -> JSON:
        """The reply as upstream would have sent it without streaming. `take_whole` can read it back."""


class Endpoint(Protocol):
    """One dialect."""

    @property
    def name(self) -> str:
        """Its name in the settings."""

    @property
    def path(self) -> str:
        """The request path."""

    def parse(self, body: bytes) -> Request | None:
        """Parses a request; None if it cannot be recorded (it is relayed anyway, and upstream validates it)."""

    def request(self, body: JSON) -> Request:
        """Wraps a body that has already been parsed."""

    def reply(self, request: Request | None = None) -> Reply:
        """An empty reply; `request` is given if it is known."""

    def with_usage(self, body: bytes, request: Request) -> bytes | None:
        """The body with usage requested for its stream; None if no change is needed."""

    def error_event(self, error: JSON) -> bytes:
        """The event that tells a stream's client that upstream failed. `error` has message, type, param and code."""

    def error_body(self, error: JSON) -> bytes:
        """The body that tells the client of a non-streamed reply the same."""
