"""Middleware that reports every request to the observer, except recorded chats, which the recorder reports."""

import time

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.downstream.direct_writer import NotingSend
from proxy.telemetry.observer import Observer


class ObserverMiddleware:
    """Measures each request's status and duration."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, noting = time.monotonic(), NotingSend(send)
        try:
            await self._app(scope, receive, noting)
        except Exception:
            noting.status = noting.status or 500
            raise
        finally:
            observer: Observer = scope["state"]["observer"]
            if not scope["state"].get("is_recorded"):
                observer.request_ended(scope, status=noting.status, seconds=time.monotonic() - started)
