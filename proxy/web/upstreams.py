"""`/ui/upstreams`: the state and models of each upstream. Visible only to those who may see all data."""

import asyncio
from contextlib import suppress

from starlette.responses import Response

from proxy.errors import APIError
from proxy.upstream.overview import ask_for_models, overview
from proxy.web.visits import Visit

_ASKED_SECONDS = 1.0  # the longest that a silent upstream may delay the page


async def show_upstreams(visit: Visit) -> Response:
    if not visit.visitor.sees_all:
        raise APIError("Only an admin sees the upstreams.", status=403)
    services = visit.services
    with suppress(TimeoutError):  # shows what is known by then; the requests continue
        async with asyncio.timeout(_ASKED_SECONDS):
            await services.upstreams.check()
    await ask_for_models(services.upstreams, seconds=_ASKED_SECONDS)
    writer = services.recorder.writer
    return await visit.page(
        "upstreams.html",
        upstreams=overview(services.upstreams),
        database=writer.last_error or "ok",
        waiting=writer.waiting,
        several_workers=services.settings.workers > 1,
    )
