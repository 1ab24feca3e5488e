"""A `POST` to a recorded endpoint, whatever its dialect: relayed and recorded."""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.types import Receive, Scope, Send

from proxy.access.attribution import session_of, user_header, user_of
from proxy.access.caller import ANYONE, Caller
from proxy.access.charges import Charge
from proxy.downstream.direct_writer import Outlet, outlet_of
from proxy.downstream.disconnect import Orphans, Watch
from proxy.downstream.request_body import DepartedError, read_body
from proxy.errors import APIError, UnavailableError, error_response
from proxy.history.responses import Resolved, resolve
from proxy.ids import moment, timestamp, uuid7
from proxy.recording.one_exchange import CALLER_LEFT, CANCELLED, STOPPED, Recording, committed
from proxy.recording.sending import send_streamed, send_whole
from proxy.routes.passthrough import open_unrecorded, reserve_tokens, target_of, upstream_headers
from proxy.services import Services
from proxy.settings import Settings
from proxy.storage import exchange_store
from proxy.storage.exchange import Exchange, SessionRef, Status
from proxy.upstream.client import Response
from proxy.upstream.failure import Failure, failure
from proxy.upstream.upstreams import OpenedResponse
from proxy.wire import hash_chain, headers, responses, responses_state, sse
from proxy.wire.content_coding import Decoding, Undecodable, decoded, decoding_of
from proxy.wire.endpoint import Endpoint, Request
from proxy.wire.headers import Headers
from proxy.wire.message import title_of
from proxy.wire.routing_key import routing_key

logger = logging.getLogger(__name__)

_SESSION = b"x-session-id"
_RETRY_COUNT = b"x-stainless-retry-count"

# The headers wait for the claim of a new session; while the database is locked they do not wait longer.
_CLAIM_SECONDS = 0.3
# What upstreams answer to an option that they do not know; and how many models are remembered that do not.
_REFUSALS = frozenset({400, 415, 422, 501})
_REMEMBERED = 1024
_COUNTED_BYTES = 2**20
_VALUES_MAX = 5_000_000


@dataclass(slots=True)
class Chat:
    """A chat as it goes to upstream."""

    target: bytes
    headers: Headers
    body: bytes
    request_id: bytes
    hides_usage: bool = False
    body_as_sent: bytes | None = None  # where `body` asks for the usage
    is_retry: bool = False
    model: str | None = None
    routing_key: bytes | None = None
    charge: Charge | None = None


