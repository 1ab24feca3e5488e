"""How much a key may ask for: requests at a time, requests a minute, tokens a day. Pure."""

import math
import time
from dataclasses import dataclass, field

from proxy.errors import APIError
from proxy.wire.headers import Headers

_SECONDS_A_DAY = 86_400


@dataclass(slots=True)
class Usage:
    """What one key does just now, in this process."""

    running: int = 0
    requests: float = 0.0  # of the last minute, draining evenly
    requests_at: float = 0.0  # time.monotonic()
    tokens: "DayTokens" = field(default_factory=lambda: DayTokens())

    def is_idle(self) -> bool:
        """Whether nothing would be lost by forgetting it."""
        is_settled = not self.tokens.unsaved and not self.tokens.reserved
        return self.running == 0 and is_settled and time.monotonic() - self.requests_at > 60


@dataclass(slots=True)
class DayTokens:
    """A key's tokens of one day, by UTC: in the database, on the way there, and held for requests under way."""

    day: str = ""
    saved: int = 0
    unsaved: int = 0
    reserved: int = 0
    largest: int = 0  # what one request has used at most, for the next that says no limit
    read_at: float = -math.inf  # time.monotonic() of when `saved` was read
    saves: int = 0  # a reading that began before a saving ended is too old

    @property
    def used(self) -> int:
        """What has been relayed."""
        return self.saved + self.unsaved

    def begin_day(self, day: str) -> None:
        """Forget what was used on another day."""
        if day != self.day:
            self.day, self.saved, self.unsaved, self.read_at = day, 0, 0, -math.inf

    def add(self, tokens: int) -> None:
        """Charge for a request that has ended."""
        self.unsaved += tokens
        self.largest = max(self.largest, tokens)

    def reserve(self, tokens: int, *, per_day: int, unix_time: float) -> None:
        """Hold tokens for a request. Raises APIError 429 where the day's are used, or held by others.

        With one request of a key at the end of its quota no two can pass it: what is used exceeds the quota by one
        reply at most.
        """
        if self.used >= per_day:
            headers = token_headers(self, per_day=per_day, unix_time=unix_time)
            wait_seconds = seconds_left(unix_time)
            message = f"Rate limit reached: {per_day} tokens per day."
            raise over("tokens", message, wait_seconds=wait_seconds, rate_limit_headers=headers)
        if self.used + self.reserved >= per_day:
            headers = token_headers(self, per_day=per_day, unix_time=unix_time)
            message = (
                f"Rate limit reached: what is left of {per_day} tokens per day is held for requests under way; "
                "a lower max_tokens holds less."
            )
            raise over("tokens", message, wait_seconds=1, rate_limit_headers=headers)
        self.reserved += tokens


def take_request(usage: Usage, *, per_minute: int, now: float) -> Headers:
    """Count a request; the headers that tell what is left. Raises APIError 429 where nothing is."""
    drained = (now - usage.requests_at) * per_minute / 60
    used = max(0.0, usage.requests - drained)
    wait_seconds = (used + 1 - per_minute) * 60 / per_minute
    # A rounding error of the clock must not refuse the last request of a full minute.
    is_over = wait_seconds > 1e-6
    usage.requests = used if is_over else used + 1
    usage.requests_at = now
    rate_limit_headers = _headers(
        "requests", limit=per_minute, left=per_minute - usage.requests, reset=usage.requests * 60 / per_minute
    )
    if is_over:
        message = f"Rate limit reached: {per_minute} requests per minute."
        raise over("requests", message, wait_seconds=wait_seconds, rate_limit_headers=rate_limit_headers)
    return rate_limit_headers


def token_headers(tokens: DayTokens, *, per_day: int, unix_time: float) -> Headers:
    """The headers that tell what is left of the day's tokens."""
    left = per_day - tokens.used - tokens.reserved
    return _headers("tokens", limit=per_day, left=left, reset=seconds_left(unix_time))


def seconds_left(unix_time: float) -> float:
    """Of the day, by UTC."""
    return _SECONDS_A_DAY - unix_time % _SECONDS_A_DAY


def over(kind: str, message: str, *, wait_seconds: float, rate_limit_headers: Headers | None = None) -> APIError:
    """429, as OpenAI says it."""
    headers = {name.decode(): value.decode() for name, value in rate_limit_headers or ()}
    headers["Retry-After"] = str(max(1, math.ceil(wait_seconds)))
    return APIError(message, status=429, type_=kind, code="rate_limit_exceeded", headers=headers)


def _headers(kind: str, *, limit: int, left: float, reset: float) -> Headers:
    values = {"limit": str(limit), "remaining": str(max(0, math.floor(left + 1e-6))), "reset": f"{reset:.3f}s"}
    return [(f"x-ratelimit-{name}-{kind}".encode(), value.encode()) for name, value in values.items()]
