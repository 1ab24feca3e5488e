"""How much a key may ask for: requests at a time, requests a minute, tokens a day. Pure."""

import math
import time
from dataclasses import dataclass

from proxy.errors import APIError
from proxy.wire.headers import Headers

_SECONDS_A_DAY = 86_400


@dataclass(slots=True)
class Usage:
    """What one key does just now, in this process."""

    running: int = 0
    requests: float = 0.0  # of the last minute, draining evenly
    requests_at: float = 0.0  # time.monotonic()
    tokens: int = 0  # of this day, by UTC
    tokens_at: float = -math.inf  # when that was looked up, time.monotonic()

    def is_idle(self) -> bool:
        """Whether nothing would be lost by forgetting it."""
        return self.running == 0 and time.monotonic() - self.requests_at > 60


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


def check_tokens(usage: Usage, *, per_day: int, unix_time: float) -> Headers:
    """The headers that tell what is left of the day's tokens. Raises APIError 429 where nothing is."""
    reset = _SECONDS_A_DAY - unix_time % _SECONDS_A_DAY
    rate_limit_headers = _headers("tokens", limit=per_day, left=per_day - usage.tokens, reset=reset)
    if usage.tokens >= per_day:
        raise over(
            "tokens",
            f"Rate limit reached: {per_day} tokens per day.",
            wait_seconds=reset,
            rate_limit_headers=rate_limit_headers,
        )
    return rate_limit_headers


def over(kind: str, message: str, *, wait_seconds: float, rate_limit_headers: Headers | None = None) -> APIError:
    """429, as OpenAI says it."""
    headers = {name.decode(): value.decode() for name, value in rate_limit_headers or ()}
    headers["Retry-After"] = str(max(1, math.ceil(wait_seconds)))
    return APIError(message, status=429, type_=kind, code="rate_limit_exceeded", headers=headers)


def start_of_day(unix_time: float) -> str:
    """The least identifier (UUIDv7) of the day, by UTC."""
    milliseconds = int(unix_time // _SECONDS_A_DAY) * _SECONDS_A_DAY * 1000
    text = f"{milliseconds:012x}"
    return f"{text[:8]}-{text[8:]}"


def _headers(kind: str, *, limit: int, left: float, reset: float) -> Headers:
    values = {"limit": str(limit), "remaining": str(max(0, math.floor(left + 1e-6))), "reset": f"{reset:.3f}s"}
    return [(f"x-ratelimit-{name}-{kind}".encode(), value.encode()) for name, value in values.items()]