class RecordedEndpoint:
    """An ASGI endpoint: this is the hot path, so no request object is made."""

    def __init__(self, endpoint: Endpoint, orphans: Orphans) -> None:
        self._endpoint = endpoint
        self._orphans = orphans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay the chat, and record it however it ends."""
        try:
            await self._relay(scope, receive, send)
        except DepartedError:
            pass
        except APIError as exc:
            await error_response(exc, path=scope["path"])(scope, receive, send)

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        services: Services = scope["state"]["services"]
        asked_at = timestamp(), moment()
        raw = await read_body(receive, limit_bytes=services.settings.body_limit_bytes)
        chat = Chat(target_of(scope), upstream_headers(services, scope), raw, b"")
        coding = headers.value_of(scope["headers"], b"content-encoding")
        text = raw if not coding else await _decoded(raw, coding, services)
        request = None if await _has_too_many_values(text) else self._endpoint.parse(text)
        body = None if request is None else request.body
        chat.charge = reserve_tokens(scope, request_bytes=len(raw), request=body)
        resolved = Resolved()
        if request is not None and self._endpoint.path == responses.PATH and not coding:
            request, resolved = await self._resolve(services, scope, chat, request)
        exchange = (
            None
            if request is None
            else self._exchange(services, scope, chat, request, asked_at, resolved, is_encoded=bool(coding))
        )
        if exchange is None:
            await open_unrecorded(services, scope, receive, send, body=chat.body, key=chat.routing_key)
        else:
            scope["state"]["is_recorded"] = True  # the recorder tells of it
            await _Recorded(services, chat, exchange, self._orphans, outlet_of(scope)).run(receive, send)

    def _exchange(
        self,
        services: Services,
        scope: Scope,
        chat: Chat,
        request: Request,
        asked_at: tuple[str, str],
        resolved: Resolved,
        *,
        is_encoded: bool,
    ) -> Exchange | None:
        """What is to be recorded, or None; `chat` gets the body without what is ours. Raises InvalidRequestError."""
        given: Headers = scope["headers"]
        settings, body = services.settings, request.body
        named = session_of(given, body, vendor_headers=services.vendor_headers)
        user_id = user_for(scope["state"].get("caller", ANYONE), given, body)
        _route(services, chat, request, user_id=user_id, named_id=named[0] if named else None, given=given)
        if not (settings.recording and self._is_recorded(settings, body)):
            return None
        may_ask = settings.stream_usage and not is_encoded and _model_of(body) not in services.without_usage
        if may_ask and (asking := self._endpoint.with_usage(chat.body, request)) is not None:
            chat.body_as_sent = chat.body
            chat.body = asking
            chat.hides_usage = True
        chat.is_retry = (headers.value_of(given, _RETRY_COUNT) or b"0") != b"0"
        chat.request_id = headers.value_of(chat.headers, b"x-request-id") or b""
        request_id = headers.text_of(chat.request_id)
        # A request that was given its id here gives it to its exchange.
        is_ours = headers.value_of(given, b"x-request-id") is None
        return Exchange(
            exchange_id=request_id if is_ours else uuid7(),
            user_id=user_id,
            session=_session_ref(named, resolved),
            endpoint=self._endpoint.path,
            request_id=request_id,
            request=body,
            created_at=asked_at[0],
            asked_at=asked_at[1],
            trace_context=headers.trace_context_of(given) if settings.traces_endpoint else None,
        )

    def _is_recorded(self, settings: Settings, body: dict[str, Any]) -> bool:
        if self._endpoint.name not in settings.record:
            return False
        if body.get("store") is not False or settings.store_false == "record":
            return True
        # Clients of Responses say it with every request, and mean only that they keep the state themselves.
        return settings.store_false == "auto" and self._endpoint.path == responses.PATH

    async def _resolve(
        self, services: Services, scope: Scope, chat: Chat, request: Request
    ) -> tuple[Request, Resolved]:
        """Put the history of what a request names in front of its input; `chat` gets the body with it."""
        body = request.body
        if services.settings.responses_state != "proxy" or not responses_state.names_something(body):
            return request, Resolved()
        user_id = user_for(scope["state"].get("caller", ANYONE), scope["headers"], body)
        try:
            async with asyncio.timeout(services.settings.commit_timeout_seconds):
                resolved = await services.read(partial(resolve, request=body, user_id=user_id))
        except (TimeoutError, UnavailableError) as exc:
            raise UnavailableError("The history of the response cannot be read just now; try again.") from exc
        if not (resolved.is_known or resolved.items):
            return request, resolved
        chat.body, changed = responses_state.spliced(
            chat.body, body, history=resolved.history, items=resolved.items, is_known=resolved.is_known
        )
        return self._endpoint.request(changed), resolved


async def _has_too_many_values(body: bytes) -> bool:
    """Whether parsing a body would take many times its size in memory; no model's context holds so many values."""
    count = 0
    for start in range(0, len(body), _COUNTED_BYTES) if len(body) > _COUNTED_BYTES else ():
        part = body[start : start + _COUNTED_BYTES]
        count += part.count(b",") + part.count(b"{") + part.count(b"[")
        await asyncio.sleep(0)
    if count > _VALUES_MAX:
        logger.warning("a request of %d bytes has more than %d values: it is not recorded", len(body), _VALUES_MAX)
    return count > _VALUES_MAX


async def _decoded(body: bytes, coding: bytes, services: Services) -> bytes:
    """What a compressed request holds, for the record; nothing where it cannot be read: upstream judges it."""
    limit_bytes = services.settings.body_limit_bytes
    try:
        return await asyncio.to_thread(partial(decoded, body, coding, limit_bytes=limit_bytes))
    except ValueError:
        return b""


def _model_of(body: dict[str, Any]) -> str:
    model = body.get("model")
    return model if isinstance(model, str) else ""


def _session_ref(named: tuple[str, str] | None, resolved: Resolved) -> SessionRef:
    """The session that a chat says it belongs to, or a new one."""
    if resolved.session_id is not None:
        return SessionRef(resolved.session_id, resolved.source)
    return SessionRef(uuid7(), named[1], named[0]) if named else SessionRef(uuid7(), "new")


def _route(
    services: Services, chat: Chat, request: Request, *, user_id: str, named_id: str | None, given: Headers
) -> None:
    """Say which conversation the chat belongs to: to the choice of an upstream, and to a router behind it."""
    settings = services.settings
    is_told = (
        settings.forward_session and "session_id" not in request.body and headers.value_of(given, _SESSION) is None
    )
    if not (is_told or services.upstreams.are_several):
        return
    chat.routing_key = routing_key(user_id, named_id=named_id, messages=request.messages)
    model = request.body.get("model")
    chat.model = model if isinstance(model, str) else None
    if is_told:
        chat.headers.append((_SESSION, chat.routing_key.hex().encode()))


