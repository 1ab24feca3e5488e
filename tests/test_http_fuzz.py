"""Bytes that are no proper HTTP, from raw sockets, against the real server with keys required."""

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from tests.access.test_keys import bearer, make_key
from tests.fake_upstream import FakeUpstream, fake_upstream, mirror, never
from tests.serving import ServerProcess, server_process

PATIENCE = "1.5"
SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n"


class Target:
    """A server process, its upstream, and two users' keys."""

    def __init__(self, server: ServerProcess, upstream: FakeUpstream, ann: str, bob: str) -> None:
        self.server = server
        self.upstream = upstream
        self.ann, self.bob = ann.encode(), bob.encode()
        host, port = server.url.removeprefix("http://").split(":")
        self.address = (host, int(port))

    async def send(self, *pieces: bytes, eof: bool = False, seconds: float = 20) -> bytes:
        """What comes back for these bytes, up to the close. TimeoutError if the server leaves the connection open."""
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            async with asyncio.timeout(seconds):
                try:
                    for piece in pieces:
                        writer.write(piece)
                        await writer.drain()
                    if eof:
                        writer.write_eof()
                except OSError:
                    pass  # it was refused before it was read
                return await read_all(reader)
        finally:
            writer.transport.abort()

    async def drip(self, start: bytes, piece: bytes, *, seconds: float = 20) -> None:
        """Send pieces slowly, without end. TimeoutError if the server goes on taking them."""
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(start)
        ended = asyncio.create_task(read_all(reader))
        try:
            async with asyncio.timeout(seconds):
                while not ended.done():
                    writer.write(piece)
                    await asyncio.wait([ended], timeout=0.2)
        finally:
            writer.transport.abort()
            await ended

    async def is_well(self) -> None:
        """It still serves: both users, each with its own key."""
        async with httpx.AsyncClient(base_url=self.server.url) as http:
            assert (await http.get("/health")).status_code == 200
            for key in (self.ann, self.bob):
                assert (await http.get("/v1/models", headers=bearer(key.decode()))).status_code == 200
            assert (await http.get("/v1/models")).status_code == 401

    def paths(self) -> set[str]:
        return {call.path for call in self.upstream.calls}


async def read_all(reader: asyncio.StreamReader) -> bytes:
    data = b""
    try:
        while piece := await reader.read(65536):
            data += piece
    except OSError:
        pass  # a reset: what came before it is the answer
    return data


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[Target]:
    ann, bob = make_key(tmp_path), make_key(tmp_path, user_id="bob")
    async with fake_upstream() as upstream:
        upstream.on("*", mirror)
        with server_process(
            tmp_path,
            upstream.url,
            STELLARCHAT_AUTH="required",
            STELLARCHAT_CALLER_TIMEOUT_SECONDS=PATIENCE,
            STELLARCHAT_IDLE_TIMEOUT_SECONDS="1",
            STELLARCHAT_BODY_LIMIT_BYTES="100000",
            STELLARCHAT_SPILL_RESERVE_BYTES="65536",
        ) as server:
            yield Target(server, upstream, ann, bob)
        assert not [line for line in server.output if "Traceback" in line], server.output
        assert not [line for line in server.output if ann in line or bob in line]


def post(*headers: bytes, body: bytes = b"", target: bytes = b"/v1/embeddings", key: bytes = b"") -> bytes:
    """A request with these header lines as they are, and a key where one is given."""
    lines = [b"POST " + target + b" HTTP/1.1", b"Host: x", *headers]
    if key:
        lines.insert(2, b"Authorization: Bearer " + key)
    return b"\r\n".join([*lines, b"", b""]) + body


LENGTH = b"Content-Length: %d"
TE = b"Transfer-Encoding: chunked"
IN_CHUNK = CHUNKED % (len(SMUGGLED), SMUGGLED)

