"""Routes that OpenAI's API has and vLLM has not: answered from the history, or by upstream where a setting says so."""

from starlette.types import Receive, Scope, Send

from proxy.routes.passthrough import Passthrough
from proxy.routes.resource import Resource
from proxy.services import Services


class LocalOrUpstream(Resource):
    """A resource that a setting gives back to upstream, every method of it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or let upstream do it."""
        services: Services = scope["state"]["services"]
        if services.settings.readback:
            await super().__call__(scope, receive, send)
        else:
            await Passthrough()(scope, receive, send)
