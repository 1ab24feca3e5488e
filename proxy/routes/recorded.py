"""The `POST` route of every recorded endpoint: parses the request, prepares its exchange, and runs the chat."""

import asyncio
import sys
import time
from functools import partial
from typing import Any

from starlette.types import Receive, Scope, Send

from proxy.access.attribution import session_of, user_header, user_of
from proxy.access.caller import ANYONE, Caller
from proxy.downstream.direct_writer import outlet_of
from proxy.downstream.disconnect import Orphans
from proxy.downstream.request_body import DepartedError, read_body
from proxy.errors import APIError, UnavailableError, error_response
from proxy.history.responses import Resolved, resolve
from proxy.ids import moment, timestamp, uuid7
from proxy.routes import loops
from proxy.routes.large_bodies import LARGE_BYTES, off_the_loop, refuse_too_many_values
from proxy.routes.passthrough import named_model, relay_unrecorded, reserve_tokens, target_of, upstream_headers
from proxy.routes.recorded_chat import Chat, RecordedChat, model_of
from proxy.services import Services
from proxy.settings import Settings
from proxy.storage.exchange import Exchange, SessionRef
from proxy.wire import headers, responses, responses_state
from proxy.wire.content_coding import decoded
from proxy.wire.endpoint import Endpoint, Request
from proxy.wire.headers import Headers
from proxy.wire.routing_key import routing_key

_SESSION = b"x-session-id"
# OpenAI's SDKs count their retries here, and send no idempotency key.
_RETRY_COUNT = b"x-stainless-retry-count"


class RecordedEndpoint:
    """The ASGI endpoint. Hot path: no request object is created."""

    def __init__(self, endpoint: Endpoint, orphans: Orphans) -> None:
        self._endpoint = endpoint
        self._orphans = orphans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relays the chat, and records it however it ends."""
        try:
            await self._relay(scope, receive, send)
        # The caller disconnected before its request was complete: there is nobody to answer and nothing to record.
        except DepartedError:
            pass
        except APIError as exc:
            await error_response(exc, path=scope["path"])(scope, receive, send)
        finally:
            loops.forget(scope)

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        services: Services = scope["state"]["services"]
        # Before the body is read: a chat that was asked before its session was deleted must not be stored after that.
        asked_at = time.time(), time.monotonic()
        raw = await read_body(receive, limit_bytes=services.settings.body_limit_bytes)
        caller: Caller = scope["state"].get("caller", ANYONE)
        chat = Chat(target_of(scope), upstream_headers(services, scope), raw, b"", names_upstream=caller.is_admin)
        coding = headers.list_of(scope["headers"], b"content-encoding")
        text = raw if not coding else await _decoded(raw, coding, services)
        is_large = len(text) > LARGE_BYTES
        request = await self._parse_large(services.settings, text) if is_large else self._endpoint.parse(text)
        body = None if request is None else request.body
        # Before the history is read: a caller over its quota must not cost a database read.
        chat.charge = reserve_tokens(scope, request_bytes=len(raw), request=body)
        resolved = Resolved()
        if request is not None and self._endpoint.path == responses.PATH and not coding:
            request, resolved = await self._resolve(services, scope, chat, request)
        exchange = None
        if request is not None:
            work = partial(self._exchange, services, scope, chat, request, asked_at, resolved, is_encoded=bool(coding))
            exchange = await off_the_loop(work, size=len(text)) if is_large else work()
        if exchange is None:
            if request is None and services.upstreams.are_several:
                chat.model = named_model(chat.body)
            to_upstream = chat.target, chat.headers, chat.body
            await relay_unrecorded(
                services, scope, receive, send, *to_upstream, model=chat.model, key=chat.routing_key, charge=chat.charge
            )
        else:
            scope["state"]["is_recorded"] = True  # the recorder reports this request
            await RecordedChat(services, chat, exchange, self._orphans, outlet_of(scope)).run(receive, send)

    async def _parse_large(self, settings: Settings, text: bytes) -> Request | None:
        """Parses a large request; None if it cannot be recorded. Raises APIError 413 if it is too large to record."""
        try:
            await refuse_too_many_values(text, limit=settings.values_limit)
        except APIError:
            if self._endpoint.name in settings.record:
                raise
            return None  # not recorded; upstream validates it
        return await off_the_loop(partial(self._endpoint.parse, text), size=len(text))

    def _exchange(
        self,
        services: Services,
        scope: Scope,
        chat: Chat,
        request: Request,
        asked_at: tuple[float, float],
        resolved: Resolved,
        *,
        is_encoded: bool,
    ) -> Exchange | None:
        """The exchange to record, or None. Removes our own keys from `chat`'s body. Raises InvalidRequestError."""
        given: Headers = scope["headers"]
        settings, body = services.settings, request.body
        named = session_of(given, body, vendor_headers=services.vendor_headers)
        user_id = user_for(scope["state"].get("caller", ANYONE), given, body)
        # Also for chats that are not recorded: their conversation, too, should stay with one upstream (prefix cache).
        _route(services, chat, request, user_id=user_id, named_id=named[0] if named else None, given=given)
        if not (settings.recording and self._is_recorded(settings, body)):
            return None
        # A compressed body is relayed unchanged, and an upstream that refuses `stream_options` is not asked again.
        may_ask = settings.stream_usage and not is_encoded and model_of(body) not in services.without_usage
        if may_ask and (asking := self._endpoint.with_usage(chat.body, request)) is not None:
            chat.body_as_sent = chat.body
            chat.body = asking
            chat.hides_usage = True
        chat.is_retry = (headers.value_of(given, _RETRY_COUNT) or b"0") != b"0"
        chat.request_id = headers.value_of(chat.headers, b"x-request-id") or b""
        request_id = headers.text_of(chat.request_id)
        # An id that we generated for the request is also used for its exchange.
        is_ours = headers.value_of(given, b"x-request-id") is None
        return Exchange(
            exchange_id=request_id if is_ours else uuid7(),
            user_id=user_id,
            session=_session_ref(named, resolved),
            endpoint=self._endpoint.path,
            request_id=request_id,
            request=body,
            parsed=request,
            created_at=timestamp(asked_at[0]),
            asked_at=moment(asked_at[1]),
            trace_context=headers.trace_context_of(given) if settings.traces_endpoint else None,
        )

    def _is_recorded(self, settings: Settings, body: dict[str, Any]) -> bool:
        if self._endpoint.name not in settings.record:
            return False
        if body.get("store") is not False or settings.store_false == "record":
            return True
        # Responses clients send `store: false` with every request, meaning only that they keep the state themselves.
        return settings.store_false == "auto" and self._endpoint.path == responses.PATH

    async def _resolve(
        self, services: Services, scope: Scope, chat: Chat, request: Request
    ) -> tuple[Request, Resolved]:
        """Inserts the history that the request refers to before its input; updates `chat`'s body."""
        body = request.body
        if services.settings.responses_state != "proxy":
            return request, Resolved()
        if not await off_the_loop(partial(responses_state.names_something, body), size=len(chat.body)):
            return request, Resolved()
        user_id = user_for(scope["state"].get("caller", ANYONE), scope["headers"], body)
        try:
            # Nothing has been sent yet, so the caller can retry instead of waiting for a database that does not answer.
            async with asyncio.timeout(services.settings.commit_timeout_seconds):
                resolved = await services.read(partial(resolve, request=body, user_id=user_id))
        except (TimeoutError, UnavailableError) as exc:
            raise UnavailableError("The history of the response cannot be read at the moment; try again.") from exc
        if not (resolved.is_known or resolved.items):
            return request, resolved
        splice = partial(responses_state.spliced, chat.body, body, history=resolved.history, items=resolved.items)
        chat.body, changed = await off_the_loop(partial(splice, is_known=resolved.is_known), size=len(chat.body))
        return self._endpoint.request(changed), resolved