SHAPES: dict[str, tuple[tuple[bytes, ...], bytes]] = {
    "length and chunked": ((LENGTH % 4, TE), b"0\r\n\r\n" + SMUGGLED),
    "chunked and length": ((TE, LENGTH % 4), b"0\r\n\r\n" + SMUGGLED),
    "two lengths": ((LENGTH % 0, LENGTH % len(SMUGGLED)), SMUGGLED),
    "two equal lengths": ((LENGTH % 4, LENGTH % 4), b"{}  " + SMUGGLED),
    "list of lengths": ((b"Content-Length: 0, 38",), SMUGGLED),
    "length with a plus": ((b"Content-Length: +4",), b"{}  " + SMUGGLED),
    "negative length": ((b"Content-Length: -1",), SMUGGLED),
    "hexadecimal length": ((b"Content-Length: 0x4",), b"{}  " + SMUGGLED),
    "huge length": ((b"Content-Length: 99999999999999999999999",), SMUGGLED),
    "length with underscore": ((b"Content-Length: 0_4",), b"{}  " + SMUGGLED),
    "empty length": ((b"Content-Length:",), SMUGGLED),
    "space before colon": ((b"Content-Length : 4",), b"{}  " + SMUGGLED),
    "tab before colon": ((b"Transfer-Encoding\t: chunked", LENGTH % 4), b"0\r\n\r\n" + SMUGGLED),
    "folded header": ((b"X-Folded: a\r\n b", LENGTH % 0), SMUGGLED),
    "folded encoding": ((b"Transfer-Encoding:\r\n chunked", LENGTH % 4), b"0\r\n\r\n" + SMUGGLED),
    "bare CR in value": ((b"X-Bare: a\rContent-Length: 38", LENGTH % 0), SMUGGLED),
    "bare LF in head": ((b"X-Bare: a\nContent-Length: 38", LENGTH % 0), SMUGGLED),
    "NUL in value": ((b"X-Nul: a\x00b", LENGTH % 0), SMUGGLED),
    "NUL in name": ((b"X\x00Nul: ab", LENGTH % 0), SMUGGLED),
    "unknown encoding": ((b"Transfer-Encoding: xchunked",), IN_CHUNK),
    "encoding with a comma": ((b"Transfer-Encoding: chunked, identity",), IN_CHUNK),
    "encoding twice": ((TE, b"Transfer-Encoding: identity"), IN_CHUNK),
    "encoding with vertical tab": ((b"Transfer-Encoding: \x0bchunked",), IN_CHUNK),
    "chunk with bad size": ((TE,), b"zz\r\n" + SMUGGLED),
    "chunk with negative size": ((TE,), b"-1\r\n" + SMUGGLED),
    "chunk size overflows": ((TE,), b"fffffffffffffffff\r\n" + SMUGGLED),
    "chunk ends with LF": ((TE,), b"1\nx\n0\n\n" + SMUGGLED),
    "chunk is longer than told": ((TE,), b"1\r\nxx\r\n0\r\n\r\n" + SMUGGLED),
    "chunk extension with LF": ((TE,), b"1;a\nb\r\nx\r\n0\r\n\r\n" + SMUGGLED),
    "trailer with a key": ((TE,), b"0\r\nAuthorization: Bearer x\r\n\r\n" + SMUGGLED),
    "two hosts": ((b"Host: y", LENGTH % 0), SMUGGLED),
    "upgrade": ((b"Connection: Upgrade", b"Upgrade: websocket", LENGTH % 0), SMUGGLED),
    "h2c": ((b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAM", LENGTH % 0), SMUGGLED),
    "expect": ((b"Expect: 100-continue", LENGTH % 2), b"{}" + SMUGGLED),
    "unknown expectation": ((b"Expect: a-miracle", LENGTH % 2), b"{}" + SMUGGLED),
    "headers named by connection": ((b"Connection: authorization, x-api-key, content-length", LENGTH % 0), SMUGGLED),
}


UPGRADE = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"


def as_http_1_0(request: bytes) -> bytes:
    return request.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)


def as_upgrade(request: bytes) -> bytes:
    return request.replace(b"\r\n", b"\r\n" + UPGRADE, 1)


other_form = pytest.mark.parametrize("other", (as_http_1_0, as_upgrade))
Other = Callable[[bytes], bytes]


@pytest.mark.parametrize("other", (bytes, as_http_1_0, as_upgrade))
@pytest.mark.parametrize("eof", (False, True), ids=("open", "half-closed"))
async def test_smuggling_shapes_never_relay_what_has_no_key(target: Target, eof: bool, other: Other) -> None:
    # Without a key nothing goes on, whatever it is.
    answers = await asyncio.gather(
        *(target.send(other(post(*headers, body=body)), eof=eof) for headers, body in SHAPES.values())
    )
    for name, answer in zip(SHAPES, answers, strict=True):
        assert b" 200 " not in answer, (name, answer)
    assert target.upstream.calls == []
    # With one the first request may; what hides behind it has none.
    answers = await asyncio.gather(
        *(
            target.send(other(post(b"X-Shape: %d" % number, *headers, body=body, key=target.ann)), eof=eof)
            for number, (headers, body) in enumerate(SHAPES.values())
        )
    )
    assert target.paths() <= {"/v1/embeddings"}
    shapes = [call.headers["x-shape"] for call in target.upstream.calls]
    assert len(shapes) == len(set(shapes)), "one request became two"
    for call in target.upstream.calls:
        assert target.ann not in call.head + call.body, shapes
        assert b"\r\n " not in call.head
        assert len({"content-length", "transfer-encoding"} & set(call.headers)) <= 1
    for name, answer in zip(SHAPES, answers, strict=True):
        assert answer.count(b"HTTP/1.1 200 ") <= 1, (name, answer)
        assert answer or eof, name
    await target.is_well()


STARTS = (
    b"",
    b"\r\n" * 5,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00" * 100,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\n\n",
    b"GET /v1/models\r\n\r\n",
    b"get /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://other.example/v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/models?\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/\x00models HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/mo dels HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET //%00%0d%0aX:%20y HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /%ff%fe%c0%af HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET " + b"/" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"A" * 10_000,
    b"GET / HTTP/1.1\r\n: nothing\r\n\r\n",
    b"GET / HTTP/1.1\r\nAuthorization: Bearer \r\nAuthorization:\r\nx-api-key:\r\n\r\n",
    b"GET /v1/models HTTP/1.0\r\n\r\n",
)


async def test_whatever_a_connection_starts_with_it_ends_in_time(target: Target) -> None:
    answers = await asyncio.gather(
        *(target.send(start, eof=eof) for start in STARTS for eof in (False, True)),
        *(target.send(*(bytes([byte]) for byte in start[:200])) for start in STARTS),
    )
    for answer in answers:
        if answer:
            assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer[:200]
            assert b"text/html" not in answer
    assert target.upstream.calls == []
    await target.is_well()


async def test_odd_targets_with_a_key_are_answered_by_someone(target: Target) -> None:
    keyed = b"Host: x\r\nAuthorization: Bearer " + target.ann
    starts = [start.replace(b"Host: x", keyed) for start in STARTS]
    for answer in await asyncio.gather(*(target.send(start) for start in starts)):
        assert b"HTTP/1.1 500" not in answer, answer
    for call in target.upstream.calls:
        assert target.ann not in call.head
    await target.is_well()


async def test_refusals_below_http_are_in_the_one_error_shape(target: Target) -> None:
    for bad, status in (
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n", 431),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost:", 408),
    ):
        answer = await target.send(bad)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:100]
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"connection: close" in head
        assert set(httpx.Response(200, content=body).json()["error"]) == {"message", "type", "param", "code"}
    await target.is_well()


