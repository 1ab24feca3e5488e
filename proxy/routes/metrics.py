"""`GET /metrics`: the proxy's own metrics, not upstream's."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.routes.resource import Resource
from proxy.services import State
from proxy.telemetry.metrics import CONTENT_TYPE


async def get_metrics(request: Request[State]) -> Response:
    """The sum over all workers."""
    return Response(await request.state["observer"].text(), headers={"content-type": CONTENT_TYPE})


routes = [Route("/metrics", Resource(GET=get_metrics))]
