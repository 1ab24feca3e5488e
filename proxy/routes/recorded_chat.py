"""Runs one recorded chat: asks upstream, relays the reply, and ends the recording in every case."""

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Send

from proxy.access.charges import Charge
from proxy.downstream.direct_writer import Outlet
from proxy.downstream.disconnect import Orphans, Watch
from proxy.errors import APIError, UpstreamError
from proxy.recording.one_exchange import CALLER_LEFT, CANCELLED, STOPPED, Recording, committed
from proxy.recording.sending import send_streamed, send_whole
from proxy.routes.passthrough import UPSTREAM_HEADER
from proxy.routes.session_finder import SessionFinder
from proxy.services import Services
from proxy.storage.exchange import Exchange, Status
from proxy.upstream.client import Response
from proxy.upstream.failure import Failure, failure
from proxy.upstream.upstreams import OpenedResponse
from proxy.wire import headers, sse
from proxy.wire.content_coding import Decoding, Undecodable, decoding_of
from proxy.wire.headers import Headers

# Upstreams reject an unknown option with various statuses. These mean other errors: key, payment, model, timeout, rate
# limit.
_NOT_OF_THE_BODY = frozenset({401, 402, 404, 407, 408, 429})
# After these the request is sent again as the caller sent it.
_REFUSALS = frozenset({*range(400, 500), 501}) - _NOT_OF_THE_BODY
_REMEMBERED = 1024  # models whose upstream rejects the option


@dataclass(slots=True)
class Chat:
    """A chat as it is sent to upstream."""

    target: bytes
    headers: Headers
    body: bytes
    request_id: bytes
    hides_usage: bool = False
    body_as_sent: bytes | None = None  # the original, if `body` has a usage request added
    is_retry: bool = False
    model: str | None = None
    routing_key: bytes | None = None
    charge: Charge | None = None
    names_upstream: bool = False  # in a response header, for admins


class RecordedChat:
    """One recorded chat, from request to end."""

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
        self._finder = SessionFinder(services, self._recording, exchange)
        self._is_aborted = False
        self._work = asyncio.current_task()
        self._recording.live.abort = self._abort

    def _abort(self) -> None:
        """Cancels the chat. Called by another request."""
        if not self._is_aborted and self._work is not None:
            self._is_aborted = True
            self._work.cancel()

    async def run(self, receive: Receive, send: Send) -> None:
        """Relays the chat, and ends the recording in every case."""
        watch = Watch(receive, outlet=self._outlet, orphans=self._orphans)
        try:
            # The session look-up runs in parallel with upstream.
            self._finder.begin(is_retry=self._chat.is_retry)
            await self._relay(send, watch)
        except APIError as exc:
            if isinstance(exc, UpstreamError):
                self._recording.upstream = exc.upstream
            watch.stop()  # the work is over, so a disconnect no longer cancels anything
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
            self._recording.live.abort = self._work = None  # break the reference cycle so that no GC pass is needed

    def _own_headers(self) -> dict[str, str]:
        """Our headers on every reply to a recorded request, including error replies."""
        session, upstream = self._exchange.session, self._recording.upstream
        named = {UPSTREAM_HEADER.decode(): upstream} if upstream and self._chat.names_upstream else {}
        return {
            "X-Request-Id": headers.text_of(self._chat.request_id),
            "X-Session-Id": session.session_id,
            "X-Session-Source": session.source,
            **named,
        }

    async def _relay(self, send: Send, watch: Watch) -> None:
        chat = self._chat
        opened = await self._open()
        if opened.response.status in _REFUSALS and chat.body_as_sent is not None:
            opened = await self._open_as_sent(opened)
        response = opened.response if chat.charge is None else chat.charge.metered(opened.response)
        try:
            media_type = headers.value_of(response.headers, b"content-type")
            self._recording.answered(
                response.status, media_type, upstream=opened.upstream.name, sent_at=opened.response.sent_at
            )
            await self._finder.found()
            self._recording.head_is_known()
            await self._answer(response, send, watch)
        finally:
            opened.close()

    async def _open(self) -> OpenedResponse:
        chat = self._chat
        return await self._services.upstreams.open(
            b"POST", chat.target, chat.headers, chat.body, model=chat.model, key=chat.routing_key
        )

    async def _open_as_sent(self, refused: OpenedResponse) -> OpenedResponse:
        """Repeats the request with its original body: upstream may not support the added usage option."""
        chat, services = self._chat, self._services
        refused.close()
        assert chat.body_as_sent is not None
        chat.body, chat.hides_usage = chat.body_as_sent, False
        opened = await self._open()
        if opened.response.status < 400 and len(services.without_usage) < _REMEMBERED:
            services.without_usage.add(model_of(self._exchange.request))
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
        if chat.names_upstream and self._recording.upstream:
            out.append((UPSTREAM_HEADER, self._recording.upstream.encode()))
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
        """The decoder for a compressed reply. If there is none, the exchange says so."""
        coding = headers.list_of(response.headers, b"content-encoding")
        if coding is None:
            return None
        limit_bytes = self._services.settings.body_limit_bytes
        try:
            return decoding_of(coding, limit_bytes=limit_bytes)
        except ValueError as exc:
            return Undecodable(str(exc))

    async def _is_stream(self, response: Response) -> tuple[bool, bytes]:
        """Whether the reply is an event stream, by media type or by its first bytes; also returns the bytes read."""
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
                for piece in (data,) if probe is None else probe.pieces(data):
                    text += piece
                    if not sse.may_become_stream(text):
                        break
        except Failure as exc:
            raise failure(exc) from exc
        except ValueError:
            return False, first
        return sse.looks_like_stream(text), first

    async def _end(self, status: Status, error: Any) -> None:
        """Ends the recording, even if cancelled, and waits until it is on disk."""
        if self._finder.is_done:
            self._recording.end(status, error=error)
        else:
            self._finder.then(lambda: self._recording.end(status, error=error))
            await self._finder.found()
        await committed(self._recording, self._recording.saved)


def model_of(body: dict[str, Any]) -> str:
    model = body.get("model")
    return model if isinstance(model, str) else ""
