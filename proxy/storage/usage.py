"""What was used, counted a day, user, model and endpoint, in the transaction that stores an exchange's end."""

from typing import Any

Columns = dict[str, Any]

# Upper ends of the classes that the time to the first token is counted in, in milliseconds.
FIRST_TOKEN_MS = (50, 100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600)
FIRST_TOKEN_COLUMNS = (*(f"first_token_{most}" for most in FIRST_TOKEN_MS), "first_token_more")

_KEY = ("day", "user_no", "model", "endpoint")
_TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
# SQLite's sums raise an error beyond 64 bits; no engine says such a number and means it.
_TOKENS_MAX = 2**40


def usage_of(exchange: Columns) -> Columns:
    """What an ended exchange adds to the counts; given by its columns, with `user_no` and `endpoint`."""
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
    """Add one exchange's counts to those of its day, user, model and endpoint."""
    key = tuple(usage[name] for name in _KEY)
    known = sums.setdefault(key, usage)
    if known is not usage:
        for name, count in usage.items():
            if name not in _KEY:
                known[name] += count


def percentile_ms(counts: Columns, share: float) -> float | None:
    """About the time within which a share of the replies had their first token; inf beyond the last class."""
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
    """A number of tokens; an import may hold anything."""
    return min(value, _TOKENS_MAX) if isinstance(value, int) and value > 0 else 0


def _class_of(milliseconds: int) -> str:
    for most, name in zip(FIRST_TOKEN_MS, FIRST_TOKEN_COLUMNS, strict=False):
        if milliseconds <= most:
            return name
    return FIRST_TOKEN_COLUMNS[-1]
