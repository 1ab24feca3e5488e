"""Alive, and able to serve."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.access.gate import Gate
from proxy.errors import json_response
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
        "upstreams": _upstreams(services, names=await _sees_addresses(request)),
        "writes_waiting": writer.waiting,
    }
    return json_response(content, status=200 if is_ready else 503)


async def _sees_addresses(request: Request[State]) -> bool:
    """Everybody may ask, without a key; the upstreams' addresses are for admins, and for a local user without keys."""
    gate: Gate = request.state["gate"]
    return gate.is_open_locally or await gate.is_admin(request.scope["headers"])


def _upstreams(services: Services, *, names: bool) -> dict[str, Any]:
    """How many are in use and how many are not, and where `names` each one's address, and why it is not in use."""
    known = services.upstreams
    return {**counts(known), "list": overview(known)} if names else {**counts(known)}


routes = [Route("/health", get_health), Route("/ready", get_ready)]
