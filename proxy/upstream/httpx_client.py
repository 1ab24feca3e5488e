"""Adapts an httpx transport to the interface of our own connection pool."""

import asyncio
from collections.abc import AsyncIterator

import httpx

from proxy.upstream.request import FRAMING, Body, Timeouts
from proxy.upstream.response import Sink
from proxy.wire.headers import Headers


# Stock httpx takes about six times the CPU time per chunk, and after a burst of 200 streams only 17 requests/s, because
# its pool scans every idle connection per request (measured).
class HTTPXClient:
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
            method.decode(),
            url,
            headers=headers,
            content=body or None,
            extensions={"timeout": limits, "target": target},
        )
        response = await self._transport.handle_async_request(request)
        try:
            return _HTTPXResponse(response)
        except httpx.RemoteProtocolError:
            await response.aclose()
            raise

    async def aclose(self) -> None:
        await self._transport.aclose()


class _HTTPXResponse:
    def __init__(self, response: httpx.Response) -> None:
        if not 200 <= response.status_code < 600:
            raise httpx.RemoteProtocolError(f"Unexpected status {response.status_code}")
        self.status = response.status_code
        self.headers = [(name.lower(), value) for name, value in response.headers.raw]
        if FRAMING.issubset(name for name, _ in self.headers):
            # httpx ignores the length and reads the chunks. The caller would get the length, and might read another
            # body (RFC 9112 §6.3).
            raise httpx.RemoteProtocolError("Both Content-Length and Transfer-Encoding")
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self._stream = response.stream
        self._pieces: AsyncIterator[bytes] = aiter(response.stream)
        self.sent_at: float | None = None
        self.is_over = False  # unknown until it has been read

    async def read(self) -> bytes:
        async for piece in self._pieces:
            if piece:
                return piece
        await self._stream.aclose()
        return b""

    def read_whole_nowait(self) -> None:
        """None: an httpx response cannot be read without waiting."""

    async def pump(self, sink: Sink) -> bool:
        while data := await self.read():
            if not sink(data):
                return False
        return True

    def close(self) -> None:
        _closing.add(task := asyncio.ensure_future(self._stream.aclose()))
        task.add_done_callback(_closing.discard)


_closing: set[asyncio.Future[None]] = set()
