"""What may stand in a request's head and trailers, and what callers of HTTP/1.0 and upgrades get, byte by byte."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
from starlette.types import Receive, Scope, Send

from proxy.downstream.httptools_protocol import LimitedProtocol
from proxy.downstream.refusals import head_error, is_host
from proxy.errors import APIError
from proxy.settings import Settings
from tests.raw_http import chunked
from tests.serving import running

HEAD_LIMIT = 4096
CHUNKED = b"Transfer-Encoding: chunked\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Says in JSON what of the request has reached the application, without saying how long that is."""
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
        return
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    seen = {
        "path": scope["path"],
        "headers": [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]],
        "body": body.decode(),
    }
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for piece in (orjson.dumps(seen), b"\n"):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    scope["state"]["settings"] = Settings(head_limit_bytes=HEAD_LIMIT)
    for _ in range(2):
        message = await receive()
        await send({"type": message["type"] + ".complete"})


@pytest.fixture
async def address() -> AsyncIterator[tuple[str, int]]:
    async with running(echo, http=LimitedProtocol) as url:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        yield parts.hostname, parts.port


async def ask(address: tuple[str, int], *pieces: bytes, responses: int = 1) -> bytes:
    """All that comes back until a response has ended or the server closes. What is refused before all of it is sent may
    come back as a reset, with nothing to read."""
    reader, writer = await asyncio.open_connection(*address)
    answer = b""
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
    except ConnectionError:
        pass
    try:
        async with asyncio.timeout(10):
            while answer.count(b"\r\n0\r\n\r\n") < responses and (piece := await reader.read(65536)):
                answer += piece
    except ConnectionError:
        assert len(pieces) > 1
    finally:
        writer.transport.abort()
    return answer


def seen(answer: bytes) -> dict[str, Any]:
    """What the application has seen of the one request."""
    start = answer.index(b'{"path"')
    value: dict[str, Any] = orjson.loads(
        answer[start : answer.index(b"]}") + 2 if b"]}" in answer else None].split(b"\n")[0].split(b"\r\n")[0]
    )
    return value


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def cuts(request: bytes) -> Iterator[tuple[bytes, ...]]:
    """The request in two pieces, cut at every few bytes, and in many."""
    for at in range(1, len(request), 7):
        yield request[:at], request[at:]
    yield tuple(request[start:end] for start, end in pairwise([*range(0, len(request), 5), len(request)]))


@pytest.mark.parametrize(
    ("trailers"),
    (
        b"Authorization: Bearer x\r\n",
        b"X-User-Id: bob\r\nX-Session-Id: s\r\n",
        b"x-api-key: x\r\nHost: other\r\nOrigin: http://evil.example\r\n",
        b"Cookie: a=b\r\n" * 3,
    ),
)
async def test_trailers_are_dropped(address: tuple[str, int], trailers: bytes) -> None:
    request = b"POST /p HTTP/1.1\r\nHost: a\r\n" + CHUNKED + b"\r\n" + chunked(b"one", b"two", trailers=trailers)
    for pieces in ((request,), *cuts(request)):
        found = seen(await ask(address, *pieces))
        assert found["headers"] == [["host", "a"], ["transfer-encoding", "chunked"]]
        assert found["body"] == "onetwo"


async def test_trailers_of_one_request_are_not_the_next_one_s(address: tuple[str, int]) -> None:
    first = b"POST /1 HTTP/1.1\r\nHost: a\r\n" + CHUNKED + b"\r\n" + chunked(b"x", trailers=b"X-User-Id: bob\r\n")
    answer = await ask(address, first + b"GET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", responses=2)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert b"x-user-id" not in answer


