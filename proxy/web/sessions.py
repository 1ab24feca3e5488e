"""`/ui`: the page with the session list, its filters and live updates; without sessions, how to send a first chat."""

from functools import partial
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from proxy.demo.call import MODEL
from proxy.upstream.overview import ask_for_models
from proxy.web.curl import curl
from proxy.web.session_list import Filters, find
from proxy.web.visitors import LIVE_HEADER
from proxy.web.visits import Visit, day_of

JSON = dict[str, Any]

_ASKED_SECONDS = 1.0  # limit for asking upstream for a model name


async def list_sessions(visit: Visit) -> Response:
    """One page of the list; for an empty history, instructions for a first chat."""
    filters, after = _filters(visit), visit.query.get("after", "")
    found = await visit.services.read(partial(find, user_id=visit.user_id, filters=filters, after=after))
    settings = visit.services.settings
    is_first_visit = found.is_first_visit and "user" not in visit.query
    model = await _any_model(visit) if is_first_visit else None
    return await visit.page(
        "sessions.html",
        sessions=found.sessions,
        filters=filters,
        more=found.after and _address(visit, after=found.after),
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


def _address(visit: Visit, **changes: str) -> str:
    kept = {name: value for name, value in visit.query.items() if name != "after"} | changes
    return f"/ui?{urlencode(kept)}" if kept else "/ui"


async def _any_model(visit: Visit) -> str | None:
    """A model that can be used; None if no upstream reports one."""
    if visit.services.settings.demo:
        return MODEL
    upstreams = visit.services.upstreams
    if LIVE_HEADER not in visit.request.headers:
        await ask_for_models(upstreams, seconds=_ASKED_SECONDS)
    return next((sorted(each.models)[0] for each in upstreams.all if each.models), None)


def _first_chat(visit: Visit, model: str) -> str:
    """A curl command that sends a first chat."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello! What can you do?"}]}
    return curl(visit, body)
