import httpx
import pytest

from proxy.upstream.httpx_client import HTTPXClient
from proxy.upstream.request import Timeouts
from tests.fake_upstream import fake_upstream, whole_json

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
