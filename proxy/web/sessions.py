"""`/ui`: the sessions, newest activity first, as they change."""

import json
import shlex
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from hashlib import blake2b
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from proxy.demo.call import MODEL
from proxy.errors import APIError
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.upstream.overview import ask_for_models
from proxy.web.rendering import ago
from proxy.web.visitors import LIVE_HEADER
from proxy.web.visits import Visit
from proxy.wire import anthropic
from proxy.wire.chat import CHAT

JSON = dict[str, Any]

_PAGE = 50
_LOOKED_AT_MAX = 2000  # sessions, where a filter leaves most of them out; the next page goes on from there
_EXCHANGES = 20  # of each session, for its models and its state
_MODELS_SHOWN = 3
_ASKED_SECONDS = 1.0  # upstream, for a model's name
_LAST = ("9999-12-31", "")  # a number alone would be compared as one: the columns are DATETIME


@dataclass(frozen=True, slots=True)
class Filters:
    """Which sessions are shown."""

    model: str | None = None
    status: str | None = None
    since_day: str | None = None
    until_day: str | None = None

    @property
    def is_set(self) -> bool:
        """Whether any is."""
        return self != Filters()

    def fit(self, session: JSON) -> bool:
        """Whether a session is one of them."""
        fits_model = self.model is None or self.model in session["models"]
        return fits_model and (self.status is None or self.status == session["status"])


@dataclass(frozen=True, slots=True)
class _Found:
    sessions: list[JSON]
    after: tuple[str, str] | None  # where to go on, where there is more
    is_first_visit: bool


async def list_sessions(visit: Visit) -> Response:
    """One page of the list; where nothing was ever said, how to say the first thing."""
    filters, after = _filters(visit), _cursor(visit.query.get("after", ""))
    found = await visit.services.read(partial(_find, user_id=visit.user_id, filters=filters, after=after))
    settings = visit.services.settings
    is_first_visit = found.is_first_visit and "user" not in visit.query
    model = await _any_model(visit) if is_first_visit else None
    return await visit.page(
        "sessions.html",
        sessions=found.sessions,
        filters=filters,
        more=found.after and _address(visit, after="~".join(found.after)),
        newest=after and _address(visit),
        live=None if after else _address(visit),
        is_first_visit=is_first_visit,
        first_chat=_first_chat(visit, model or "MODEL") if is_first_visit else "",
        model=model,
        base_url=visit.base_url,
        demo=settings.demo,
        needs_key=visit.visitor.has_key,
    )


def _filters(visit: Visit) -> Filters:
    query = visit.query
    status = query.get("status")
    return Filters(
        model=query.get("model"),
        status=status if status in ("in_progress", "incomplete", "failed") else None,
        since_day=day_of(query.get("since")),
        until_day=day_of(query.get("until")),
    )


def day_of(text: str | None) -> str | None:
    """A day as the browser's field gives it. Raises APIError 400."""
    if text is None:
        return None
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as exc:
        raise APIError("A day is written as 2026-11-27.", status=400) from exc


def _cursor(text: str) -> tuple[str, str] | None:
    moment, _, session_id = text.partition("~")
    return (moment, session_id) if moment and session_id else None


def _address(visit: Visit, **changes: str) -> str:
    kept = {name: value for name, value in visit.query.items() if name != "after"} | changes
    return f"/ui?{urlencode(kept)}" if kept else "/ui"


def _find(connection: Connection, *, user_id: str | None, filters: Filters, after: tuple[str, str] | None) -> _Found:
    since, before = filters.since_day or "", after or _end_of(filters.until_day)
    step = _PAGE + 1 if filters.model is None and filters.status is None else 200
    sessions: list[JSON] = []
    looked_at = 0
    while looked_at < _LOOKED_AT_MAX:
        rows = queries.web.list_sessions(connection, user_id=user_id, since=since, before=before, limit=step)
        for row in rows:
            if len(sessions) == _PAGE:
                return _Found(sessions, before, is_first_visit=False)
            session = _session(connection, row)
            before = row["updated_at"], row["session_id"]
            if filters.fit(session):
                sessions.append(session)
        looked_at += len(rows)
        if len(rows) < step:
            is_empty = not (sessions or after) and not queries.web.session_exists(connection, user_id=user_id)
            return _Found(sessions, None, is_first_visit=is_empty)
    return _Found(sessions, before, is_first_visit=False)


def _end_of(until_day: str | None) -> tuple[str, str]:
    """The first moment after a day."""
    return _LAST if until_day is None else ((date.fromisoformat(until_day) + timedelta(days=1)).isoformat(), "")


def _session(connection: Connection, row: JSON) -> JSON:
    exchanges = queries.web.list_newest_exchanges(connection, row["session_no"], limit=_EXCHANGES)
    models = list(dict.fromkeys(each["model"] for each in exchanges if each["model"]))
    states = [each["status"] for each in exchanges]
    status = "in_progress" if "in_progress" in states else states[0] if states else None
    session = row | {"models": models[:_MODELS_SHOWN], "status": status}
    shown = json.dumps([session, ago(row["updated_at"])])
    return session | {"version": blake2b(shown.encode(), digest_size=8).hexdigest()}


async def _any_model(visit: Visit) -> str | None:
    """A model that can be asked; None where no upstream says one."""
    if visit.services.settings.demo:
        return MODEL
    upstreams = visit.services.upstreams
    if LIVE_HEADER not in visit.request.headers:
        await ask_for_models(upstreams, seconds=_ASKED_SECONDS)
    return next((sorted(each.models)[0] for each in upstreams.all if each.models), None)


def _first_chat(visit: Visit, model: str) -> str:
    """A command that sends a chat here."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello! What can you do?"}]}
    return curl(visit, body)


def curl(visit: Visit, body: JSON, *, path: str = CHAT.path) -> str:
    """The command that sends a request here, fit for a shell whatever is in it. `path` is that of an endpoint."""
    words = [f"curl {visit.base_url}{path.removeprefix('/v1')}", "-H 'Content-Type: application/json'"]
    if path == anthropic.PATH:
        words.append("-H 'anthropic-version: 2023-06-01'")
    if visit.visitor.has_key:
        words.append('-H "Authorization: Bearer $STELLARCHAT_KEY"')
    # ASCII alone: what a terminal would obey is escaped.
    words.append(f"-d {shlex.quote(json.dumps(body))}")
    return " \\\n  ".join(words)
