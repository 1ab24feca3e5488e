"""`/ui/usage`: tokens and requests by day, model, user or endpoint, from the counts stored with each chat."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from proxy.errors import APIError
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.usage import percentile_ms
from proxy.web.rendering import duration, number
from proxy.web.visits import Visit, day_of

JSON = dict[str, Any]

_DAYS = 30
_DAYS_MAX = 100  # each day has one row per user, model and endpoint
_ROWS_MAX = 100  # of the table, as many as days at most; the rest is on further pages
_OFFSET_MAX = 100_000
_WIDTH, _HEIGHT = 960, 150


async def show_usage(visit: Visit) -> Response:
    """The usage page; by default the last 30 days."""
    choices = ("day", "model", "user", "endpoint") if visit.visitor.sees_all else ("day", "model", "endpoint")
    by = next((each for each in choices if each == visit.query.get("by")), "day")
    since, until = _days(visit)
    offset = visit.whole_number("offset", most=_OFFSET_MAX)
    read = partial(_read, by=by, since=since.isoformat(), until=until.isoformat(), user_id=visit.user_id, offset=offset)
    days, rows = await visit.services.read(read)
    following = {**visit.query, "offset": str(offset + _ROWS_MAX)}
    most = max((row["prompt_tokens"] + row["completion_tokens"] for row in days), default=0)
    return await visit.page(
        "usage.html",
        by=by,
        choices=choices,
        since=since.isoformat(),
        until=until.isoformat(),
        totals=_totals(days),
        days=list(_bars(days, since=since, until=until, most=most)) if most else [],
        most=most,
        rows=[_row(each) for each in rows[:_ROWS_MAX]],
        more=f"/ui/usage?{urlencode(following)}" if len(rows) > _ROWS_MAX else None,
    )


def _days(visit: Visit) -> tuple[date, date]:
    today = datetime.now(UTC).date()
    until = date.fromisoformat(day_of(visit.query.get("until")) or today.isoformat())
    given = day_of(visit.query.get("since"))
    try:
        since = date.fromisoformat(given) if given else until - timedelta(days=_DAYS - 1)
    except OverflowError as exc:
        raise APIError("These dates are not valid.", status=400) from exc
    if not timedelta(0) <= until - since < timedelta(days=_DAYS_MAX):
        raise APIError(
            f"The first day must not be after the last, and the period at most {_DAYS_MAX} days long.", status=400
        )
    return since, until


def _read(
    connection: Connection, *, by: str, since: str, until: str, user_id: str | None, offset: int
) -> tuple[list[JSON], list[JSON]]:
    within: JSON = {"since": since, "until": until, "user_id": user_id, "limit": _ROWS_MAX + 1}
    if by == "day":
        rows = queries.web.sum_usage(connection, by=by, **within)
        return rows, rows
    rows = queries.web.sum_usage(connection, by=by, offset=offset, **within)
    return queries.web.sum_usage_totals(connection, **within), rows


def _totals(days: Sequence[JSON]) -> list[tuple[str, str]]:
    def total(name: str) -> str:
        return number(sum(row[name] for row in days))

    return [
        ("requests", total("requests")),
        ("tokens in", total("prompt_tokens")),
        ("tokens out", total("completion_tokens")),
        ("cut", total("incomplete")),
        ("failed", total("failed")),
    ]


def _row(row: JSON) -> JSON:
    percentiles = {f"p{share}": duration(percentile_ms(row, share / 100)) for share in (50, 95)}
    return row | percentiles | {"name": row["name"] or "(none)"}


def _bars(days: Sequence[JSON], *, since: date, until: date, most: int) -> list[JSON]:
    step = _WIDTH / ((until - since).days + 1)
    return [_bar(row, x=(date.fromisoformat(row["name"]) - since).days * step, step=step, most=most) for row in days]


def _bar(row: JSON, *, x: float, step: float, most: int) -> JSON:
    in_height = row["prompt_tokens"] / most * _HEIGHT
    out_height = row["completion_tokens"] / most * _HEIGHT
    title = f"{row['name']}: {number(row['prompt_tokens'])} in, {number(row['completion_tokens'])} out"
    return {
        "title": title,
        "x": round(x + step * 0.1, 2),
        "width": round(min(step * 0.8, 40), 2),
        "in_y": round(_HEIGHT - in_height, 2),
        "in_height": round(in_height, 2),
        "out_y": round(_HEIGHT - in_height - out_height, 2),
        "out_height": round(out_height, 2),
    }
