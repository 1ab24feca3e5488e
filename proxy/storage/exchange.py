"""An exchange (one request and its reply), as passed from the route through the recorder to the database."""

from dataclasses import InitVar, dataclass, field
from typing import Any, Literal

from proxy.ids import timestamp, uuid7
from proxy.storage import parameters
from proxy.wire import hash_chain
from proxy.wire.endpoint import Reply, Request
from proxy.wire.endpoints import endpoint_of

Status = Literal["completed", "incomplete", "failed"]
_OUR_CAUSES = {"caller_disconnected": "caller_left", "interrupted": "stopped"}


@dataclass(slots=True)
class SessionRef:
    """The session of a chat, and how it was determined (the value of `X-Session-Source`)."""

    session_id: str
    source: str
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """A chat's user, session and request time: used to check whether they were deleted after the request."""

    user_id: str
    session_id: str
    asked_at: str


@dataclass(slots=True, kw_only=True)
class Exchange:
    """The part of an exchange known before the reply. `request` is the parsed body as the caller sent it; `endpoint` is
    a path from `wire.endpoints`."""

    user_id: str
    session: SessionRef
    endpoint: str
    request_id: str
    request: dict[str, Any]
    exchange_id: str = field(default_factory=uuid7)
    created_at: str = field(default_factory=timestamp)
    asked_at: str | None = None  # an `ids.moment`, compared with deletions; None: created_at
    trace_context: dict[str, str] | None = None  # the caller's traceparent and tracestate; used only for traces

    parsed: InitVar[Request | None] = None  # the endpoint's parsed `request`, if the caller has it
    asked: Request = field(init=False)  # `request`, parsed by its endpoint
    # set when a slice of a long request has created the session
    is_session_made: bool = field(default=False, init=False)

    messages: list[dict[str, Any]] = field(init=False)  # [] if the request has no list of messages
    _chained: list[dict[str, Any]] | None = field(default=None, init=False)
    _chain: list[bytes] | None = field(default=None, init=False)
    _own_hashes: list[bytes] | None = field(default=None, init=False)
    _parts: parameters.Parameters | None = field(default=None, init=False)

    def __post_init__(self, parsed: Request | None) -> None:
        self.asked = parsed or endpoint_of(self.endpoint).request(self.request)
        self.messages = self.asked.messages

    @property
    def origin(self) -> Origin:
        """The values that are compared with deletions."""
        return Origin(self.user_id, self.session.session_id, self.asked_at or self.created_at)

    @property
    def is_session_new(self) -> bool:
        """Whether its session's id was generated for it, so that the database cannot have it yet."""
        return self.session.source == "new" and not self.is_session_made

    @property
    def parts(self) -> parameters.Parameters:
        """The request's parameters as they are stored, computed once."""
        if self._parts is None:
            self._parts = parameters.split(self.asked.parameters)
        return self._parts

    @property
    def own_hashes(self) -> list[bytes]:
        """The hashes of the unchained messages, in order, computed once."""
        if self._own_hashes is None:
            apart = (message for message in self.messages if not hash_chain.is_chained(message))
            self._own_hashes = [hash_chain.own_hash(message) for message in apart]
        return self._own_hashes

    @property
    def chained(self) -> list[dict[str, Any]]:
        """The messages that take part in the hash chain."""
        if self._chained is None:
            self._chained = [message for message in self.messages if hash_chain.is_chained(message)]
        return self._chained

    def take_chain(self, hashes: list[bytes]) -> None:
        """Sets chain hashes that were computed elsewhere."""
        self._chain = hashes

    @property
    def chain(self) -> list[bytes]:
        """The chain hashes, computed once: for a long history this is the most expensive step."""
        if self._chain is None:
            self._chain = hash_chain.chain(self.user_id, self.chained)
        return self._chain

    def chain_below(self, above: bytes, *, matched: int) -> list[bytes]:
        """The chain hashes of all but the first `matched` messages, which are stored above with the hash `above`."""
        if above == (self.chain[matched - 1] if matched else hash_chain.root_hash(self.user_id)):
            return self.chain[matched:]
        return hash_chain.chain_below(above, self.chained[matched:])  # older turns were dropped


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How an exchange ended. `reply` is what was received; `error` is JSON, from upstream or from the proxy."""

    status: Status
    http_status: int | None = None
    reply: Reply | None = None
    error: Any = None
    time_to_first_token_ms: int | None = None
    duration_ms: int | None = None
    queued_ms: int | None = None  # until it was sent to upstream
    head_ms: int | None = None  # until upstream's status and headers arrived
    upstream_latency_seconds: float | None = None  # from sending the request to upstream's status; for metrics only
    overhead_seconds: float | None = None  # the proxy's own time until the reply's head; for metrics only
    upstream: str | None = None  # the last upstream that was tried: its address without credentials
    completed_at: str = field(default_factory=timestamp)

    @property
    def cause(self) -> str:
        """Why the reply was cut short, from a small fixed set of words, for metrics and traces."""
        if not isinstance(self.error, dict):
            return "ended_early"
        kind = self.error.get("type")
        return _OUR_CAUSES.get(kind, "upstream") if isinstance(kind, str) else "upstream"
