"""Routes that OpenAI's API has and vLLM has not: answered from the history, or by upstream where a setting says so."""

from starlette.types import Receive, Scope, Send

from proxy.routes.relay import Relay
from proxy.routes.resource import Handler, Resource
from proxy.services import Services


class Readback:
    """An ASGI endpoint of a handler a method."""

    def __init__(self, **handlers: Handler) -> None:
        self._own = Resource(**handlers)
        self._upstream = Relay()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or let upstream do it."""
        services: Services = scope["state"]["services"]
        answer = self._own if services.settings.readback else self._upstream
        await answer(scope, receive, send)
