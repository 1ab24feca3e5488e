"""`/ui/upstreams`: which engines are in use, why others are not, and what they serve. For those who see all."""

import asyncio
from contextlib import suppress

from starlette.responses import Response

from proxy.errors import APIError
from proxy.upstream.overview import ask_for_models, overview
from proxy.web.visits import Visit

_ASKED_SECONDS = 1.0  # an engine that does not answer holds no page up for longer


async def show_upstreams(visit: Visit) -> Response:
    """The page."""
    if not visit.visitor.sees_all:
        raise APIError("Only an admin sees the upstreams.", status=403)
    services = visit.services
    with suppress(TimeoutError):  # what is known by then is shown; the asking goes on
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
