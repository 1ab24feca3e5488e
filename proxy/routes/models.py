"""`GET /v1/models`: relayed for a single upstream; a merged list for several."""

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from proxy.errors import json_response
from proxy.routes.passthrough import Passthrough
from proxy.services import Services

PATH = "/v1/models"


class Models:
    """The ASGI endpoint."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services: Services = scope["state"]["services"]
        if not services.upstreams.are_several or scope["method"] != "GET":
            await Passthrough()(scope, receive, send)
            return
        models = await services.upstreams.list_models()
        await json_response({"object": "list", "data": models})(scope, receive, send)


routes = [Route(PATH, Models())]
