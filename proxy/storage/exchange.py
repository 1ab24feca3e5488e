"""One request and its reply, as the recorder carries it from the route to the database."""

from dataclasses import dataclass, field
from typing import Any, Literal

from proxy.ids import timestamp, uuid7
from proxy.wire import hash_chain
from proxy.wire.endpoint import Reply, Request
from proxy.wire.endpoints import endpoint_of

Status = Literal["completed", "incomplete", "failed"]
_OUR_CAUSES = {"caller_disconnected": "caller_left", "interrupted": "stopped"}


@dataclass(slots=True)
class SessionRef:
    """Which session a chat belongs to, and how that was found (`X-Session-Source`)."""

    session_id: str
    source: str
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose chat it is and when it was asked, which tells whether it was deleted afterwards."""

    user_id: str
    session_id: str
    asked_at: str


@dataclass(slots=True, kw_only=True)
class Exchange:
    """What is known of an exchange before its reply. `request` is the body as the caller sent it, parsed;
    `endpoint` is a path of `wire.endpoints`."""

    user_id: str
    session: SessionRef
    endpoint: str
    request_id: str
    request: dict[str, Any]
    exchange_id: str = field(default_factory=uuid7)
    created_at: str = field(default_factory=timestamp)
    asked_at: str | None = None  # `ids.moment`, which deletions are compared with; None: created_at
    trace_context: dict[str, str] | None = None  # the caller's traceparent and tracestate; for traces alone

    asked: Request = field(init=False)  # `request` as its endpoint reads it
    is_session_made: bool = field(default=False, init=False)  # by a slice of a long request

    messages: list[dict[str, Any]] = field(init=False)  # none where what was sent is not a list of messages
    _chained: list[dict[str, Any]] | None = field(default=None, init=False)
    _chain: list[bytes] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.asked = endpoint_of(self.endpoint).request(self.request)
        self.messages = self.asked.messages

    @property
    def origin(self) -> Origin:
        """What deletions are compared with."""
        return Origin(self.user_id, self.session.session_id, self.asked_at or self.created_at)

    @property
    def chained(self) -> list[dict[str, Any]]:
        """The messages that are part of the chain."""
        if self._chained is None:
            self._chained = [message for message in self.messages if hash_chain.is_chained(message)]
        return self._chained

    def take_chain(self, hashes: list[bytes]) -> None:
        """The chain hashes, made by somebody else."""
        self._chain = hashes

    @property
    def chain(self) -> list[bytes]:
        """Their chain hashes. Made once: for a long history they cost more than all else about it."""
        if self._chain is None:
            self._chain = hash_chain.chain(self.user_id, self.chained)
        return self._chain


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How an exchange ended. `reply` is what was received of it; `error` is JSON, upstream's or the proxy's words."""

    status: Status
    http_status: int | None = None
    reply: Reply | None = None
    error: Any = None
    time_to_first_token_ms: int | None = None
    duration_ms: int | None = None
    upstream_latency_seconds: float | None = None  # from the request to upstream's status; for metrics alone
    overhead_seconds: float | None = None  # from there to the reply's head; for metrics alone
    upstream: str | None = None  # the address of the one that was asked last, without credentials
    completed_at: str = field(default_factory=timestamp)

    @property
    def cause(self) -> str:
        """Why it ended before its reply; one of few words, for metrics and traces."""
        if not isinstance(self.error, dict):
            return "ended_early"
        kind = self.error.get("type")
        return _OUR_CAUSES.get(kind, "upstream") if isinstance(kind, str) else "upstream"
