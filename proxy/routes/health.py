"""Alive, and able to serve."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.errors import json_response
from proxy.routes.parameters import caller_of
from proxy.services import Services, State
from proxy.upstream.overview import counts, overview


async def get_health(_request: Request[State]) -> Response:
    """The process is alive, whatever else is not."""
    return json_response({"status": "ok"})


async def get_ready(request: Request[State]) -> Response:
    """Able to serve: the database takes writes and upstream answers."""
    services: Services = request.state["services"]
    writer = services.recorder.writer
    checks = {
        "database": "ok" if writer.last_error is None else writer.last_error,
        "upstream": await services.upstreams.check(),
    }
    is_ready = all(check == "ok" for check in checks.values())
    content = {
        "status": "ready" if is_ready else "not ready",
        **checks,
        "upstreams": _upstreams(services, names=caller_of(request).is_admin),
        "writes_waiting": writer.waiting,
    }
    return json_response(content, status=200 if is_ready else 503)


def _upstreams(services: Services, *, names: bool) -> dict[str, Any]:
    """How many are in use and how many are not; for an admin also each one's address, and why it is not in use."""
    known = services.upstreams
    return {**counts(known), "list": overview(known)} if names else {**counts(known)}


routes = [Route("/health", get_health), Route("/ready", get_ready)]
