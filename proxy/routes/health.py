"""`/health` (the process is alive) and `/ready` (database and upstream work)."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.access.gate import Gate
from proxy.errors import json_response
from proxy.services import Services, State
from proxy.upstream.overview import counts, overview


async def get_health(_request: Request[State]) -> Response:
    """Succeeds as long as the process is alive."""
    return json_response({"status": "ok"})


async def get_ready(request: Request[State]) -> Response:
    """Succeeds if the database can be written and upstream answers."""
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
    """Upstream addresses are shown only to admins, and to local users if no keys are required.

    Anyone may call /ready.
    """
    gate: Gate = request.state["gate"]
    return gate.is_open_locally or await gate.is_admin(request.scope["headers"])


def _upstreams(services: Services, *, names: bool) -> dict[str, Any]:
    """The number of upstreams in and out of rotation; with `names`, also each address and the reason."""
    known = services.upstreams
    return {**counts(known), "list": overview(known)} if names else {**counts(known)}


routes = [Route("/health", get_health), Route("/ready", get_ready)]
