"""Counts usage per day, user, model and endpoint, in the transaction that ends an exchange."""

from typing import Any

Columns = dict[str, Any]
Sums = dict[tuple[Any, ...], Columns]

# Upper bounds of the time-to-first-token histogram, in milliseconds.
FIRST_TOKEN_MS = (50, 100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600)
FIRST_TOKEN_COLUMNS = (*(f"first_token_{most}" for most in FIRST_TOKEN_MS), "first_token_more")

# A page of usage over a million exchanges reads these counts and no exchange.
_KEY = ("day", "user_no", "model", "endpoint")
_TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
# SUM raises an error beyond 64 bits in SQLite; no real engine reports counts this large.
_TOKENS_MAX = 2**40
_NOTHING: Columns = dict.fromkeys(("requests", "incomplete", "failed", *_TOKENS, *FIRST_TOKEN_COLUMNS), 0)


def add_usage(sums: Sums, exchange: Columns) -> None:
    """Adds an ended exchange to the sums of its day, user, model and endpoint; takes its columns plus `user_no` and
    `endpoint`."""
    counts = _counts_of(sums, exchange)
    status = exchange["status"]
    counts["requests"] += 1
    counts["incomplete"] += status == "incomplete"
    counts["failed"] += status == "failed"
    for name in _TOKENS:
        count = exchange[name]
        if isinstance(count, int) and count > 0:  # imported values may be of any type
            counts[name] += min(count, _TOKENS_MAX)
    first_token_ms = exchange["time_to_first_token_ms"]
    if isinstance(first_token_ms, int):
        counts[_class_of(first_token_ms)] += 1


def subtract_usage(sums: Sums, exchange: Columns) -> None:
    """Subtracts what an ended exchange has added; takes the same columns."""
    counts, usage = _counts_of(sums, exchange), usage_of(exchange)
    for name in _NOTHING:
        counts[name] -= usage[name]


def usage_of(exchange: Columns) -> Columns:
    """One ended exchange's contribution."""
    sums: Sums = {}
    add_usage(sums, exchange)
    (usage,) = sums.values()
    return usage


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


def _counts_of(sums: Sums, exchange: Columns) -> Columns:
    key = (exchange["created_at"][:10], exchange["user_no"], exchange["model"] or "", exchange["endpoint"])
    counts = sums.get(key)
    if counts is None:
        counts = sums[key] = dict(zip(_KEY, key, strict=True)) | _NOTHING
    return counts


def _class_of(milliseconds: int) -> str:
    for most, name in zip(FIRST_TOKEN_MS, FIRST_TOKEN_COLUMNS, strict=False):
        if milliseconds <= most:
            return name
    return FIRST_TOKEN_COLUMNS[-1]