async def test_pipelined_requests_are_each_answered_for_their_own_key(target: Target) -> None:
    requests, owners = [], "abxaxbba" * 4
    for number, owner in enumerate(owners):
        key = {"a": target.ann, "b": target.bob, "x": b"sk-stellar-stranger"}[owner]
        path = b"/v1/users/%b/history" % (b"ann" if number % 3 else b"bob")
        requests.append(
            b"GET %b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nX-Request-Id: n%d\r\n\r\n" % (path, key, number)
        )
    requests[-1] = requests[-1].replace(b"Host: x", b"Host: x\r\nConnection: close")
    async with httpx.AsyncClient(base_url=target.server.url) as http:
        for key in (target.ann, target.bob):
            made = await http.post("/v1/sessions", json={"title": "t"}, headers=bearer(key.decode()))
            assert made.status_code == 201
    answer = await target.send(b"".join(requests))
    statuses = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
    expected = []
    for number, owner in enumerate(owners):
        asked = "a" if number % 3 else "b"
        expected.append(401 if owner == "x" else 200 if owner == asked else 404)
    assert statuses == expected


async def test_too_many_pipelined_requests_are_not_queued_without_end(target: Target) -> None:
    one = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n\r\n" % target.ann
    await target.send(one * 2000)
    assert len(target.upstream.calls) <= 300
    await target.is_well()


async def test_who_leaves_with_requests_in_a_row_stops_the_one_in_work(target: Target) -> None:
    target.upstream.on("/v1/completions", never())
    first = post(LENGTH % 2, body=b"{}", target=b"/v1/completions", key=target.ann)
    _, writer = await asyncio.open_connection(*target.address)
    writer.write(first + first + first)
    await target.upstream.until(lambda: target.upstream.calls_to("/v1/completions"))
    writer.transport.abort()
    [call] = target.upstream.calls_to("/v1/completions")
    await target.upstream.until(lambda: call.left is not None)
    assert len(target.upstream.calls_to("/v1/completions")) == 1


