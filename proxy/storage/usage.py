"""Counts usage per day, user, model and endpoint, in the transaction that ends an exchange."""

from typing import Any

Columns = dict[str, Any]

# Upper bounds of the time-to-first-token histogram, in milliseconds.
FIRST_TOKEN_MS = (50, 100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600)
FIRST_TOKEN_COLUMNS = (*(f"first_token_{most}" for most in FIRST_TOKEN_MS), "first_token_more")

# A page of usage over a million exchanges reads these counts and no exchange.
_KEY = ("day", "user_no", "model", "endpoint")
_TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
# SUM raises an error beyond 64 bits in SQLite; no real engine reports counts this large.
_TOKENS_MAX = 2**40


def usage_of(exchange: Columns) -> Columns:
    """An ended exchange's contribution; takes its columns plus `user_no` and `endpoint`."""
    counts = dict.fromkeys(FIRST_TOKEN_COLUMNS, 0)
    first_token_ms = exchange["time_to_first_token_ms"]
    if isinstance(first_token_ms, int):
        counts[_class_of(first_token_ms)] = 1
    return {
        "day": exchange["created_at"][:10],
        "user_no": exchange["user_no"],
        "model": exchange["model"] or "",
        "endpoint": exchange["endpoint"],
        "requests": 1,
        "incomplete": int(exchange["status"] == "incomplete"),
        "failed": int(exchange["status"] == "failed"),
        **{name: _count(exchange[name]) for name in _TOKENS},
        **counts,
    }


def add_usage(sums: dict[tuple[Any, ...], Columns], usage: Columns) -> None:
    """Adds an exchange's contribution to the sums of its day, user, model and endpoint."""
    key = tuple(usage[name] for name in _KEY)
    known = sums.setdefault(key, usage)
    if known is not usage:
        for name, count in usage.items():
            if count and name not in _KEY:
                known[name] += count


def percentile_ms(counts: Columns, share: float) -> float | None:
    """Approximate percentile of the time to first token; inf if it is above the last bucket."""
    numbers: list[int] = [counts[name] for name in FIRST_TOKEN_COLUMNS]
    wanted = share * sum(numbers)
    if not wanted:
        return None
    low = 0.0
    for most, number in zip(FIRST_TOKEN_MS, numbers, strict=False):
        if number >= wanted:
            return low + (most - low) * wanted / number
        wanted -= number
        low = most
    return float("inf")


def _count(value: Any) -> int:
    """A token count; imported values may be of any type."""
    return min(value, _TOKENS_MAX) if isinstance(value, int) and value > 0 else 0


def _class_of(milliseconds: int) -> str:
    for most, name in zip(FIRST_TOKEN_MS, FIRST_TOKEN_COLUMNS, strict=False):
        if milliseconds <= most:
            return name
    return FIRST_TOKEN_COLUMNS[-1]
