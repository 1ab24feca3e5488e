"""Every other route of upstream: relayed as it is, not recorded."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.types import Receive, Scope, Send

from proxy.access.caller import ANYONE, Caller
from proxy.access.charges import Charge
from proxy.access.keys import KeyCache
from proxy.access.origins import SAFE_METHODS, foreign_origin
from proxy.access.paths import Reach, reach_of
from proxy.downstream.direct_writer import outlet_of
from proxy.downstream.disconnect import Watch
from proxy.downstream.request_body import DepartedError, read_body, stream_body
from proxy.errors import APIError, InvalidRequestError, NotFoundError
from proxy.ids import uuid7
from proxy.recording.sending import send_unrecorded
from proxy.services import Services
from proxy.upstream.request import Body
from proxy.wire import chat_request, headers
from proxy.wire.headers import Headers

UPSTREAM_HEADER = b"x-stellarchat-upstream"
"""Which upstream answered; for admins alone."""

# A larger body is searched for its model at both ends.
_PARSED_BYTES = 256 * 2**10
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,256})"')


class Passthrough:
    """An ASGI endpoint for all that no other route takes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay the request. Raises APIError where it is not for this caller."""
        refuse_unless_reachable(scope)
        await open_unrecorded(scope["state"]["services"], scope, receive, send)


def refuse_unless_reachable(scope: Scope) -> None:
    """Raises APIError where upstream is not to be asked for this, or not by this caller."""
    caller: Caller = scope["state"].get("caller", ANYONE)
    if scope["state"].get("is_foreign"):
        raise foreign_origin()
    if any(name == b"upgrade" and b"websocket" in value.lower() for name, value in scope["headers"]):
        raise APIError(
            "WebSocket is not relayed.", status=501, type_="invalid_request_error", code="websocket_not_supported"
        )
    reach = reach_of(scope["raw_path"])
    if reach is Reach.NOBODY:
        raise NotFoundError(
            "This path is not relayed: it has an empty or dot segment, a control character, "
            "or an escape that servers read in different ways."
        )
    if reach is Reach.ADMINS and not caller.is_admin:
        raise NotFoundError(f"There is no route {scope['raw_path'].decode('ascii', 'replace')}.")


async def open_unrecorded(
    services: Services,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    body: Body | None = None,
    sent: Headers | None = None,
    key: bytes | None = None,
) -> None:
    """Relay a request and its answer; the body is read on the way where it is not given, `sent` are its headers.

    Of several upstreams one serves the model that the body names; `key` keeps a conversation on its upstream.
    """
    charge = _charge_unparsed(scope, body)
    if sent is None:
        sent = upstream_headers(services, scope)
    if body is None and services.upstreams.are_several and _names_model(scope["headers"]):
        body = await read_body(receive, limit_bytes=services.settings.body_limit_bytes)
    model = model_of(body) if isinstance(body, bytes) and services.upstreams.are_several else None
    upload = None
    if body is None and _has_body(scope["headers"]):
        upload = _Upload(receive, services.settings.body_limit_bytes)
        if length := headers.value_of(scope["headers"], b"content-length"):
            sent.append((b"content-length", length))
    outlet = outlet_of(scope)
    watch = Watch(receive, outlet=outlet, after=upload.has_ended if upload else None)
    try:
        opened = await services.upstreams.open(
            scope["method"].encode(), target_of(scope), sent, upload or body or b"", model=model, key=key
        )
        try:
            response = opened.response if charge is None else charge.metered(opened.response)
            out = headers.to_caller(response.headers, drops_length=response.status == 304)
            if headers.value_of(out, b"x-request-id") is None:
                out.append((b"x-request-id", headers.value_of(sent, b"x-request-id") or b""))
            if scope["state"].get("caller", ANYONE).is_admin:
                out.append((UPSTREAM_HEADER, opened.upstream.name.encode()))
            await send_unrecorded(response, send, headers=out, outlet=outlet)
        finally:
            opened.close()
    except asyncio.CancelledError:
        if not watch.has_left:
            raise
    except DepartedError:
        pass
    finally:
        watch.stop()


def reserve_tokens(scope: Scope, *, request_bytes: int, request: dict[str, Any] | None) -> Charge | None:
    """Hold what a request may use of its key's quota, where it has one. Raises APIError 429."""
    charge: Charge | None = scope["state"].get("charge")
    if charge is not None:
        charge.reserve(request_bytes=request_bytes, request=request)
    return charge


def _charge_unparsed(scope: Scope, body: Body | None) -> Charge | None:
    """The same for a request whose JSON is not looked at; what only reads is free."""
    if scope["method"] in SAFE_METHODS:
        return None
    length = headers.value_of(scope["headers"], b"content-length")
    size = len(body) if isinstance(body, bytes) else int(length) if length else 0
    return reserve_tokens(scope, request_bytes=size, request=None)


def target_of(scope: Scope) -> bytes:
    """Path and query as the caller sent them. Raises InvalidRequestError where the query holds a key of ours."""
    query: bytes = scope["query_string"]
    if query and scope["state"]["gate"].keys.is_within(unquote_to_bytes(query)):
        raise InvalidRequestError("A key of this server does not belong in an address: send it in Authorization.")
    path: bytes = scope["raw_path"]
    return path + b"?" + query if query else path


def upstream_headers(services: Services, scope: Scope) -> Headers:
    """The caller's headers as upstream gets them."""
    given: Headers = scope["headers"]
    caller: Caller = scope["state"].get("caller", ANYONE)
    api_key = services.settings.upstream_api_key
    keys: KeyCache = scope["state"]["gate"].keys
    return headers.to_upstream(
        keys.without_ours(given),
        request_id=headers.value_of(given, b"x-request-id") or uuid7().encode(),
        passes_credentials=not caller.has_key,
        api_key=api_key.encode() if api_key else None,
    )


class _Upload:
    """A request body on its way to upstream. The caller is watched only when it has sent all of it."""

    def __init__(self, receive: Receive, limit_bytes: int) -> None:
        self.has_ended = asyncio.Event()
        self._pieces = stream_body(receive, limit_bytes=limit_bytes)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._pieces:
                yield piece
        finally:
            self.has_ended.set()


def _names_model(given: Headers) -> bool:
    """Whether the body may say which model is asked for."""
    media_type = headers.value_of(given, b"content-type") or b""
    return _has_body(given) and media_type.partition(b";")[0].strip().lower().endswith(b"json")


def model_of(body: bytes) -> str | None:
    """The model that a JSON body names. In a large one the first member of that name counts: parsing takes too long."""
    if len(body) <= _PARSED_BYTES:
        request = chat_request.parse(body)
        model = request.get("model") if request else None
        return model if isinstance(model, str) else None
    found = _MODEL.search(body, 0, _PARSED_BYTES) or _MODEL.search(body, len(body) - _PARSED_BYTES)
    return found[1].decode("utf-8", "replace") if found else None


def _has_body(given: Headers) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in given)
