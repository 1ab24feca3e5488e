"""What the bytes on one connection mean: framing, ends, refusals, uploads, backpressure, time."""

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.upstream.request import Timeouts, request_head
from proxy.upstream.response import Response, Sink
from proxy.upstream.response_parser import HEADER_LIMIT, UNREAD_LIMIT_BYTES
from tests.raw_upstream import (
    HOST,
    OK,
    QUICK,
    Script,
    answering,
    eventually,
    get,
    get_all,
    pooling,
    read_all,
    receive,
)


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    policy = request.param()
    assert isinstance(policy, asyncio.AbstractEventLoopPolicy)
    return policy


pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")  # its successor is too new

# Framing

WHOLE = {
    "length": (OK + b"Content-Length: 3\r\n\r\nabc", b"abc"),
    "empty": (OK + b"Content-Length: 0\r\n\r\n", b""),
    "length with spaces": (OK + b"Content-Length: \t3 \r\n\r\nabc", b"abc"),
    "chunked": (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
    "chunked, case and spaces": (OK + b"TRANSFER-ENCODING: ChunKed \r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc"),
    "chunk extension": (OK + b"Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n", b"abc"),
    "trailers": (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n", b"abc"),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\nabc", b"abc"),
    "early hints": (b"HTTP/1.1 103 Early\r\nLink: <a>\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\nabc", b"abc"),
    "two interim": (b"HTTP/1.1 102 P\r\n\r\nHTTP/1.1 100 C\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\na", b"a"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "no content with a length": (b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n", b""),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", b""),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\na", b"a"),
    "old server keeping alive": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na", b"a"),
}


@pytest.mark.parametrize(("answer", "body"), WHOLE.values(), ids=WHOLE)
async def test_framed_response_is_read_whole_and_its_connection_used_again(answer: bytes, body: bytes) -> None:
    async with pooling(answering(answer)) as (pool, upstream):
        for _ in range(3):
            assert (await get_all(pool))[1] == body
            assert pool.idle == pool.connections == 1
        assert upstream.connections == 1


@pytest.mark.parametrize("name", ("length", "chunked", "trailers", "early hints", "no content"))
async def test_response_may_be_split_at_every_byte(name: str) -> None:
    answer, body = WHOLE[name]
    for split in range(1, len(answer)):
        async with pooling(answering(answer, split=split)) as (pool, upstream):
            for _ in range(2):
                assert (await get_all(pool))[1] == body, split
            assert upstream.connections == 1


async def test_response_may_come_byte_by_byte() -> None:
    answer, body = WHOLE["chunked"]

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await receive(reader)
        for index in range(len(answer)):
            writer.write(answer[index : index + 1])
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()

    async with pooling(script) as (pool, _):
        assert await get_all(pool) == (200, body)


async def test_body_without_framing_ends_with_its_connection() -> None:
    for answer in (OK + b"\r\nabc", b"HTTP/1.0 200 OK\r\n\r\nabc", OK + b"X: a\r\nConnection: close\r\n\r\nabc"):
        async with pooling(answering(answer, then_close=True)) as (pool, _):
            assert await get_all(pool) == (200, b"abc")
            assert pool.connections == 0


@pytest.mark.parametrize(
    "extra", (b"", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n")
)
async def test_response_to_head_has_no_body(extra: bytes) -> None:
    async with pooling(answering(OK + extra + b"\r\n")) as (pool, _):
        for _ in range(3):
            assert await get_all(pool, method=b"HEAD") == (200, b"")


async def test_head_and_get_share_a_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await receive(reader)
            writer.write(OK + b"Content-Length: 3\r\n\r\n" + (b"" if head.startswith(b"HEAD") else b"abc"))

    async with pooling(script) as (pool, upstream):
        for method, body in itertools.islice(itertools.cycle([(b"HEAD", b""), (b"GET", b"abc")]), 6):
            assert await get_all(pool, method=method) == (200, body)
        assert upstream.connections == 1


async def test_headers_keep_order_and_repetition_and_lose_case_and_padding() -> None:
    answer = OK + b"Set-Cookie: a=1\r\nX-Odd:  \xff b \t\r\nSET-cookie: b=2\r\nEmpty:\r\nContent-Length: 0\r\n\r\n"
    async with pooling(answering(answer)) as (pool, _):
        response = await get(pool)
        assert response.headers == [
            (b"set-cookie", b"a=1"),
            (b"x-odd", b"\xff b"),
            (b"set-cookie", b"b=2"),
            (b"empty", b""),
            (b"content-length", b"0"),
        ]
        assert response.reason == b"OK"


async def test_trailers_and_interim_headers_are_not_the_response_s() -> None:
    answer = (
        b"HTTP/1.1 103 Early\r\nLink: a\r\n\r\n"
        + OK
        + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Trailer: t\r\n\r\n"
    )
    async with pooling(answering(answer)) as (pool, _):
        response = await get(pool)
        assert await read_all(response) == b"a"
        assert response.headers == [(b"transfer-encoding", b"chunked")]
        assert response.reason == b"OK"


REFUSED = {
    "length and coding": b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "coding and length": b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "differing lengths": b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "length list": b"Content-Length: 3, 4\r\n\r\nabcd",
    "negative length": b"Content-Length: -3\r\n\r\nabc",
    "signed length": b"Content-Length: +3\r\n\r\nabc",
    "hexadecimal length": b"Content-Length: 0x3\r\n\r\nabc",
    "empty length": b"Content-Length:\r\n\r\nabc",
    "split length": b"Content-Length: 1 3\r\n\r\nabc",
    "huge length": b"Content-Length: 99999999999999999999999\r\n\r\nabc",
    "gzip coding": b"Transfer-Encoding: gzip\r\n\r\nabc",
    "gzip, chunked": b"Transfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "chunked, gzip": b"Transfer-Encoding: chunked, gzip\r\n\r\nabc",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity": b"Transfer-Encoding: identity\r\n\r\nabc",
    "not quite chunked": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "bare CR in a value": b"X: a\rb\r\nContent-Length: 0\r\n\r\n",
    "bare LF": b"X: a\nContent-Length: 0\r\n\r\n",
    "folded line": b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "folded first line": b" X: a\r\nContent-Length: 0\r\n\r\n",
    "NUL in a value": b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
    "control in a value": b"X: a\x01b\r\nContent-Length: 0\r\n\r\n",
    "parenthesis in a name": b"X(y: a\r\nContent-Length: 0\r\n\r\n",
    "space in a name": b"X y: a\r\nContent-Length: 0\r\n\r\n",
    "space before the colon": b"Content-Length : 3\r\n\r\nabc",
    "no name": b": a\r\nContent-Length: 0\r\n\r\n",
    "no colon": b"Xa\r\nContent-Length: 0\r\n\r\n",
    "NUL in a name": b"X\0y: a\r\nContent-Length: 0\r\n\r\n",
    "too many lines": b"a: b\r\n" * (HEADER_LIMIT + 1) + b"\r\n",
    "one endless value": b"a: " + b"b" * UNREAD_LIMIT_BYTES + b"\r\n\r\n",
    "values too long together": (b"a: " + b"b" * 1000 + b"\r\n") * 80 + b"Content-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("headers", REFUSED.values(), ids=REFUSED)
async def test_response_with_doubtful_headers_is_refused(headers: bytes) -> None:
    async with pooling(answering(OK + headers)) as (pool, upstream):
        with pytest.raises(httpx.RemoteProtocolError):
            await get(pool)
        assert pool.connections == 0
        assert upstream.connections == 1  # an answer, if a bad one: not asked again


STRANGE = {
    "other protocol": b"SSH-2.0-x\r\n",
    "a request": b"GET / HTTP/1.1\r\n\r\n",
    "two-digit status": b"HTTP/1.1 20 OK\r\n\r\n",
    "four-digit status": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status zero": b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP 0.9": b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP 2": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "chunked before it was invented": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "control in the reason": b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n",
    "bare CR in the reason": b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
    "switch nobody asked for": b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "bare 101": b"HTTP/1.1 101 S\r\n\r\n",
    "endless reason": b"HTTP/1.1 200 " + b"x" * (UNREAD_LIMIT_BYTES + 1),
    "endless interim": b"HTTP/1.1 100 C\r\n\r\n" * (UNREAD_LIMIT_BYTES // 16),
}


@pytest.mark.parametrize("answer", STRANGE.values(), ids=STRANGE)
async def test_strange_answer_is_refused(answer: bytes) -> None:
    async with pooling(answering(answer)) as (pool, _):
        with pytest.raises(httpx.RemoteProtocolError):
            await get(pool)
        assert pool.connections == 0


BROKEN_BODIES = {
    "chunk longer than said": (b"3\r\nabcd\r\n0\r\n\r\n", b"abc"),
    "line feeds only": (b"3\nabc\n0\n\n", b""),
    "chunk size overflow": (b"1\r\na\r\nfffffffffffffffff\r\nabc", b"a"),
    "negative chunk": (b"-1\r\nabc", b""),
    "space after the size": (b"3 \r\nabc\r\n", b""),
    "hexadecimal prefix": (b"0x3\r\nabc\r\n", b""),
    "bare CR in an extension": (b"3;a\rb\r\nabc\r\n", b""),
    "length among trailers": (b"1\r\na\r\n0\r\nContent-Length: 1\r\n\r\n", b"a"),
    "endless extension": (b"3;" + b"a" * 2 * UNREAD_LIMIT_BYTES, b""),
    "endless trailer": (b"0\r\nX: " + b"a" * 2 * UNREAD_LIMIT_BYTES, b""),
}


@pytest.mark.parametrize(("body", "before"), BROKEN_BODIES.values(), ids=BROKEN_BODIES)
async def test_broken_chunks_raise_after_what_came_before(body: bytes, before: bytes) -> None:
    async with pooling(answering(OK + b"Transfer-Encoding: chunked\r\n\r\n" + body)) as (pool, _):
        response = await get(pool)
        if before:
            assert await response.read() == before
        with pytest.raises(httpx.RemoteProtocolError):
            await response.read()
        assert not response.has_pieces
        assert pool.connections == 0


CUT = {
    "length": (OK + b"Content-Length: 10\r\n\r\nabc", b"abc"),
    "within a chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\na\r\nabc", b"abc"),
    "between chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"abc"),
    "before the last line end": (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", b"abc"),
}


@pytest.mark.parametrize(("answer", "body"), CUT.values(), ids=CUT)
async def test_body_cut_short_raises_after_what_came_before(answer: bytes, body: bytes) -> None:
    async with pooling(answering(answer, then_close=True)) as (pool, _):
        response = await get(pool)
        assert await response.read() == body
        for _ in range(2):
            with pytest.raises(httpx.RemoteProtocolError, match="within the body"):
                await response.read()
        assert pool.connections == 0


async def test_head_cut_short_raises() -> None:
    for answer in (b"", b"HTTP/1.1 2", OK, OK + b"Content-Le"):
        async with pooling(answering(answer, then_close=True)) as (pool, _):
            with pytest.raises(httpx.RemoteProtocolError, match="without a response"):
                await get(pool)
            assert pool.connections == 0


EXTRA = [b"x", b"\0", OK, OK + b"Content-Length: 3\r\n\r\nxyz", b"HTTP/1.1 500 No\r\nX: y\r\n\r\n"]


@pytest.mark.parametrize("method", (b"GET", b"HEAD"))
@pytest.mark.parametrize("extra", EXTRA)
async def test_bytes_after_a_response_end_its_connection_and_reach_nobody(extra: bytes, method: bytes) -> None:
    body = b"" if method == b"HEAD" else b"abc"
    async with pooling(answering(OK + b"Content-Length: 3\r\n\r\n" + body + extra)) as (pool, upstream):
        for count in (1, 2):
            response = await get(pool, method=method)
            assert (response.status, response.reason, await read_all(response)) == (200, b"OK", body)
            assert response.headers == [(b"content-length", b"3")]
            assert pool.connections == 0
            assert upstream.connections == count


async def test_connection_close_is_obeyed() -> None:
    async with pooling(answering(OK + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc")) as (pool, upstream):
        for count in (1, 2):
            assert await get_all(pool) == (200, b"abc")
            assert (pool.connections, upstream.connections) == (0, count)


def chunked(pieces: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(st.binary(max_size=300), max_size=8), in_chunks=st.booleans(), cuts=st.lists(st.integers(1, 400))
)
@pytest.mark.parametrize("run", (asyncio.run, uvloop.run), ids=["asyncio", "uvloop"])
def test_any_body_in_any_segments_goes_there_and_back(
    run: Callable[[Awaitable[None]], None], pieces: list[bytes], in_chunks: bool, cuts: list[int]
) -> None:
    whole = b"".join(pieces)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, body = await receive(reader)
            framed = b"Transfer-Encoding: chunked\r\n\r\n" + chunked(pieces)
            answer = OK + (framed if in_chunks else b"Content-Length: %d\r\n\r\n" % len(body) + body)
            for cut in cuts:
                writer.write(answer[:cut])
                answer = answer[cut:]
                await asyncio.sleep(0)
            writer.write(answer)

    async def upload() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def main() -> None:
        async with pooling(script) as (pool, upstream):
            for body in (whole, upload()):
                response = await pool.request(b"POST", b"/", HOST, body)
                assert await read_all(response) == whole
            assert upstream.connections == 1

    run(main())


# Reading


async def test_buffered_body_is_read_without_suspending() -> None:
    async with pooling(answering(OK + b"Content-Length: 3\r\n\r\nabc")) as (pool, _):
        response = await get(pool)
        await eventually(lambda: pool.idle == 1)
        reading = response.read()
        with pytest.raises(StopIteration) as end:
            reading.send(None)
        assert end.value.value == b"abc"
        assert not response.has_pieces
        assert await response.read() == b""


async def test_slow_reader_stops_upstream_and_loses_nothing() -> None:
    size, sent = 8 * 1024 * 1024, 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            await receive(reader)
            writer.write(OK + b"Content-Length: %d\r\n\r\n" % size)
            sent = 0
            while sent < size:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536

    async with pooling(script) as (pool, upstream):
        for _ in range(2):
            response = await get(pool)
            before = -1
            while before != sent or sent == 0:
                before = sent
                await asyncio.sleep(0.02)
            assert sent < size
            assert sum(map(len, response._pieces)) <= UNREAD_LIMIT_BYTES + 256 * 1024  # a segment more at most
            assert len(await read_all(response)) == size
        assert upstream.connections == 1


async def test_response_left_early_closes_its_connection() -> None:
    async with pooling(answering(OK + b"Content-Length: 30\r\n\r\nabc")) as (pool, upstream):
        response = await get(pool)
        assert await response.read() == b"abc"
        await response.aclose()
        assert pool.connections == 0
        await eventually(lambda: upstream.open == 0)
        with pytest.raises(httpx.ReadError):
            await response.read()
        response.close()


async def test_closing_a_whole_response_keeps_the_connection() -> None:
    async with pooling(answering(OK + b"Content-Length: 3\r\n\r\nabc")) as (pool, upstream):
        for _ in range(3):
            response = await get(pool)
            await eventually(lambda: pool.idle == 1)
            await response.aclose()
        assert upstream.connections == 1


async def test_closing_wakes_the_reader() -> None:
    async with pooling(answering(OK + b"Content-Length: 30\r\n\r\n")) as (pool, _):
        response = await get(pool)
        reading = asyncio.create_task(response.read())
        await asyncio.sleep(0)
        response.close()
        with pytest.raises(httpx.ReadError):
            await reading


# Pumping


def into(pieces: list[bytes], *, goes_on: bool = True) -> Sink:
    def sink(data: bytes) -> bool:
        pieces.append(data)
        return goes_on

    return sink


async def pump_all(response: Response) -> bytes:
    pieces: list[bytes] = []
    assert await response.pump(into(pieces))
    return b"".join(pieces)


@pytest.mark.parametrize("name", WHOLE)
async def test_body_split_at_every_byte_is_pumped_whole(name: str) -> None:
    answer, body = WHOLE[name]
    for split in range(1, len(answer)):
        async with pooling(answering(answer, split=split)) as (pool, upstream):
            for _ in range(2):
                assert await pump_all(await get(pool)) == body, split
            assert upstream.connections == 1


async def test_pumped_body_that_ends_with_its_connection_is_whole() -> None:
    async with pooling(answering(OK + b"\r\nabc", split=len(OK) + 2, then_close=True)) as (pool, _):
        assert await pump_all(await get(pool)) == b"abc"


async def test_sink_that_says_stop_gets_nothing_before_it_is_pumped_again() -> None:
    size, sent, taken = 8 * 1024 * 1024, 0, 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await receive(reader)
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    def sink(data: bytes) -> bool:
        nonlocal taken
        taken += len(data)
        return taken > size // 2

    async with pooling(script) as (pool, _):
        response = await get(pool)
        assert not await response.pump(sink)
        before, taken_before = -1, taken
        while before != sent:
            before = sent
            await asyncio.sleep(0.05)
        assert taken == taken_before
        assert sent < size
        assert sum(map(len, response._pieces)) <= UNREAD_LIMIT_BYTES + 256 * 1024  # a segment more at most
        while not await response.pump(sink):
            pass
        assert taken == size


async def test_sink_that_says_stop_at_the_end_is_told_of_the_end_next() -> None:
    async with pooling(answering(OK + b"Content-Length: 3\r\n\r\nabc", split=len(OK) + 21)) as (pool, _):
        response = await get(pool)
        pieces: list[bytes] = []
        assert not await response.pump(into(pieces, goes_on=False))
        assert pieces == [b"abc"]
        assert await response.pump(into(pieces))
        assert pool.idle == 1


async def test_exception_of_the_sink_reaches_the_pumping_task_and_no_other() -> None:
    def sink(_: bytes) -> bool:
        raise KeyError("a bug")

    async with pooling(answering(OK + b"Content-Length: 9\r\n\r\nabc", split=len(OK) + 21)) as (pool, _):
        response = await get(pool)
        with pytest.raises(KeyError, match="a bug"):
            await response.pump(sink)
        assert pool.connections == 0


async def test_pumped_body_cut_short_raises_after_what_came_before() -> None:
    cut = OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    for rest in (b"", b"zz\r\n"):
        async with pooling(answering(cut + rest, split=len(OK), then_close=True)) as (pool, _):
            response = await get(pool)
            pieces: list[bytes] = []
            with pytest.raises(httpx.RemoteProtocolError):
                await response.pump(into(pieces))
            assert pieces == [b"abc"]
            assert pool.connections == 0


async def test_cancelled_pump_closes_its_connection() -> None:
    async with pooling(answering(OK + b"Content-Length: 9\r\n\r\nabc")) as (pool, upstream):
        pumping = asyncio.create_task(pump_all(await get(pool)))
        await asyncio.sleep(0.01)
        pumping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pumping
        assert pool.connections == 0
        await eventually(lambda: upstream.open == 0)


async def test_silence_ends_a_pump_and_a_slow_body_does_not() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await receive(reader)
        writer.write(OK + b"Content-Length: 11\r\n\r\n")
        for _ in range(10):
            await asyncio.sleep(0.03)
            writer.write(b"x")
        await reader.read()

    async with pooling(script, timeouts=Timeouts(read_s=0.2)) as (pool, _):
        pieces: list[bytes] = []
        with pytest.raises(httpx.ReadTimeout):
            await (await get(pool)).pump(into(pieces))
        assert b"".join(pieces) == b"x" * 10
        assert pool.connections == 0


# Uploads


async def test_small_request_is_one_segment_with_its_framing_added() -> None:
    seen: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while segment := await reader.read(100_000):
            seen.append(segment)
            writer.write(OK + b"Content-Length: 0\r\n\r\n")

    async with pooling(script) as (pool, _):
        await pool.request(b"POST", b"/v1?a=b", [*HOST, (b"x", b"1"), (b"x", b"2")], b"hello")
        await pool.request(b"POST", b"/", HOST, b"")
        await pool.request(b"GET", b"/", [*HOST, (b"transfer-encoding", b"gzip")], b"")
    assert seen == [
        b"POST /v1?a=b HTTP/1.1\r\nhost: upstream\r\nx: 1\r\nx: 2\r\ncontent-length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: upstream\r\ncontent-length: 0\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: upstream\r\n\r\n",
    ]


@pytest.mark.parametrize(
    ("target", "headers", "body"),
    (
        (b"/ HTTP/1.1\r\nx: y", [], b""),
        (b"/a b", [], b""),
        (b"/", [(b"x", b"a\r\ny: b")], b""),
        (b"/", [(b"x", b"a\nb")], b""),
        (b"/", [(b"x\r\ny", b"a")], b""),
        (b"/", [(b"x", b"\0")], b""),
        (b"/", [(b"content-length", b"4")], b"abc"),
        (b"/", [(b"content-length", b"x")], b"abc"),
        (b"/", [(b"content-length", b"3"), (b"content-length", b"4")], b"abc"),
    ),
)
def test_request_head_that_would_break_framing_is_refused(
    target: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        request_head(b"POST", target, headers, body)


async def in_pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


def echo(seen: list[tuple[bytes, bytes]]) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await receive(reader)
            seen.append((head, body))
            writer.write(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()

    return script


async def test_streamed_upload_is_chunked_unless_its_length_is_given() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with pooling(echo(seen)) as (pool, upstream):
        response = await pool.request(b"POST", b"/", HOST, in_pieces(b"ab", b"", b"c"))
        assert await read_all(response) == b"abc"
        response = await pool.request(b"POST", b"/", [*HOST, (b"content-length", b"3")], in_pieces(b"ab", b"", b"c"))
        assert await read_all(response) == b"abc"
        assert upstream.connections == 1
    assert b"transfer-encoding: chunked" in seen[0][0]
    assert b"content-length" not in seen[0][0]
    assert b"transfer-encoding" not in seen[1][0]


async def test_large_bodies_pass_both_ways() -> None:
    body = bytes(range(256)) * 4096 * 4
    async with pooling(echo([])) as (pool, upstream):
        assert await read_all(await pool.request(b"POST", b"/", HOST, body)) == body
        pieces = in_pieces(*(body[start : start + 100_000] for start in range(0, len(body), 100_000)))
        assert await read_all(await pool.request(b"POST", b"/", HOST, pieces)) == body
        assert upstream.connections == 1


@pytest.mark.parametrize("pieces", ((b"a",), (b"abcd",), ()))
async def test_upload_of_another_length_than_announced_is_cut(pieces: tuple[bytes, ...]) -> None:
    async with pooling(echo([])) as (pool, upstream):
        with pytest.raises(httpx.LocalProtocolError):
            await pool.request(b"POST", b"/", [*HOST, (b"content-length", b"3")], in_pieces(*pieces))
        assert pool.connections == 0
        await eventually(lambda: upstream.open == 0)


async def test_error_of_the_upload_s_source_reaches_the_caller() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"a"
        raise LookupError("source")

    async with pooling(echo([])) as (pool, _):
        with pytest.raises(LookupError, match="source"):
            await pool.request(b"POST", b"/", HOST, failing())
        assert pool.connections == 0


async def test_early_refusal_is_delivered_and_stops_the_upload() -> None:
    stopped = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0.001)
        finally:
            stopped.set()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        while await reader.read(65536):
            pass

    async with pooling(script) as (pool, upstream):
        response = await pool.request(b"POST", b"/", HOST, endless())
        assert response.status == 413
        assert await read_all(response) == b"big"
        await asyncio.wait_for(stopped.wait(), 5)
        assert pool.connections == 0
        await eventually(lambda: upstream.open == 0)


async def test_upload_goes_on_under_a_streamed_answer_and_ends_with_it() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            writer.write(b"1\r\n" + (await reader.readuntil(b"x"))[-1:] + b"\r\n")
        writer.write(b"0\r\n\r\n")
        await reader.read()

    async def ticking() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.001)

    async with pooling(script) as (pool, _):
        response = await pool.request(b"POST", b"/", HOST, ticking())
        assert await read_all(response) == b"xxx"
        await response.aclose()
        assert pool.connections == 0
    await eventually(lambda: len(asyncio.all_tasks()) == 1)


async def test_slow_upload_is_not_taken_for_a_silent_upstream() -> None:
    async def slow() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"x"
            await asyncio.sleep(0.03)

    async with pooling(echo([]), timeouts=Timeouts(head_s=0.06)) as (pool, _):
        assert await read_all(await pool.request(b"POST", b"/", HOST, slow())) == b"xxxx"


@pytest.mark.parametrize("streamed", (False, True))
async def test_upstream_that_takes_nothing_is_a_write_timeout(streamed: bool) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(10)

    piece = b"x" * 1024 * 1024
    body = in_pieces(*[piece] * 32) if streamed else piece * 32
    async with pooling(deaf, timeouts=Timeouts(write_s=0.1)) as (pool, _):
        with pytest.raises(httpx.WriteTimeout):
            await pool.request(b"POST", b"/", HOST, body)
        assert pool.connections == 0


# Time


async def test_no_answer_in_time_is_a_read_timeout() -> None:
    async with pooling(answering(b"HTTP/1.1 200"), timeouts=Timeouts(head_s=0.05)) as (pool, upstream):
        with pytest.raises(httpx.ReadTimeout):
            await get(pool)
        assert pool.connections == 0
        await eventually(lambda: upstream.open == 0)


async def test_silence_in_a_body_is_a_read_timeout_after_what_came() -> None:
    async with pooling(answering(OK + b"Content-Length: 9\r\n\r\nabc"), timeouts=Timeouts(read_s=0.05)) as (pool, _):
        response = await get(pool)
        assert await response.read() == b"abc"
        with pytest.raises(httpx.ReadTimeout):
            await response.read()
        assert pool.connections == 0


async def test_slow_but_steady_body_outlives_the_read_timeout() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await receive(reader)
        writer.write(OK + b"Content-Length: 10\r\n\r\n")
        for _ in range(10):
            await asyncio.sleep(0.03)
            writer.write(b"x")
        await reader.read()

    async with pooling(script, timeouts=Timeouts(read_s=0.2)) as (pool, _):
        assert await get_all(pool) == (200, b"x" * 10)


async def test_slow_reader_is_not_taken_for_a_silent_upstream() -> None:
    async with pooling(
        answering(OK + b"Content-Length: 6\r\n\r\nabcdef", split=len(OK) + 24), timeouts=Timeouts(read_s=0.05)
    ) as (pool, _):
        response = await get(pool)
        await asyncio.sleep(0.15)
        assert await read_all(response) == b"abcdef"


async def test_short_wait_after_a_long_one_moves_the_timer() -> None:
    async with pooling(answering(OK + b"Content-Length: 3\r\n\r\nab", split=len(OK)), timeouts=QUICK) as (pool, _):
        impatient = Timeouts(head_s=600, read_s=0.05)
        response = await pool.request(b"GET", b"/", HOST, b"", timeouts=impatient)
        with pytest.raises(httpx.ReadTimeout):
            await read_all(response)


async def test_without_limits_no_timer_is_set() -> None:
    endless = Timeouts(connect_s=math.inf, write_s=math.inf, head_s=math.inf, read_s=math.inf, pool_s=math.inf)
    async with pooling(answering(OK + b"Content-Length: 3\r\n\r\nabc"), timeouts=endless) as (pool, _):
        assert await get_all(pool) == (200, b"abc")
        assert next(iter(pool._open))._timer is None
