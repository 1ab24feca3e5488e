"""What the application does with a bug, on the way of chats and on that of all else."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from proxy.app import create_app
from proxy.downstream.httptools_protocol import LimitedProtocol
from proxy.settings import Settings
from tests.serving import running, settings_for

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PATHS = ("/v1/chat/completions", "/v1/embeddings")
SSE = {"content-type": "text/event-stream"}


class Buggy(httpx.AsyncBaseTransport):
    """Answers with a body that ends in a bug, or with the bug."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self.pieces:
            raise KeyError("a secret")
        return httpx.Response(200, headers=SSE, stream=Body(self.pieces))


class Body(httpx.AsyncByteStream):
    def __init__(self, pieces: tuple[bytes, ...]) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece
        raise KeyError("a secret")


@pytest.fixture(params=(True, False), ids=("recorded", "not recorded"))
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return settings_for(tmp_path, recording=request.param)


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("path", PATHS)
async def test_bug_is_a_500_without_detail_and_a_traceback_in_the_log(
    settings: Settings, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    app = create_app(settings, transport=Buggy())
    async with running(app, http=LimitedProtocol) as url, httpx.AsyncClient(base_url=url) as http:
        response = await http.post(path, json=BODY)
    assert response.status_code == 500
    assert response.json()["error"] == {
        "message": "Internal server error",
        "type": "server_error",
        "param": None,
        "code": None,
    }
    [record] = tracebacks(caplog)
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)


@pytest.mark.parametrize("path", PATHS)
async def test_bug_within_a_reply_ends_the_connection_and_is_logged(
    settings: Settings, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    app = create_app(settings, transport=Buggy(b": a\n\n"))
    async with running(app, http=LimitedProtocol) as url, httpx.AsyncClient(base_url=url) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post(path, json=BODY)
    [record] = tracebacks(caplog)
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)


async def test_other_methods_of_the_path_of_chats_find_their_routes(tmp_path: Path) -> None:
    app = create_app(settings_for(tmp_path))
    async with running(app, http=LimitedProtocol) as url, httpx.AsyncClient(base_url=url) as http:
        assert (await http.get(PATHS[0])).json()["data"] == []
        relayed = await http.put(PATHS[0], json=BODY)
        assert (relayed.status_code, relayed.json()["error"]["code"]) == (502, "upstream_unreachable")
