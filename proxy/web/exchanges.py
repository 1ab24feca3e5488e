"""`/ui/x/{id}`: one exchange with its timing and JSON."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette.responses import Response

from proxy.errors import NotFoundError
from proxy.history import branches
from proxy.history.dialects import wire_of
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.queries.exchanges import ExchangeRow
from proxy.web import as_sent
from proxy.web.as_sent import Row
from proxy.web.messages import why
from proxy.web.parts import pretty, text_of
from proxy.web.rendering import duration, exact, number
from proxy.web.visits import Visit
from proxy.wire import json_text
from proxy.wire.message import to_openai

JSON = dict[str, Any]

# Indented JSON of tools may have megabytes, which a browser takes seconds to lay out; the API has all of it.
_SHOWN_CHARACTERS = 64 * 1024
_TOOLS_MAX = 200


async def show_exchange(visit: Visit) -> Response:
    id_ = visit.request.path_params["exchange_id"]
    read = partial(_read, id_=id_, user_id=visit.reach, names_upstream=visit.visitor.sees_all)
    shown = await visit.services.read(read)
    return await visit.page("exchange.html", **shown)


def _read(connection: Connection, *, id_: str, user_id: str | None, names_upstream: bool) -> JSON:
    row = queries.exchanges.get_exchange(connection, id_)
    if row is None or user_id not in (None, row.user_id):
        raise NotFoundError("There is no such exchange.")
    parameters, error = _parsed(row.parameters), _parsed(row.error)
    rows, left_out = _newest(connection, _numbers(connection, row))
    wire = wire_of(row)
    # If its beginning is left out, the request has no instructions or system blocks of its own.
    request = as_sent.request_of(row.endpoint, rows, {"system": 0} if left_out else wire)
    return {
        "x": row,
        "words": _words(row, error),
        "bars": _bars(row),
        "facts": [fact for fact in _facts(row, wire, names_upstream=names_upstream) if fact[1]],
        "tools": _tools(parameters),
        "error": pretty(error, most=_SHOWN_CHARACTERS) if row.error else "",
        "parameters": pretty(parameters, most=_SHOWN_CHARACTERS),
        "request": pretty(request, most=2 * _SHOWN_CHARACTERS),
        "request_left_out": left_out,
        "reply": pretty(_reply(connection, row), most=2 * _SHOWN_CHARACTERS),
    }


def _parsed(text: str | None) -> Any:
    return json_text.stored(text) if text else None


def _words(row: ExchangeRow, error: Any) -> str:
    said = why(error if isinstance(error, dict) else {})
    return said if row.status in ("incomplete", "failed") else ""


def _numbers(connection: Connection, row: ExchangeRow) -> list[int]:
    path = [] if row.leaf_no is None else queries.messages.list_path(connection, row.leaf_no)[::-1]
    return branches.as_requested(branches.as_far_as_sent(path, row), row)


def _newest(connection: Connection, numbers: Sequence[int]) -> tuple[list[Row], int]:
    """The last messages of a request that fit on the page, and how many are left out."""
    rows: list[Row] = []
    left = _SHOWN_CHARACTERS
    for message_no in reversed(numbers):
        if left <= 0:
            break
        message, size = _bounded(connection, message_no)
        rows.append(message)
        left -= size
    return rows[::-1], len(numbers) - len(rows)


def _bounded(connection: Connection, message_no: int) -> tuple[Row, int]:
    """A message as sent, without images, and its size; truncated if it is too large."""
    row = queries.web.get_message(
        connection, message_no, characters=_SHOWN_CHARACTERS, extra_characters=_SHOWN_CHARACTERS
    )
    if row is None:
        return ({}, None), 0
    if row["length"] > _SHOWN_CHARACTERS or row["is_extra_left_out"]:
        note = "cut: too large to be shown"
        return ({"role": row["role"], "content": row["content"], "(stellarchat)": note}, None), _SHOWN_CHARACTERS
    message = to_openai(**{name: row[name] for name in ("role", "content", "content_form", "extra")}, blobs={})
    size = row["length"] + len(row["extra"] or "") + len(row["wire"] or "") + 50
    return (message, json_text.stored_object(row["wire"], "wire") or None), size


def _reply(connection: Connection, row: ExchangeRow) -> JSON | None:
    if row.status == "in_progress":
        return None
    numbers = queries.messages.list_replies(connection, row)[:64]
    said = as_sent.reply_of(
        row.endpoint,
        [_bounded(connection, number)[0] for number in numbers],
        [_choice(connection, number) for number in numbers],
    )
    envelope = _parsed(row.completion)
    usage = {name: getattr(row, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    own = {"id": row.completion_id, "model": row.model, **said, "usage": usage}
    return own | (envelope if isinstance(envelope, dict) else {})


def _choice(connection: Connection, message_no: int) -> JSON:
    """The keys of a choice other than its message."""
    stored = queries.messages.get_message(connection, message_no)
    choice = _parsed(stored.choice) if stored and len(stored.choice or "") <= _SHOWN_CHARACTERS else None
    return choice if isinstance(choice, dict) else {}


def _tools(parameters: Any) -> list[str]:
    tools = parameters.get("tools") if isinstance(parameters, dict) else None
    names = []
    for tool in tools[:_TOOLS_MAX] if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        named = function if isinstance(function, dict) else tool
        name = named.get("name") if isinstance(named, dict) else None
        names.append(name[:200] if isinstance(name, str) else "?")
    return names


def _facts(row: ExchangeRow, wire: JSON, *, names_upstream: bool) -> list[tuple[str, str]]:
    cached = f" ({number(row.cached_tokens)} cached)" if row.cached_tokens else ""
    reasoning = f" ({number(row.reasoning_tokens)} reasoning)" if row.reasoning_tokens else ""
    return [
        ("Model", row.model or ""),
        ("Endpoint", row.endpoint),
        ("Upstream", (row.upstream or "") if names_upstream else ""),
        ("HTTP status", str(row.http_status or "")),
        ("Finish reason", row.finish_reason or ""),
        ("Tokens in", number(row.prompt_tokens) + cached if row.prompt_tokens is not None else ""),
        ("Tokens out", number(row.completion_tokens) + reasoning if row.completion_tokens is not None else ""),
        ("Speed", _speed(row)),
        ("Started", exact(row.created_at)),
        ("Ended", exact(row.completed_at) if row.completed_at else ""),
        ("User", row.user_id),
        ("Request id", row.request_id),
        ("Reply id", row.completion_id or ""),
        ("Continues", text_of(wire.get("previous_response_id"))),
        ("Exchange id", row.exchange_id),
    ]


def _speed(row: ExchangeRow) -> str:
    if not row.completion_tokens or row.duration_ms is None:
        return ""
    generating_ms = row.duration_ms - (row.time_to_first_token_ms or 0)
    return f"{row.completion_tokens * 1000 / generating_ms:.1f} tokens/s" if generating_ms > 0 else ""


def _bars(row: ExchangeRow) -> list[JSON]:
    """The waterfall chart: a bar between each two known points in time, and the total."""
    end, stored = row.duration_ms, row.stored_ms
    if end is None:
        return []
    stations = [
        ("Waiting to be sent", "wait", row.queued_ms),
        ("Upstream's head", "wait", row.head_ms),
        ("First token", "wait", row.time_to_first_token_ms),
        ("Generation" if row.time_to_first_token_ms is not None else "Reply", "out", end),
        ("Waiting to be stored", "wait", stored),
    ]
    whole = max(end, stored or 0)
    spans, start = [], 0
    for name, kind, moment in stations:
        if moment is not None:
            spans.append((name, kind, min(start, moment), moment))
            start = moment
    spans.append(("Whole", "in", 0, whole))
    return [_bar(name, kind, start, end, whole=max(whole, 1)) for name, kind, start, end in spans]


def _bar(name: str, kind: str, start: int, end: int, *, whole: int) -> JSON:
    """A bar in thousandths of the total; very short ones are drawn slightly longer to be visible."""
    x = round(min(1.0, start / whole) * 1000)
    width = max(4, round(min(1.0, end / whole) * 1000) - x)
    return {"name": name, "kind": kind, "x": min(x, 1000 - width), "width": width, "text": duration(end - start)}