async def _decoded(body: bytes, coding: bytes, services: Services) -> bytes:
    """Decodes a compressed request for the record; b"" if that fails (upstream then reports the error)."""
    limit_bytes = services.settings.body_limit_bytes
    try:
        # Always in a thread: how large the decoded body is, is known only afterwards.
        return await off_the_loop(partial(decoded, body, coding, limit_bytes=limit_bytes), size=sys.maxsize)
    except ValueError:
        return b""


def _session_ref(named: tuple[str, str] | None, resolved: Resolved) -> SessionRef:
    """The session named by the chat, or a new one."""
    if resolved.session_id is not None:
        return SessionRef(resolved.session_id, resolved.source)
    return SessionRef(uuid7(), named[1], named[0]) if named else SessionRef(uuid7(), "new")


def _route(
    services: Services, chat: Chat, request: Request, *, user_id: str, named_id: str | None, given: Headers
) -> None:
    """Sets the conversation's routing key, for the choice of an upstream and for a router behind it."""
    settings = services.settings
    is_told = (
        settings.forward_session
        and request.body.get("session_id") is None
        and headers.value_of(given, _SESSION) is None
    )
    if not (is_told or services.upstreams.are_several):
        return
    chat.routing_key = routing_key(user_id, named_id=named_id, messages=request.messages)
    model = request.body.get("model")
    chat.model = model if isinstance(model, str) else None
    if is_told:
        chat.headers.append((_SESSION, chat.routing_key.hex().encode()))


def user_for(caller: Caller, given: Headers, request: dict[str, Any]) -> str:
    """The chat's user: the key's user, the one an admin names, or without keys the one in the request."""
    if caller.user_id is None:
        return user_of(given, request)
    return (caller.is_admin and user_header(given)) or caller.user_id
