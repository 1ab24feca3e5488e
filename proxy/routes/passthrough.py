"""Relays requests to upstream unrecorded: the fallback route, and what recorded routes share with it."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.types import Receive, Scope, Send

from proxy.access.caller import ANYONE, Caller
from proxy.access.charges import Charge
from proxy.access.keys import OwnKeys
from proxy.access.origins import SAFE_METHODS, foreign_origin
from proxy.access.paths import Reach, reach_of
from proxy.downstream.direct_writer import outlet_of
from proxy.downstream.disconnect import Watch
from proxy.downstream.request_body import DepartedError, read_body, stream_body
from proxy.errors import APIError, InvalidRequestError, NotFoundError
from proxy.recording.sending import send_unrecorded
from proxy.routes import loops
from proxy.services import Services
from proxy.wire import chat_request, headers
from proxy.wire.headers import Headers

UPSTREAM_HEADER = b"x-stellarchat-upstream"
"""The upstream that answered; sent only to admins."""

# In a larger body, the model is searched for only near both ends.
_PARSED_BYTES = 256 * 2**10
# A quote in generated text would be escaped, so that `"model":` is the name of a member.
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,256})"')


class Passthrough:
    """The ASGI endpoint for requests that no other route matches."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relays the request. Raises APIError if this caller may not send it."""
        refuse_unless_reachable(scope)
        try:
            await _relay(scope["state"]["services"], scope, receive, send)
        finally:
            loops.forget(scope)


def refuse_unless_reachable(scope: Scope) -> None:
    """Raises APIError if the path may not be relayed, or not for this caller."""
    caller: Caller = scope["state"].get("caller", ANYONE)
    if scope["state"].get("is_foreign"):
        raise foreign_origin()
    if any(name == b"upgrade" and b"websocket" in value.lower() for name, value in scope["headers"]):
        raise APIError(
            # Without its Upgrade header, which is never relayed, it would reach upstream as a plain GET.
            "WebSocket is not relayed.",
            status=501,
            type_="invalid_request_error",
            code="websocket_not_supported",
        )
    reach = reach_of(scope["raw_path"])
    if reach is Reach.NOBODY:
        raise NotFoundError(
            "This path is not relayed: it has an empty or dot segment, a control character, "
            "or an escape that servers read in different ways."
        )
    if reach is Reach.ADMINS and not caller.is_admin:
        raise NotFoundError(f"There is no route {scope['raw_path'].decode('ascii', 'replace')}.")


async def _relay(services: Services, scope: Scope, receive: Receive, send: Send) -> None:
    """Relays a request that no other route matches; its body is streamed unless it may name a model to choose by."""
    charge = _charge_unparsed(scope)
    target, sent = target_of(scope), upstream_headers(services, scope)
    limit_bytes, body, model = services.settings.body_limit_bytes, None, None
    if services.upstreams.are_several and _names_model(scope["headers"]):
        body = await read_body(receive, limit_bytes=limit_bytes)
        model = named_model(body)
    upload = None
    if body is None and _has_body(scope["headers"]):
        upload = Upload(receive, limit_bytes)
        if length := headers.value_of(scope["headers"], b"content-length"):
            # Upstream gets the same framing: some servers refuse a chunked body.
            sent.append((b"content-length", length))
    await relay_unrecorded(
        services, scope, receive, send, target, sent, upload or body or b"", model=model, charge=charge
    )


async def relay_unrecorded(
    services: Services,
    scope: Scope,
    receive: Receive,
    send: Send,
    target: bytes,
    sent: Headers,
    body: "bytes | Upload",
    *,
    model: str | None = None,
    key: bytes | None = None,
    charge: Charge | None = None,
) -> None:
    """Sends a request to upstream, with the headers `sent`, and relays the response.

    With several upstreams, one that serves `model` is chosen; equal `key`s use the same upstream.
    """
    outlet = outlet_of(scope)
    watch = Watch(receive, outlet=outlet, after=None if isinstance(body, bytes) else body.has_ended)
    try:
        opened = await services.upstreams.open(scope["method"].encode(), target, sent, body, model=model, key=key)
        try:
            response = opened.response if charge is None else charge.metered(opened.response)
            out = headers.to_caller(response.headers, drops_length=response.status == 304)
            if headers.value_of(out, b"x-request-id") is None:
                # vLLM sends it back only with `--enable-request-id-headers`.
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
    """Reserves the tokens that a request may use if its key has a quota. Raises APIError 429."""
    charge: Charge | None = scope["state"].get("charge")
    if charge is not None:
        charge.reserve(request_bytes=request_bytes, request=request)
    return charge


def _charge_unparsed(scope: Scope) -> Charge | None:
    """Like `reserve_tokens`, for a request whose JSON is not parsed; read-only requests are free."""
    # RFC 9110 §9.2.1: they change nothing and generate nothing.
    if scope["method"] in SAFE_METHODS:
        return None
    length = headers.value_of(scope["headers"], b"content-length")
    return reserve_tokens(scope, request_bytes=int(length) if length else 0, request=None)


def target_of(scope: Scope) -> bytes:
    """Path and query as the caller sent them. Raises InvalidRequestError if the query contains one of our keys."""
    query: bytes = scope["query_string"]
    # URLs are written to access logs, also to upstream's.
    if query and scope["state"]["gate"].own_keys.is_within(unquote_to_bytes(query)):
        raise InvalidRequestError(
            "A key of this server must not be part of the URL: send it in the Authorization header."
        )
    path: bytes = scope["raw_path"]
    return path + b"?" + query if query else path


def upstream_headers(services: Services, scope: Scope) -> Headers:
    """The caller's headers as they are sent to upstream. Raises APIError for a request that came back from there."""
    given: Headers = scope["headers"]
    caller: Caller = scope["state"].get("caller", ANYONE)
    api_key = services.settings.upstream_api_key
    own_keys: OwnKeys = scope["state"]["gate"].own_keys
    return headers.to_upstream(
        own_keys.removed_from(given),
        request_id=loops.request_id_of(scope),
        passes_credentials=not caller.has_key,
        api_key=api_key.encode() if api_key else None,
    )


class Upload:
    """A request body streamed to upstream. The caller is watched only after it has sent all of it."""

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
    """Whether the body may name a model."""
    media_type = headers.value_of(given, b"content-type") or b""
    return _has_body(given) and media_type.partition(b";")[0].strip().lower().endswith(b"json")


def named_model(body: bytes) -> str | None:
    """The model named in a JSON body. In a large body, the first member with that name: parsing would take too long."""
    if len(body) <= _PARSED_BYTES:
        request = chat_request.parse(body)
        model = request.get("model") if request else None
        return model if isinstance(model, str) else None
    found = _MODEL.search(body, 0, _PARSED_BYTES) or _MODEL.search(body, len(body) - _PARSED_BYTES)
    return found[1].decode("utf-8", "replace") if found else None


def _has_body(given: Headers) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in given)
