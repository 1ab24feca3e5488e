"""Maps exchanges to table columns: those known from the request, and those known from the outcome. Pure."""

from typing import Any

from proxy.ids import milliseconds_between
from proxy.storage.exchange import Exchange, Outcome
from proxy.wire import json_text
from proxy.wire.endpoint import Reply, Tokens
from proxy.wire.surrogates import encodable

Columns = dict[str, Any]

# created_at and the duration come from two different clocks, read at slightly different times.
_CLOCKS_DIFFER_MS = 5

IN_PROGRESS: Columns = {
    "status": "in_progress",
    "http_status": None,
    "finish_reason": None,
    "prompt_tokens": None,
    "completion_tokens": None,
    "total_tokens": None,
    "reasoning_tokens": None,
    "cached_tokens": None,
    "time_to_first_token_ms": None,
    "duration_ms": None,
    "completion_id": None,
    "completion": None,
    "completion_created": None,
    "error": None,
    "completed_at": None,
    "upstream": None,
    "queued_ms": None,
    "head_ms": None,
    "stored_ms": None,
}


def asked_model(request: dict[str, Any]) -> str | None:
    """The model named in the request."""
    return _storable(request.get("model"))


def request_columns(exchange: Exchange, *, leaf_no: int | None, context: str | None) -> Columns:
    """The columns known when the request is stored."""
    metadata = exchange.request.get("metadata")
    model = asked_model(exchange.request)
    parts = exchange.parts
    return {
        "exchange_id": exchange.exchange_id,
        "leaf_no": leaf_no,
        "context": context,
        "linked_count": len(exchange.chained),
        "endpoint": exchange.endpoint,
        "model": model,
        "asked_model": model,
        "parameters": parts.common,
        "tools": parts.tools,
        "own_parameters": parts.own,
        "metadata": None if metadata is None else json_text.dumps(metadata),
        "request_id": exchange.request_id,
        "worker_id": None,
        "created_at": exchange.created_at,
        "wire": json_text.dumps(exchange.asked.wire) if exchange.asked.wire else None,
    }


def outcome_columns(outcome: Outcome, *, asked_model: str | None, created_at: str, now: str) -> Columns:
    """The columns known when the reply has ended; `asked_model` is used if the reply names no model."""
    reply = outcome.reply
    prompt, completion, total, reasoning, cached = Tokens() if reply is None else reply.tokens
    columns = {
        "status": outcome.status,
        "model": (reply and _storable(reply.model)) or asked_model,
        "http_status": outcome.http_status,
        "finish_reason": reply and _storable(reply.finish_reason),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total,
        "reasoning_tokens": reasoning,
        "cached_tokens": cached,
        "time_to_first_token_ms": outcome.time_to_first_token_ms,
        "duration_ms": outcome.duration_ms,
        "completion_id": (reply and _storable(reply.id)) or None,
        "error": None if outcome.error is None else json_text.dumps(outcome.error),
        "completion_created": reply and reply.created,
        "completed_at": _end_if_it_does_not_follow(outcome, created_at),
        "upstream": outcome.upstream,
        "queued_ms": outcome.queued_ms,
        "head_ms": outcome.head_ms,
        "stored_ms": _stored_ms(outcome, now=now),
    }
    columns["completion"] = reply and _envelope(reply, columns)
    return columns


def _stored_ms(outcome: Outcome, *, now: str) -> int | None:
    """When the end was written: it may have waited in the writer's queue or in the spill file."""
    if outcome.duration_ms is None:
        return None
    return outcome.duration_ms + max(0, round(milliseconds_between(outcome.completed_at, now)))


def _end_if_it_does_not_follow(outcome: Outcome, created_at: str) -> str | None:
    """completed_at, unless created_at + duration gives it (a slow request body, or the clock was changed)."""
    if outcome.duration_ms is None:
        return outcome.completed_at
    differ_ms = milliseconds_between(created_at, outcome.completed_at) - outcome.duration_ms
    return None if abs(differ_ms) <= _CLOCKS_DIFFER_MS else outcome.completed_at


def _envelope(reply: Reply, columns: Columns) -> str | None:
    """The reply's other top-level keys as JSON, without nulls and without values that have columns of their own."""
    said = {
        "id": columns["completion_id"],
        "object": "chat.completion",
        "model": columns["model"],
        "created": columns["completion_created"],
    }
    envelope = {key: value for key, value in reply.envelope.items() if value is not None and value != said.get(key)}
    usage = {key: value for key, value in (reply.usage or {}).items() if value is not None}
    # vLLM's usual usage has only values with columns of their own, so that most exchanges need no JSON.
    if any(value != columns.get(key) for key, value in usage.items()):
        envelope["usage"] = usage
    return json_text.dumps(envelope) if envelope else None


def _storable(value: Any) -> str | None:
    """The value as a text that SQLite can store; None if it is not a string, then it is kept only in the JSON."""
    return encodable(value) if isinstance(value, str) else None