async def test_a_caller_that_breaks_off_in_its_body_leaves_nothing_behind(target: Target) -> None:
    whole = post(LENGTH % 30, body=b'{"model":"m","messages":[]    ', target=b"/v1/chat/completions", key=target.ann)
    for cut in range(len(whole) - 40, len(whole) - 1, 3):
        assert b" 200 " not in await target.send(whole[:cut], eof=True)
    chunked = post(TE, body=b"5\r\nabc", key=target.ann)
    assert b" 200 " not in await target.send(chunked, eof=True)
    assert b" 200 " not in await target.send(chunked)
    await target.is_well()


async def test_a_slow_body_is_cut_off_and_a_steady_one_is_not(target: Target) -> None:
    head = post(LENGTH % 60_000, target=b"/v1/chat/completions", key=target.ann)
    assert b" 200 " not in await target.send(head + b"{")

    async def drip() -> bytes:
        reader, writer = await asyncio.open_connection(*target.address)
        writer.write(head + b'{"messages":[],"x":"')
        for _ in range(15):
            writer.write(b"x" * 1000)
            await asyncio.sleep(0.2)  # slower than the limit in all, but steady
        writer.write(b"x" * (60_000 - 15_000 - 22) + b'"}')
        answer = await reader.readuntil(b"\r\n")
        writer.transport.abort()
        return answer

    async with asyncio.timeout(30):
        assert (await drip()).startswith(b"HTTP/1.1 ")
    assert target.upstream.calls_to("/v1/chat/completions")
    await target.is_well()


async def test_a_body_over_the_limit_is_refused_before_it_is_read(target: Target) -> None:
    for headers in ((LENGTH % 10**9,), (TE,)):
        body = b"8000\r\n" + b"x" * 0x8000 + b"\r\n" if TE in headers else b"x" * 0x8000
        for path in (b"/v1/chat/completions", b"/v1/embeddings", b"/v1/sessions"):
            answer = await target.send(
                post(*headers, target=path, key=target.ann), *([body] * 1000), seconds=30
            )  # 32 MB at most: it gives up before
            assert answer.startswith((b"HTTP/1.1 413", b"HTTP/1.1 502")) or not answer, answer[:100]
    answer = await target.send(post(LENGTH % 10**9, key=target.ann))
    assert answer.startswith(b"HTTP/1.1 413")
    await target.is_well()


async def test_after_a_refusal_the_connection_serves_the_next_request(target: Target) -> None:
    refused = post(LENGTH % 50_000, body=b"x" * 50_000)
    good = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer %b\r\n\r\n" % target.ann
    answer = await target.send(refused + good)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"HTTP/1.1 200 " in answer


async def test_a_caller_that_takes_nothing_of_its_reply_is_cut_off(target: Target) -> None:
    request = post(
        b"X-Fake: gigantic; size=30000000", LENGTH % 2, body=b"{}", target=b"/v1/completions", key=target.ann
    )
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(target.address)
    connection.sendall(request)
    await target.upstream.until(lambda: target.upstream.calls_to("/v1/completions"))
    [call] = target.upstream.calls_to("/v1/completions")
    await target.upstream.until(lambda: call.left is not None, seconds=20)
    connection.close()
    await target.is_well()


@pytest.mark.parametrize("other", (bytes, as_http_1_0, as_upgrade))
@pytest.mark.parametrize("seed", range(4))
async def test_mutated_requests_neither_crash_it_nor_reach_upstream_without_a_key(
    target: Target, seed: int, other: Other
) -> None:
    dice = random.Random(seed)
    whole = post(LENGTH % 27, b"X-Api-Key: wrong", body=b'{"model":"m","messages":[]}', target=b"/v1/chat/completions")
    data = [mutated(other(whole), dice) for _ in range(100)]
    eofs = [dice.random() < 0.5 for _ in data]
    answers = await asyncio.gather(*(target.send(*each, eof=eof) for each, eof in zip(data, eofs, strict=True)))
    for sent, answer in zip(data, answers, strict=True):
        assert b"HTTP/1.1 2" not in answer, (sent, answer)
        assert b"HTTP/1.1 5" not in answer, (sent, answer)
    assert target.upstream.calls == []
    await target.is_well()


