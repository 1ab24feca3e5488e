"""Servers whose script has the bare connection, also before it reads a request (or none), and pools that use them."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

from proxy.upstream.pool import ConnectionPool, Limits, Origin
from proxy.upstream.request import Timeouts
from proxy.upstream.response import Response

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HOST = [(b"host", b"upstream")]
OK = b"HTTP/1.1 200 OK\r\n"
QUICK = Timeouts(connect_s=5, write_s=5, head_s=5, read_s=5, pool_s=5)


class Upstream:
    """A server whose script is run once for each connection."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.port = 0
        self.connections = 0
        self.open = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        try:
            await self.script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()


@contextlib.asynccontextmanager
async def serving(script: Script, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    upstream = Upstream(script)
    server = await asyncio.start_server(upstream.connected, "127.0.0.1", 0, ssl=tls, backlog=512)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        upstream.stop()
        server.close()
        await eventually(lambda: upstream.open == 0)


@contextlib.asynccontextmanager
async def pooling(
    script: Script, *, limits: Limits | None = None, timeouts: Timeouts = QUICK
) -> AsyncIterator[tuple[ConnectionPool, Upstream]]:
    async with serving(script) as upstream:
        pool = ConnectionPool(origin=Origin("127.0.0.1", upstream.port), limits=limits, timeouts=timeouts)
        try:
            yield pool, upstream
        finally:
            await pool.aclose()
            assert pool.connections == pool.idle == pool.sockets == 0


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def receive(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """A request's head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    body, fields = b"", head.lower()
    if b"content-length: " in fields:
        body = await reader.readexactly(int(fields.split(b"content-length: ")[1].split(b"\r\n")[0]))
    elif b"transfer-encoding: chunked" in fields:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        assert await reader.readexactly(2) == b"\r\n"
    return head, body


def answering(answer: bytes, *, split: int | None = None, then_close: bool = False) -> Script:
    """Answer each request with these bytes, in two segments if `split` says so."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await receive(reader)
            writer.write(answer[:split])
            if split is not None:
                await writer.drain()
                await asyncio.sleep(0.0005)
                writer.write(answer[split:])
            if then_close:
                return

    return script


async def get(pool: ConnectionPool, *, method: bytes = b"GET") -> Response:
    return await pool.request(method, b"/", HOST, b"")


async def read_all(response: Response) -> bytes:
    body = b""
    while piece := await response.read():
        body += piece
    return body


async def get_all(pool: ConnectionPool, *, method: bytes = b"GET") -> tuple[int, bytes]:
    response = await get(pool, method=method)
    return response.status, await read_all(response)
