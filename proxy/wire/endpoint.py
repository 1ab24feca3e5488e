"""What the rest of the program knows of a dialect: how a request is read, a reply folded and an error said. Pure.

`endpoints.py` lists the dialects. Everything outside `wire/` works with these protocols alone.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from proxy.wire.sse import Event

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """One reply to a request, as an OpenAI message whatever the dialect."""

    index: int
    message: JSON  # fit to be sent back
    finish_reason: str | None  # exactly as sent
    extra: JSON  # logprobs, stop_reason, token_ids and keys nobody knows yet


class Tokens(NamedTuple):
    """The counts of a reply's usage; None where upstream did not say."""

    prompt: int | None = None
    completion: int | None = None
    total: int | None = None
    reasoning: int | None = None
    cached: int | None = None


class Request(Protocol):
    """A request body that is a JSON object."""

    @property
    def body(self) -> JSON:
        """The object as the caller sent it."""

    @property
    def messages(self) -> list[JSON]:
        """Its messages in the shape of OpenAI's chat completions; [] where it has none that can be stored."""

    @property
    def parameters(self) -> JSON:
        """The keys to store beside the messages, verbatim; metadata has a column of its own."""

    @property
    def wire(self) -> JSON | None:
        """What of it changes with every turn, and is no part of the conversation: the exchange's alone."""

    @property
    def wants_stream(self) -> bool:
        """Whether the reply is to come as events."""


class Reply(Protocol):
    """One reply: either events are fed to it, or it takes a whole body. Nothing here raises on what upstream sends."""

    # For the hot path (see `tee.py`): while `can_batch`, events that are `is_batchable` are only appended to `batched`.
    can_batch: bool
    batched: list[bytes]
    error: Any  # what upstream said went wrong, as JSON; None where nothing did

    def feed(self, event: Event) -> None:
        """Fold one event of a stream."""

    def take_whole(self, body: bytes) -> None:
        """Take a reply that is not a stream, or what `to_json_dict` gave."""

    def is_end(self, event: Event) -> bool:
        """Whether the event ends the stream: in strict mode it goes out when the exchange is on disk."""

    def is_usage_only(self, event: Event) -> bool:
        """Whether the event may be the one that asking for the usage adds to a stream."""

    def without_usage(self, event: Event) -> bytes:
        """Such an event's bytes for a caller who did not ask for the usage that the proxy asked for."""

    def is_batchable(self, data: bytes) -> bool:
        """Whether these bytes are one whole event that nobody needs to look into before the next write."""

    def take_batched(self) -> bytes:
        """The batched events since the last call, as a stream: as few events as mean the same."""

    @property
    def is_ordinary(self) -> bool:
        """Whether the next event is likely to differ from the last in nothing but its text."""

    @property
    def has_token(self) -> bool:
        """Whether generated text has come."""

    @property
    def is_whole(self) -> bool:
        """Whether everything has come: every choice has ended and no error came."""

    @property
    def choices(self) -> list[Choice]:
        """What was said so far."""

    @property
    def finish_reason(self) -> str | None:
        """The first choice's."""

    @property
    def finish_reasons(self) -> list[str]:
        """Those of the choices that have one."""

    @property
    def tokens(self) -> Tokens:
        """The counts of `usage`."""

    @property
    def usage(self) -> JSON | None:
        """The usage as upstream sent it."""

    @property
    def id(self) -> str | None:
        """Upstream's id of the reply."""

    @property
    def model(self) -> str | None:
        """The model that answered."""

    @property
    def created(self) -> int | None:
        """When, in seconds since 1970."""

    @property
    def envelope(self) -> JSON:
        """Every top-level key but the choices, usage and error."""

    def to_json_dict(self) -> JSON:
        """The reply as upstream would have sent it without streaming; `take_whole` reads it back."""


class Endpoint(Protocol):
    """One dialect."""

    @property
    def name(self) -> str:
        """What the settings call it."""

    @property
    def path(self) -> str:
        """Where it is served."""

    def parse(self, body: bytes) -> Request | None:
        """The request, or None where it cannot be recorded: it is relayed all the same, and upstream judges it."""

    def request(self, body: JSON) -> Request:
        """The request of a body that has been parsed before."""

    def reply(self, request: Request | None = None) -> Reply:
        """An empty reply to a request, where that is known."""

    def with_usage(self, body: bytes, request: Request) -> bytes | None:
        """The body that also asks for the usage of a stream; None where there is nothing to ask."""

    def error_event(self, error: JSON) -> bytes:
        """How a stream says that upstream died. `error` has `message`, `type`, `param` and `code`."""

    def error_body(self, error: JSON) -> bytes:
        """How a reply that is not a stream says it."""