def user_for(caller: Caller, given: Headers, request: dict[str, Any]) -> str:
    """Whose chat it is: the key's user, or the one an admin names; without keys what the request says."""
    if caller.user_id is None:
        return user_of(given, request)
    return (caller.is_admin and user_header(given)) or caller.user_id


class _Recorded:
    """One chat that is recorded, from its request to its end."""

    def __init__(
        self, services: Services, chat: Chat, exchange: Exchange, orphans: Orphans, outlet: Outlet | None
    ) -> None:
        self._services = services
        orphans.limit = services.settings.orphan_limit
        self._orphans = orphans if services.settings.on_disconnect == "finish" else None
        self._chat = chat
        self._outlet = outlet
        self._exchange = exchange
        self._recording = Recording(services.recorder, exchange, size=len(chat.body))
        self._search: asyncio.Task[None] | None = None
        self._is_aborted = False
        self._work = asyncio.current_task()
        self._recording.live.abort = self._abort

    def _abort(self) -> None:
        """End the work on the chat, since another request asks for it."""
        if not self._is_aborted and self._work is not None:
            self._is_aborted = True
            self._work.cancel()

    async def run(self, receive: Receive, send: Send) -> None:
        """Relay it, and end the recording on every way out."""
        watch = Watch(receive, outlet=self._outlet, orphans=self._orphans)
        try:
            # Upstream works already while the session is looked for.
            self._begin_search()
            await self._relay(send, watch)
        except APIError as exc:
            watch.stop()  # there is no work left that a caller who leaves could end
            await self._end("failed", exc.as_json()["error"])
            exc.headers = {**(exc.headers or {}), **self._own_headers()}
            raise
        except asyncio.CancelledError:
            if self._is_aborted:
                await self._end("incomplete", CANCELLED)
                return
            await self._end("incomplete", CALLER_LEFT if watch.has_cancelled else STOPPED)
            if not watch.has_cancelled:
                raise
        except BaseException:
            await self._end("incomplete", STOPPED)
            raise
        finally:
            watch.stop()
            self._recording.live.abort = self._work = None  # break the reference cycle: no GC pass is needed

    def _own_headers(self) -> dict[str, str]:
        """The headers that every reply to a recorded request has, also an error of ours."""
        session = self._exchange.session
        return {
            "X-Request-Id": headers.text_of(self._chat.request_id),
            "X-Session-Id": session.session_id,
            "X-Session-Source": session.source,
        }

    async def _relay(self, send: Send, watch: Watch) -> None:
        chat = self._chat
        opened = await self._services.upstreams.open(
            b"POST", chat.target, chat.headers, chat.body, model=chat.model, key=chat.routing_key
        )
        if opened.response.status in _REFUSALS and chat.body_as_sent is not None:
            opened = await self._open_as_sent(opened)
        response = opened.response if chat.charge is None else chat.charge.metered(opened.response)
        try:
            self._recording.answered(response.status, headers.value_of(response.headers, b"content-type"))
            await self._found()
            self._recording.heads_out()
            await self._answer(response, send, watch)
        finally:
            opened.close()

    async def _open_as_sent(self, refused: OpenedResponse) -> OpenedResponse:
        """Ask again with the body as it came: upstream may not know the option that asks for the usage."""
        chat, services = self._chat, self._services
        refused.close()
        assert chat.body_as_sent is not None
        chat.body, chat.hides_usage = chat.body_as_sent, False
        opened = await services.upstreams.open(
            b"POST", chat.target, chat.headers, chat.body, model=chat.model, key=chat.routing_key
        )
        if opened.response.status < 400 and len(services.without_usage) < _REMEMBERED:
            services.without_usage.add(_model_of(self._exchange.request))
        return opened

    async def _answer(self, response: Response, send: Send, watch: Watch) -> None:
        chat, session = self._chat, self._exchange.session
        decoding = self._decoding(response)
        is_stream, first = await self._is_stream(response)
        hides_usage = chat.hides_usage and decoding is None
        out = headers.to_caller(response.headers, drops_length=hides_usage and is_stream)
        if headers.value_of(out, b"x-request-id") is None:
            out.append((b"x-request-id", chat.request_id))
        out.append((b"x-session-id", session.session_id.encode()))
        out.append((b"x-session-source", session.source.encode()))
        if is_stream:
            await send_streamed(
                response,
                send,
                self._recording,
                headers=out,
                hides_usage=hides_usage,
                watch=watch,
                outlet=self._outlet,
                first=first,
                decoding=decoding,
            )
        else:
            await send_whole(
                response, send, self._recording, headers=out, outlet=self._outlet, first=first, decoding=decoding
            )

    def _decoding(self, response: Response) -> Decoding | None:
        """How a compressed reply is read for the record. One that cannot be read says so in its exchange."""
        coding = headers.value_of(response.headers, b"content-encoding")
        limit_bytes = self._services.settings.body_limit_bytes
        try:
            return decoding_of(coding, limit_bytes=limit_bytes)
        except ValueError as exc:
            return Undecodable(str(exc))

    async def _is_stream(self, response: Response) -> tuple[bool, bytes]:
        """Whether events come, by the media type or by how the body begins; and what was read to know it."""
        media_type = headers.value_of(response.headers, b"content-type") or b""
        if media_type.partition(b";")[0].strip().lower() == b"text/event-stream":
            return True, b""
        if not (self._exchange.asked.wants_stream and 200 <= response.status < 300):
            return False, b""
        first = text = b""
        probe = self._decoding(response)
        try:
            while sse.may_become_stream(text) and (data := await response.read()):
                first += data
                text += data if probe is None else probe.decode(data)
        except Failure as exc:
            raise failure(exc) from exc
        except ValueError:
            return False, first
        return sse.looks_like_stream(text), first

    def _begin_search(self) -> None:
        exchange = self._exchange
        if exchange.session.external_id is not None:
            self._search = asyncio.create_task(self._find(self._find_named(exchange.session)))
        elif exchange.session.source != "new" or not self._services.settings.stitching:
            self._recording.live.is_placed = True
        elif (failed := self._services.recorder.failures.find(exchange, is_retry=self._chat.is_retry)) is not None:
            self._recording.live.place(SessionRef(failed, "stitched"))
        elif hash_chain.has_reply(exchange.messages):
            self._search = asyncio.create_task(self._find(self._find_stitched()))
        else:
            self._recording.live.is_placed = True

    async def _found(self) -> None:
        """Wait until the session is known."""
        if self._search is not None:
            await asyncio.wait([self._search])

    async def _end(self, status: Status, error: Any) -> None:
        """End the recording, also where this is cancelled, and wait until it is on disk."""
        if self._search is None or self._search.done():
            self._recording.end(status, error=error)
        else:
            self._search.add_done_callback(lambda _: self._recording.end(status, error=error))
            await self._found()
        await committed(self._recording, self._recording.saved)

    async def _find(self, search: Coroutine[Any, Any, SessionRef]) -> None:
        """Place the chat. One whose session is not found in time goes on; its messages find their place when stored."""
        session = self._exchange.session
        try:
            async with asyncio.timeout(self._services.settings.commit_timeout_seconds):
                session = await search
        except Exception as exc:  # noqa: BLE001 - nothing that goes wrong with the recording may end a chat
            logger.warning("the session of a chat could not be looked up: %r", exc)
        self._recording.live.place(session)

    async def _find_named(self, asked: SessionRef) -> SessionRef:
        assert asked.external_id is not None
        # No write needs to be waited for: a session that is being made is found by the claim, which queues behind it.
        session_id = await self._services.database.look_up(partial(exchange_store.find_named, exchange=self._exchange))
        if session_id is not None:
            return SessionRef(session_id, asked.source)
        # A request without messages may be refused, and would leave an empty session.
        return await self._claim(asked) if self._exchange.messages else asked

    async def _claim(self, asked: SessionRef) -> SessionRef:
        """Make the session now, so that its id holds also where another worker makes it at this moment."""
        try:
            async with asyncio.timeout(_CLAIM_SECONDS):
                session_id = await self._services.write(
                    partial(
                        exchange_store.get_or_create_session,
                        user_id=self._exchange.user_id,
                        external_id=asked.external_id or "",
                        session_id=asked.session_id,
                        title=title_of(self._exchange.messages),
                        asked_at=self._exchange.asked_at or self._exchange.created_at,
                    )
                )
        except (TimeoutError, UnavailableError):
            return asked
        return SessionRef(session_id, asked.source)

    async def _find_stitched(self) -> SessionRef:
        exchange = self._exchange
        query = partial(exchange_store.list_stitched, exchange=exchange)
        # In strict mode a reply that was seen is on disk.
        read = self._services.database.look_up if self._recording.is_strict else self._services.look_up
        places = await read(query)
        return (
            SessionRef(self._services.recent_branch_points.choose(places).session_id, "stitched")
            if places
            else exchange.session
        )
