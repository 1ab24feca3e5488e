"""A key's quotas: concurrent requests, requests per minute, tokens per day. Pure."""

import math
import time
from dataclasses import dataclass, field

from proxy.errors import APIError
from proxy.wire.headers import Headers

_SECONDS_A_DAY = 86_400


@dataclass(slots=True)
class Usage:
    """The current usage of one key in this process."""

    running: int = 0
    requests: float = 0.0  # requests of the last minute, leaking evenly
    requests_at: float = 0.0  # time.monotonic()
    tokens: "DayTokens" = field(default_factory=lambda: DayTokens())

    def is_idle(self) -> bool:
        """Whether this object can be dropped without loss."""
        is_settled = not self.tokens.unsaved and not self.tokens.reserved
        return self.running == 0 and is_settled and time.monotonic() - self.requests_at > 60


@dataclass(slots=True)
class DayTokens:
    """A key's tokens of one UTC day: saved in the database, not saved yet, and reserved by requests in progress."""

    day: str = ""
    saved: int = 0
    unsaved: int = 0
    reserved: int = 0
    largest: int = 0  # the most that one request has used; the estimate for requests without max_tokens
    read_at: float = -math.inf  # time.monotonic() when `saved` was read
    saves: int = 0  # counts saves; a read that started before a save ended is outdated

    @property
    def used(self) -> int:
        """The tokens used so far."""
        return self.saved + self.unsaved

    def begin_day(self, day: str) -> None:
        """Resets the counts if the day has changed."""
        if day != self.day:
            self.day, self.saved, self.unsaved, self.read_at = day, 0, 0, -math.inf

    def add(self, tokens: int) -> None:
        """Adds the tokens of a finished request."""
        self.unsaved += tokens
        self.largest = max(self.largest, tokens)

    def reserve(self, tokens: int, *, per_day: int, unix_time: float) -> None:
        """Reserves tokens for a request. Raises APIError 429 if the day's tokens are used or reserved.

        Since requests reserve in advance, concurrent requests cannot exceed the quota together: it is exceeded by at
        most one reply.
        """
        if self.used >= per_day:
            headers = token_headers(self, per_day=per_day, unix_time=unix_time)
            wait_seconds = seconds_left(unix_time)
            message = f"Rate limit reached: {per_day} tokens per day."
            raise over("tokens", message, wait_seconds=wait_seconds, rate_limit_headers=headers)
        if self.used + self.reserved >= per_day:
            headers = token_headers(self, per_day=per_day, unix_time=unix_time)
            message = (
                f"Rate limit reached: the rest of {per_day} tokens per day is reserved by requests in progress; "
                "a lower max_tokens reserves less."
            )
            raise over("tokens", message, wait_seconds=1, rate_limit_headers=headers)
        self.reserved += tokens


def take_request(usage: Usage, *, per_minute: int, now: float, processes: int = 1) -> Headers:
    """Counts a request; returns the rate limit headers. Raises APIError 429 if the quota is used up.

    Each of several processes allows its share of the limit, and at least one request at a time.
    """
    rate = per_minute / processes
    most = max(1.0, rate)
    drained = (now - usage.requests_at) * rate / 60
    used = max(0.0, usage.requests - drained)
    wait_seconds = (used + 1 - most) * 60 / rate
    # Tolerance: a rounding error must not reject the last request of a minute's quota.
    is_over = wait_seconds > 1e-6
    usage.requests = used if is_over else used + 1
    usage.requests_at = now
    rate_limit_headers = _headers(
        "requests", limit=per_minute, left=most - usage.requests, reset=usage.requests * 60 / rate
    )
    if is_over:
        message = f"Rate limit reached: {per_minute} requests per minute."
        raise over("requests", message, wait_seconds=wait_seconds, rate_limit_headers=rate_limit_headers)
    return rate_limit_headers


def token_headers(tokens: DayTokens, *, per_day: int, unix_time: float) -> Headers:
    """The rate limit headers for the day's tokens."""
    left = per_day - tokens.used - tokens.reserved
    return _headers("tokens", limit=per_day, left=left, reset=seconds_left(unix_time))


def seconds_left(unix_time: float) -> float:
    """Seconds until the end of the UTC day."""
    return _SECONDS_A_DAY - unix_time % _SECONDS_A_DAY


def over(kind: str, message: str, *, wait_seconds: float, rate_limit_headers: Headers | None = None) -> APIError:
    """429 in OpenAI's format."""
    headers = {name.decode(): value.decode() for name, value in rate_limit_headers or ()}
    headers["Retry-After"] = str(max(1, math.ceil(wait_seconds)))
    return APIError(message, status=429, type_=kind, code="rate_limit_exceeded", headers=headers)


def _headers(kind: str, *, limit: int, left: float, reset: float) -> Headers:
    values = {"limit": str(limit), "remaining": str(max(0, math.floor(left + 1e-6))), "reset": f"{reset:.3f}s"}
    return [(f"x-ratelimit-{name}-{kind}".encode(), value.encode()) for name, value in values.items()]
