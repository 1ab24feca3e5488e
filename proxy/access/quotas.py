"""A key's usage in this process, and its two quotas: requests per minute and tokens per day."""

import math
import time
from dataclasses import dataclass, field

from proxy.access.shared_usage import SharedKey
from proxy.errors import APIError
from proxy.wire.headers import Headers

_SECONDS_A_DAY = 86_400
# Each try but the last is repeated only if another process has admitted a request at the same moment.
_TRIES = 8
# A rounding error must not reject the last request of a minute's quota.
_TOLERANCE_SECONDS = 1e-6


@dataclass(slots=True)
class Usage:
    """The current usage of one key in this process."""

    running: int = 0
    empty_at: float = 0.0  # time.monotonic() when the requests so far no longer count; they leak evenly
    tokens: "DayTokens" = field(default_factory=lambda: DayTokens())

    def is_idle(self) -> bool:
        """Whether this object can be dropped without loss."""
        is_settled = not self.tokens.unsaved and not self.tokens.reserved
        return self.running == 0 and is_settled and time.monotonic() > self.empty_at


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
    shared: SharedKey | None = None  # with several workers
    held_by_others: int = 0  # reserved or not saved yet by other processes of this host

    @property
    def used(self) -> int:
        """The tokens used so far."""
        return self.saved + self.unsaved

    def begin_day(self, day: str) -> None:
        """Resets the counts if the day has changed."""
        if day != self.day:
            self.day, self.saved, self.unsaved, self.read_at = day, 0, 0, -math.inf

    def note_read(self, saved: int, *, now: float) -> None:
        """Sets what the database has for the day."""
        self.saved, self.read_at = saved, now
        self._publish()

    def note_saved(self, tokens: int, *, day: str, saved: int) -> None:
        """Tokens have been saved; `saved` is what the database has for the day now."""
        if day == self.day:
            self.saved, self.unsaved = saved, self.unsaved - tokens
            self.saves += 1
            self._publish()

    def settle(self, tokens: int, *, reserved: int) -> None:
        """Adds the tokens of a finished request, and releases what it had reserved."""
        self.unsaved += tokens
        self.reserved -= reserved
        self.largest = max(self.largest, tokens)
        self._publish()

    def reserve(self, tokens: int, *, per_day: int, unix_time: float, processes: float = 1.0) -> None:
        """Reserves tokens for a request. Raises APIError 429 if the day's tokens are used or reserved.

        Since requests reserve in advance, concurrent requests cannot exceed the quota together: it is exceeded by at
        most one reply. Each of several `processes` that do not see each other's reservations assumes that the others
        hold as much as it does.
        """
        # Published before the others' are read: of two requests at the same moment, at least one sees the other.
        self.reserved += tokens
        self._publish()
        try:
            self._check(besides=tokens, per_day=per_day, unix_time=unix_time, processes=processes)
        except APIError:
            self.reserved -= tokens
            self._publish()
            raise

    def learn(self) -> None:
        """Reads what other processes hold and have saved."""
        if self.shared is not None:
            self.held_by_others = self.shared.held_by_others()
            self.saved = max(self.saved, self.shared.saved_by_others(self.day))

    def _check(self, *, besides: int, per_day: int, unix_time: float, processes: float) -> None:
        self.learn()
        reserved = self.reserved - besides
        if self.used < per_day and self.saved + (self.unsaved + reserved + self.held_by_others) * processes < per_day:
            return
        headers = _token_headers(self, reserved=reserved, per_day=per_day, unix_time=unix_time)
        if self.used >= per_day:
            message, wait_seconds = f"Rate limit reached: {per_day} tokens per day.", seconds_left(unix_time)
        else:
            message, wait_seconds = (
                f"Rate limit reached: the rest of {per_day} tokens per day is reserved by requests in progress; "
                "a lower max_tokens reserves less.",
                1.0,
            )
        raise over("tokens", message, wait_seconds=wait_seconds, rate_limit_headers=headers)

    def _publish(self) -> None:
        if self.shared is not None:
            self.shared.publish_tokens(held=self.unsaved + self.reserved, day=self.day, saved=self.saved)


def take_request(usage: Usage, *, per_minute: int, now: float, processes: float = 1.0) -> Headers:
    """Counts a request; returns the rate limit headers. Raises APIError 429 if the quota is used up.

    Each of several `processes` that do not see each other's requests allows its share of the limit, and at least one
    request at a time.
    """
    rate = per_minute / processes
    interval = 60 / rate
    most_seconds = max(1.0, rate) * interval
    wait_seconds = _admit(usage, interval=interval, most_seconds=most_seconds, now=now)
    reset = usage.empty_at - now
    left = (most_seconds - reset) / interval
    rate_limit_headers = _headers("requests", limit=per_minute, left=left, reset=reset)
    if wait_seconds > 0:
        message = f"Rate limit reached: {per_minute} requests per minute."
        raise over("requests", message, wait_seconds=wait_seconds, rate_limit_headers=rate_limit_headers)
    return rate_limit_headers


def _admit(usage: Usage, *, interval: float, most_seconds: float, now: float) -> float:
    """Counts a request if it is within the limit. Returns the seconds to wait, or 0."""
    shared = usage.tokens.shared
    own = usage.empty_at
    for _ in range(_TRIES):
        others = shared.empty_at_of_others() if shared is not None else 0.0
        empty_at = max(own, now)
        if others > empty_at:  # a damaged value, even NaN, must not block the key for longer than the limit does
            empty_at = min(others, now + most_seconds)
        wait_seconds = empty_at + interval - most_seconds - now
        is_over = wait_seconds > _TOLERANCE_SECONDS
        usage.empty_at = empty_at if is_over else empty_at + interval
        if shared is None:
            break
        shared.publish_empty_at(usage.empty_at)
        # Another process may have admitted a request at the same moment; then each counts its own after the other's.
        if is_over or shared.empty_at_of_others() == others:
            break
    return wait_seconds if is_over else 0.0


def token_headers(tokens: DayTokens, *, per_day: int, unix_time: float) -> Headers:
    """The rate limit headers for the day's tokens."""
    return _token_headers(tokens, reserved=tokens.reserved, per_day=per_day, unix_time=unix_time)


def seconds_left(unix_time: float) -> float:
    """Seconds until the end of the UTC day."""
    return _SECONDS_A_DAY - unix_time % _SECONDS_A_DAY


def over(kind: str, message: str, *, wait_seconds: float, rate_limit_headers: Headers | None = None) -> APIError:
    """429 in OpenAI's format; `wait_seconds` becomes Retry-After."""
    headers = {name.decode(): value.decode() for name, value in rate_limit_headers or ()}
    # Whole seconds (RFC 9110 §10.2.3). The OpenAI SDKs wait this long before they retry.
    headers["Retry-After"] = str(max(1, math.ceil(wait_seconds - _TOLERANCE_SECONDS)))
    return APIError(message, status=429, type_=kind, code="rate_limit_exceeded", headers=headers)


def _token_headers(tokens: DayTokens, *, reserved: int, per_day: int, unix_time: float) -> Headers:
    left = per_day - tokens.used - reserved - tokens.held_by_others
    return _headers("tokens", limit=per_day, left=left, reset=seconds_left(unix_time))


def _headers(kind: str, *, limit: int, left: float, reset: float) -> Headers:
    values = {"limit": str(limit), "remaining": str(max(0, math.floor(left + 1e-6))), "reset": f"{reset:.3f}s"}
    return [(f"x-ratelimit-{name}-{kind}".encode(), value.encode()) for name, value in values.items()]
