"""Routes of OpenAI's API that vLLM does not have: served from the history, or relayed if a setting says so."""

from starlette.types import Receive, Scope, Send

from proxy.routes.passthrough import Passthrough
from proxy.routes.resource import Resource
from proxy.services import Services


class LocalOrUpstream(Resource):
    """A resource whose methods are all relayed to upstream if a setting says so."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles the request, or relays it."""
        services: Services = scope["state"]["services"]
        if services.settings.readback:
            await super().__call__(scope, receive, send)
        else:
            await Passthrough()(scope, receive, send)