def mutated(whole: bytes, dice: random.Random) -> list[bytes]:
    """The request with a few bytes changed, doubled or lost, in a few pieces."""
    data = bytearray(whole)
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(data))
        kind = dice.randrange(4)
        if kind == 0:
            data[place] = dice.randrange(256)
        elif kind == 1:
            data[place:place] = dice.choice((b"\r\n", b"\n", b"\r", b"\0", b":", b" ", b"\t", b"\xff", TE + b"\r\n"))
        elif kind == 2:
            del data[place : place + dice.randint(1, 20)]
        else:
            data[place:place] = data[max(0, place - 30) : place]
    cut = dice.randrange(len(data) + 1)
    return [bytes(data[:cut]), bytes(data[cut:])]


# HTTP/1.0 and upgrades are read by another parser: the same limits hold there.


@other_form
async def test_the_other_parser_waits_no_longer_for_a_head(target: Target, other: Other) -> None:
    start = other(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n")
    answer = await target.send(start)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]) == {"message", "type", "param", "code"}

    await target.drip(start, b"X")
    await target.is_well()


@other_form
async def test_the_other_parser_refuses_below_http_in_the_one_error_shape(target: Target, other: Other) -> None:
    start = other(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n")
    for rest, status in (
        (b"nonsense\r\n\r\n", 400),
        (b"X: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"X: " + b"x" * 70_000, 431),
        (b"X: y\r\n" * 20_000 + b"\r\n", 431),
    ):
        answer = await target.send(start, rest)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:100]
        body = answer.partition(b"\r\n\r\n")[2]
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    await target.is_well()


@other_form
async def test_the_other_parser_cuts_a_slow_body_off(target: Target, other: Other) -> None:
    head = other(post(LENGTH % 60_000, target=b"/v1/chat/completions", key=target.ann))
    assert b" 200 " not in await target.send(head + b"{")
    await target.is_well()


@other_form
async def test_the_other_parser_cuts_off_who_takes_nothing(target: Target, other: Other) -> None:
    request = post(
        b"X-Fake: gigantic; size=30000000", LENGTH % 2, body=b"{}", target=b"/v1/completions", key=target.ann
    )
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(target.address)
    connection.sendall(other(request))
    await target.upstream.until(lambda: target.upstream.calls_to("/v1/completions"))
    [call] = target.upstream.calls_to("/v1/completions")
    await target.upstream.until(lambda: call.left is not None, seconds=20)
    connection.close()
    await target.is_well()


@other_form
async def test_the_other_parser_reads_no_body_without_end_that_nobody_wants(target: Target, other: Other) -> None:
    """The request is refused for want of a key; its body goes on."""
    answer = await target.send(other(post(TE)), *([b"8000\r\n" + b"x" * 0x8000 + b"\r\n"] * 1000))
    assert not answer or b" 401 " in answer

    await target.drip(other(post(TE)), b"1\r\nx\r\n")
    await target.is_well()


async def test_a_broken_body_under_a_reply_ends_that_reply(target: Target) -> None:
    """It is not answered in the middle of the other answer."""
    events = b"X-Fake: stream; events=1000; rate=20"
    request = as_upgrade(post(events, TE, body=b"2\r\n{}\r\n", target=b"/v1/completions", key=target.ann))
    for pieces in ((request, b"zz\r\n"), (as_upgrade(post(TE, body=b"2\r\n{}\r\n")), b"zz\r\n")):
        answer = await target.send(*pieces)
        assert answer.count(b"HTTP/1.1 ") <= 1
    await target.is_well()


@pytest.mark.parametrize("starts", (bytes, as_upgrade))
async def test_a_body_that_breaks_after_its_answer_gets_no_other_answer(
    target: Target, starts: Callable[[bytes], bytes]
) -> None:
    reader, writer = await asyncio.open_connection(*target.address)
    writer.write(starts(post(TE, body=b"2\r\n{}\r\n")))
    async with asyncio.timeout(20):
        answer = await reader.readuntil(b"}}")
        writer.write(b"zz\r\n")
        answer += await read_all(reader)
    writer.transport.abort()
    assert answer.count(b"HTTP/1.1 ") == answer.count(b" 401 ") == 1
    await target.is_well()


async def test_an_upgrade_nobody_takes_is_not_worth_a_line_in_the_log(target: Target) -> None:
    keyed = b"Host: x\r\nAuthorization: Bearer " + target.ann
    answer = await target.send(as_upgrade(b"GET /v1/models HTTP/1.1\r\n" + keyed + b"\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    await target.is_well()
    assert not [line for line in target.server.output if "WebSocket" in line or "Unsupported" in line]
