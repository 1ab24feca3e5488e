"""Reads token usage from replies: at any position, in several parts, with numbers in any notation. Pure."""

import re
from collections.abc import Iterator
from typing import Any

from proxy.wire.endpoint import JSON, Tokens

# Some servers send counts as strings: "5" or "5.0".
_WRITTEN_COUNT = re.compile(r"[0-9]{1,19}(?:\.0+)?")
_LARGEST_INTEGER = 2**63 - 1  # SQLite's; larger counts raise OverflowError in its driver


def usages_of(chunk: JSON) -> Iterator[Any]:
    """Every usage object in a chunk or reply: top level, gateway additions, and choices."""
    added = (value for key, value in chunk.items() if isinstance(value, dict) and key not in ("usage", "error"))
    for holder in (chunk, *added, *_list(chunk.get("choices"))):
        if isinstance(holder, dict):
            for inner in (holder, holder.get("delta"), holder.get("message")):
                if isinstance(inner, dict) and inner.get("usage") is not None:
                    yield from inner["usage"] if isinstance(inner["usage"], list) else (inner["usage"],)


def with_part(usage: JSON | None, part: JSON) -> JSON:
    """Merges a partial usage. Counts only grow, so the larger value is the newer one."""
    if usage is None:
        return part
    whole = {key: value for key, value in usage.items() if value is not None}
    for key, new in part.items():
        old = whole.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            whole[key] = with_part(old, new)
        elif old is None or (new is not None and not _is_less(new, old)):
            whole[key] = new
    return whole


def tokens_of(usage: JSON | None) -> Tokens:
    """The token counts; the total is computed if only its parts are given."""
    usage = usage or {}
    prompt = _first(usage, "prompt_tokens", "input_tokens", "promptTokens", "inputTokens")
    completion = _first(usage, "completion_tokens", "output_tokens", "completionTokens", "outputTokens")
    total = _first(usage, "total_tokens", "totalTokens")
    if prompt is not None and completion is not None:
        # in a partial usage, the first part may contain a total that is too small
        total = max(total or 0, prompt + completion)
    return Tokens(
        prompt=prompt,
        completion=completion,
        total=total,
        reasoning=count(_dict(usage.get("completion_tokens_details")).get("reasoning_tokens")),
        cached=count(_dict(usage.get("prompt_tokens_details")).get("cached_tokens")),
    )


def count(value: Any) -> int | None:
    """A count that fits the database. JSON has one number type, so 5.0 counts as 5; "5" and "5.0" are accepted, too."""
    if value is None:
        return None
    if isinstance(value, str) and _WRITTEN_COUNT.fullmatch(value):
        value = int(value.partition(".")[0])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= _LARGEST_INTEGER else None


def _first(usage: JSON, *keys: str) -> int | None:
    for key in keys:
        counted = count(usage.get(key))
        if counted is not None:
            return counted
    return None


def _is_less(new: Any, old: Any) -> bool:
    numbers = count(new), count(old)
    return numbers[0] is not None and numbers[1] is not None and numbers[0] < numbers[1]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> JSON:
    return value if isinstance(value, dict) else {}