@pytest.mark.parametrize("body", (b"", b"2\r\n{}\r\n"), ids=("empty", "after a body"))
@pytest.mark.parametrize(
    "flood",
    (b"X: y\r\n" * 4000, b"X: " + b"y" * 400_000, b"X" * 400_000, b"X: y\r\n" * 800 + b"\r\n"),
    ids=("many", "a long value", "a long name", "many, and an end"),
)
async def test_trailers_count_against_the_head_s_limit(address: tuple[str, int], body: bytes, flood: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\n" + CHUNKED + b"\r\n" + body + b"0\r\n"
    pieces = [flood[start : start + 1000] for start in range(0, len(flood), 1000)]
    answer = await ask(address, head, *pieces)
    assert answer == b"" or status(answer) == 431
    assert b" 200 " not in answer


async def test_a_chunk_s_extension_is_bounded_too(address: tuple[str, int]) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\n" + CHUNKED + b"\r\n2;" + b"x" * 1000
    answer = await ask(address, head, *[b"x" * 1000] * 400)
    assert answer == b"" or status(answer) == 431


async def test_a_large_body_in_small_chunks_is_not_taken_for_trailers(address: tuple[str, int]) -> None:
    body = [b"z"] * 5000
    request = b"POST / HTTP/1.1\r\nHost: a\r\n" + CHUNKED + b"\r\n" + chunked(*body)
    assert (
        seen(await ask(address, *[request[at : at + 900] for at in range(0, len(request), 900)]))["body"] == "z" * 5000
    )


GOOD_HOSTS = (b"a", b"a.example:8080", b"localhost", b"127.0.0.1:1", b"[::1]", b"[::1]:8080", b"a_b-c.d", b"a:")
BAD_HOSTS = (
    b"",
    b" ",
    b"a b",
    b"a/b",
    b"user@a",
    b"a,b",
    b"a:80:80",
    b"a:http",
    b"a:70000",
    b"::1",
    b"[::1",
    b"[::zz]",
    b"[]",
    b"[fe80::1%25eth0]",
    b"a?b",
    b"a#b",
    b"a\\b",
    b"\xe4.example",
)


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_a_valid_host(host: bytes) -> None:
    assert is_host(host)


@pytest.mark.parametrize("host", BAD_HOSTS)
async def test_an_invalid_host_is_400(address: tuple[str, int], host: bytes) -> None:
    assert not is_host(host)
    assert status(await ask(address, b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")) == 400


@pytest.mark.parametrize(
    ("request_head", "expected"),
    (
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nhOST: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost:\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET /\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 400),
        (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 405),
        (b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://a@b/ HTTP/1.1\r\nHost: b\r\n\r\n", 400),
        (b"GET http://A/p HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        (b"GET ftp://a/p HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nHost: a\r\n" + CHUNKED + b"\r\n" + chunked(b"x"), 400),
    ),
)
async def test_request_lines_and_hosts(address: tuple[str, int], request_head: bytes, expected: int) -> None:
    for pieces in ((request_head,), *cuts(request_head)):
        answer = await ask(address, *pieces)
        if not answer and len(pieces) > 1 and expected != 200:
            continue
        assert status(answer) == expected, (pieces, answer)
        if expected != 200:
            assert orjson.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


def test_the_error_of_a_head_is_none_where_all_is_well() -> None:
    assert head_error(b"GET", b"/", "1.1", [(b"host", b"a")]) is None
    assert isinstance(head_error(b"GET", b"nothing", "1.1", [(b"host", b"a")]), APIError)


async def test_http_1_0_gets_its_body_until_the_end_of_the_connection(address: tuple[str, int]) -> None:
    request = b"POST /old HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello"
    for pieces in ((request,), *cuts(request)):
        answer = await ask(address, *pieces)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        assert b"connection: close" in head.lower()
        assert orjson.loads(body)["body"] == "hello"


@pytest.mark.parametrize("upgrade", (b"h2c", b"websocket", b"h2c, websocket", b"TLS/1.3"))
async def test_a_wish_for_another_protocol_does_not_lose_the_body(address: tuple[str, int], upgrade: bytes) -> None:
    head = b"POST /up HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, X-Hop\r\nX-Hop: 1\r\nUpgrade: " + upgrade + b"\r\n"
    for framed in (b"Content-Length: 5\r\n\r\nhello", CHUNKED + b"\r\n" + chunked(b"he", b"llo")):
        for pieces in ((head + framed,), *cuts(head + framed)):
            found = seen(await ask(address, *pieces))
            assert (found["path"], found["body"]) == ("/up", "hello")
            assert ["upgrade", upgrade.decode()] in found["headers"]
            assert any(name == "connection" and "X-Hop" in value for name, value in found["headers"])


async def test_what_follows_such_a_request_is_the_next_one(address: tuple[str, int]) -> None:
    up = b"POST /1 HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi"
    answer = await ask(address, up + b"GET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", responses=2)
    assert answer.index(b'"path":"/1"') < answer.index(b'"path":"/2"')
