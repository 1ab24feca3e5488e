"""Middleware: passes every request except the two probes through the gate, and logs what admins do."""

import logging
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.access.attribution import user_header
from proxy.access.gate import Admission, Gate
from proxy.errors import APIError, error_response
from proxy.storage.fair_turns import current_caller
from proxy.wire.headers import Headers

audit = logging.getLogger("stellarchat.audit")
audit.setLevel(logging.INFO)  # admin actions are always logged, whatever the log level

# Load balancers and orchestrators probe these and have no key.
_OPEN = frozenset({"/health", "/ready"})
_RATE_LIMIT = b"x-ratelimit-"


class GateMiddleware:
    """Admits requests through the gate of the lifespan state; a rejected request reaches no route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers with the error of the gate."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        gate: Gate = scope["state"]["gate"]
        try:
            gate.check_origin(scope)
            admission = None if scope["path"] in _OPEN else await gate.admit(scope)
        except APIError as exc:
            await error_response(exc, path=scope["path"])(scope, receive, send)
            return
        # Set before any work: the request's database reads wait in the queue of this caller.
        current_caller.set(partial(_name_of, scope, admission))
        if admission is None:
            await self._app(scope, receive, send)
            return
        if admission.rate_limit_headers is not None:
            send = _with_headers(send, admission.rate_limit_headers)
        try:
            if admission.is_audited:
                await self._audited(scope, receive, send, admission)
            else:
                await self._app(scope, receive, send)
        finally:
            # Also after an exception: otherwise the request would count against its key's concurrency forever.
            gate.leave(admission)

    async def _audited(self, scope: Scope, receive: Receive, send: Send, admission: Admission) -> None:
        """Runs an admin's request, and logs what it did, for which user, and the status."""
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            assert admission.cached_key is not None
            audit.info(
                "admin key %s: %s %s for %s: %s",
                admission.cached_key.row.key_id,
                scope["method"],
                ascii(scope["path"])[1:-1],
                _named(user_header(scope["headers"])),
                status or "no answer",
            )


def _name_of(scope: Scope, admission: Admission | None) -> str:
    """The name under which this caller's database reads queue."""
    if admission is not None and admission.caller.user_id is not None:
        return admission.caller.user_id
    host, _port = scope.get("client") or ("", 0)
    named = next((value for name, value in scope["headers"] if name == b"x-user-id"), b"")
    return f"{host} {named.decode('latin-1')}"


def _with_headers(send: Send, rate_limit_headers: Headers) -> Send:
    """Adds our rate limit headers, replacing upstream's, which refer to another key."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [header for header in message["headers"] if not header[0].lower().startswith(_RATE_LIMIT)]
            message = {**message, "headers": [*kept, *rate_limit_headers]}
        await send(message)

    return send_with_headers


def _named(user_id: str | None) -> str:
    return "itself" if user_id is None else ascii(user_id)
