"""The methods of one path. Without this class, a method that we do not support would be relayed to upstream."""

from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.services import State

Handler = Callable[[Request[State]], Awaitable[Response]]


class Resource:
    """An ASGI endpoint with one handler per method; other methods get a 405 with `Allow`."""

    def __init__(self, **handlers: Handler) -> None:
        if "GET" in handlers:
            handlers["HEAD"] = handlers["GET"]
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get(scope["method"])
        if handler is None:
            raise HTTPException(405, headers={"Allow": ", ".join(self._handlers)})
        response = await handler(Request(scope, receive, send))
        await response(scope, receive, send)
