"""The only module that speaks HTTP to vLLM: through our own transport, or any of httpx's."""

import asyncio
import ssl
from collections.abc import AsyncIterable, AsyncIterator
from typing import Protocol
from urllib.parse import urlsplit

import httpx

from proxy.errors import UpstreamError
from proxy.settings import Settings
from proxy.upstream.http11 import Sink, Timeouts
from proxy.upstream.pool import ConnectionPool, Limits, Origin, system_tls
from proxy.wire.headers import Headers

Body = bytes | AsyncIterable[bytes]

# What reading a response may raise; `failure` puts it in words.
Failure = httpx.HTTPError

_HEALTH_TIMEOUT_SECONDS = 5.0


class Response(Protocol):
    """A response whose head has come."""

    status: int
    headers: Headers

    @property
    def is_over(self) -> bool:
        """Whether it is known that nothing of the body follows."""

    async def read(self) -> bytes:
        """The next piece of the body, b"" at its end. Raises Failure."""

    def read_whole_nowait(self) -> bytes | None:
        """The body, for who has read none of it; None where it has not come to its end."""

    async def pump(self, sink: Sink) -> bool:
        """Give the body to the sink, each piece as it comes, until the end (True) or until the sink says to stop.

        Raises Failure, and what the sink raises.
        """

    def close(self) -> None:
        """Leave; upstream notices where the body has not ended."""


class Upstream:
    """vLLM at one address."""

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        parts = urlsplit(settings.upstream_url)
        assert parts.hostname is not None
        self._prefix = parts.path.rstrip("/").removesuffix("/v1").encode()
        self.host = parts.netloc.rpartition("@")[2].encode()
        self._timeouts = Timeouts(
            connect_s=settings.connect_timeout_seconds,
            write_s=settings.write_timeout_seconds,
            head_s=settings.response_timeout_seconds,
            read_s=settings.read_timeout_seconds,
            pool_s=settings.connect_timeout_seconds,
        )
        if transport is None and settings.transport == "httpx":
            transport = httpx.AsyncHTTPTransport(
                limits=httpx.Limits(max_connections=settings.upstream_connections, keepalive_expiry=4.0)
            )
        self._client: ConnectionPool | _HTTPXClient
        if transport is None:
            is_tls = parts.scheme == "https"
            tls: ssl.SSLContext | None = system_tls() if is_tls else None
            origin = Origin(parts.hostname, parts.port or (443 if is_tls else 80), tls)
            limits = Limits(max_connections=settings.upstream_connections, max_waiting=settings.upstream_connections)
            self._client = ConnectionPool(origin=origin, limits=limits, timeouts=self._timeouts)
        else:
            self._client = _HTTPXClient(transport, f"{parts.scheme}://{parts.netloc}")

    async def open(self, method: bytes, target: bytes, headers: Headers, body: Body) -> Response:
        """The response, as soon as its head is there. `target` is path and query as the caller sent them.

        Raises UpstreamError: nothing of the answer has come.
        """
        try:
            return await self._client.request(method, self._prefix + target, headers, body, timeouts=self._timeouts)
        except Failure as exc:
            raise failure(exc) from exc

    async def is_healthy(self) -> bool:
        """Whether vLLM says it can serve."""
        timeouts = Timeouts(*[_HEALTH_TIMEOUT_SECONDS] * 5)
        try:
            response = await self._client.request(
                b"GET", self._prefix + b"/health", [(b"host", self.host)], b"", timeouts=timeouts
            )
        except Failure:
            return False
        response.close()
        return response.status == httpx.codes.OK

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()


def failure(exc: Failure) -> UpstreamError:
    """What went wrong with upstream, in words fit for the caller."""
    if isinstance(exc, httpx.ConnectTimeout | httpx.PoolTimeout):
        return UpstreamError("Upstream could not be reached in time.", status=504, code="upstream_timeout")
    if isinstance(exc, httpx.TimeoutException):
        return UpstreamError("Upstream did not answer in time.", status=504, code="upstream_timeout")
    if isinstance(exc, httpx.ConnectError):
        return UpstreamError("Upstream cannot be reached.", status=502, code="upstream_unreachable")
    if isinstance(exc, httpx.ProtocolError):
        return UpstreamError("Upstream broke the protocol.", status=502, code="upstream_protocol_error")
    return UpstreamError("The connection to upstream broke.", status=502, code="upstream_disconnected")


class _HTTPXClient:
    """Any httpx transport behind the same calls as our own pool."""

    def __init__(self, transport: httpx.AsyncBaseTransport, base_url: str) -> None:
        self._transport = transport
        self._base_url = base_url

    async def request(
        self, method: bytes, target: bytes, headers: Headers, body: Body, *, timeouts: Timeouts
    ) -> "_HTTPXResponse":
        url = httpx.URL(self._base_url).copy_with(raw_path=target)
        limits = {
            "connect": timeouts.connect_s,
            "read": timeouts.head_s,
            "write": timeouts.write_s,
            "pool": timeouts.pool_s,
        }
        request = httpx.Request(
            method.decode(), url, headers=headers, content=body or None, extensions={"timeout": limits}
        )
        return _HTTPXResponse(await self._transport.handle_async_request(request))

    async def aclose(self) -> None:
        await self._transport.aclose()


class _HTTPXResponse:
    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers = [(name.lower(), value) for name, value in response.headers.raw]
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self._stream = response.stream
        self._pieces: AsyncIterator[bytes] = aiter(response.stream)
        self.is_over = False  # that is only known when it has been read

    async def read(self) -> bytes:
        async for piece in self._pieces:
            if piece:
                return piece
        await self._stream.aclose()
        return b""

    def read_whole_nowait(self) -> None:
        """It is not known before it has been read."""

    async def pump(self, sink: Sink) -> bool:
        while data := await self.read():
            if not sink(data):
                return False
        return True

    def close(self) -> None:
        _closing.add(task := asyncio.ensure_future(self._stream.aclose()))
        task.add_done_callback(_closing.discard)


_closing: set[asyncio.Future[None]] = set()
