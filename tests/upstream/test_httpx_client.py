import asyncio

import httpx
import pytest

from proxy.upstream.httpx_client import HTTPXClient
from proxy.upstream.request import Timeouts
from tests.fake_upstream import fake_upstream, whole_json
from tests.raw_upstream import serving

TIMEOUTS = Timeouts(connect_s=5, write_s=5, head_s=5, read_s=5, pool_s=5)


@pytest.mark.parametrize("target", ("/v1/models/{id}|[x]", "/v1/models?q={y}|z^&r=%7B", "/v1/models/a%2Fb"))
async def test_target_arrives_as_written(target: str) -> None:
    async with fake_upstream() as upstream:
        upstream.on("*", whole_json({}))
        client = HTTPXClient(httpx.AsyncHTTPTransport(), upstream.url)
        try:
            headers = [(b"host", b"upstream")]
            response = await client.request(b"GET", target.encode(), headers, b"", timeouts=TIMEOUTS)
            assert response.status == 200
            while await response.read():
                pass
        finally:
            await client.aclose()
        assert upstream.calls[0].target == target


@pytest.mark.parametrize(
    "framing",
    (
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"transfer-encoding: Chunked\r\ncontent-length: 0\r\n",
    ),
)
async def test_a_reply_with_two_framings_is_refused(framing: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n5\r\nhello\r\n0\r\n\r\n")
        await reader.read()

    async with serving(script) as upstream:
        client = HTTPXClient(httpx.AsyncHTTPTransport(), f"http://127.0.0.1:{upstream.port}")
        try:
            with pytest.raises(httpx.RemoteProtocolError, match="Both"):
                await client.request(b"GET", b"/", [(b"host", b"upstream")], b"", timeouts=TIMEOUTS)
        finally:
            await client.aclose()
