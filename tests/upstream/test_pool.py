"""The pool (reuse, limits, retries, cancellation, TLS) and its face towards httpx."""

import asyncio
import contextlib
import os
import random
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from proxy.upstream.failure import failure
from proxy.upstream.pool import ConnectionPool, Limits, Origin, system_tls
from proxy.upstream.request import Timeouts
from tests.raw_upstream import HOST, OK, QUICK, Script, answering, eventually, get, get_all, pooling, receive, serving
from tests.upstream.test_http11 import event_loop_policy

__all__ = ["event_loop_policy"]

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")

ABC = OK + b"Content-Length: 3\r\n\r\nabc"


def closing_after(count: int, *, with_reset: bool = False) -> Script:
    """Answer so many requests of a connection; take one more without an answer, and close."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(count):
            await receive(reader)
            writer.write(ABC)
        await receive(reader)
        if with_reset:
            writer.transport.abort()

    return script


# Reuse


async def test_last_used_connection_is_used_next() -> None:
    async with pooling(answering(ABC)) as (pool, upstream):
        first, second = await asyncio.gather(get(pool), get(pool))
        await eventually(lambda: pool.idle == 2)
        last = next(reversed(pool._idle))
        for _ in range(3):
            await get_all(pool)
            assert next(reversed(pool._idle)) is last
        assert (first.status, second.status, upstream.connections) == (200, 200, 2)


async def test_two_hundred_at_once_then_again_on_the_same_connections() -> None:
    async with pooling(answering(ABC)) as (pool, upstream):
        for _ in range(3):
            assert await asyncio.gather(*(get_all(pool) for _ in range(200))) == [(200, b"abc")] * 200
            assert upstream.connections == pool.idle == pool.connections <= 200


async def test_connection_that_upstream_closes_while_idle_leaves_the_pool_at_once() -> None:
    leave = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await receive(reader)
        writer.write(ABC)
        await leave.wait()

    async with pooling(script) as (pool, upstream):
        await get_all(pool)
        assert pool.idle == 1
        leave.set()
        await eventually(lambda: pool.connections == pool.idle == pool.sockets == 0)
        await get_all(pool)
        assert upstream.connections == 2


async def test_bytes_on_an_idle_connection_close_it() -> None:
    speak = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await receive(reader)
        writer.write(ABC)
        await speak.wait()
        writer.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with pooling(script) as (pool, _):
        await get_all(pool)
        speak.set()
        await eventually(lambda: pool.connections == pool.sockets == 0)


async def test_idle_connections_are_closed_after_their_time() -> None:
    async with pooling(answering(ABC), limits=Limits(idle_s=0.05)) as (pool, upstream):
        await asyncio.gather(*(get_all(pool) for _ in range(5)))
        assert pool.idle > 0
        await eventually(lambda: pool.connections == pool.idle == pool.sockets == upstream.open == 0)
        assert pool._sweeper is None


async def test_connection_past_its_idle_time_is_not_used() -> None:
    async with pooling(answering(ABC), limits=Limits(idle_s=0.0)) as (pool, upstream):
        for count in (1, 2, 3):
            await get_all(pool)
            assert upstream.connections == count


# Sending again


@pytest.mark.parametrize("with_reset", (False, True))
@pytest.mark.parametrize("method", (b"GET", b"POST"))
async def test_request_on_a_kept_connection_that_closes_unanswered_is_sent_once_more(
    method: bytes, with_reset: bool
) -> None:
    async with pooling(closing_after(1, with_reset=with_reset)) as (pool, upstream):
        for count in (1, 2, 3):
            response = await pool.request(method, b"/", HOST, b"body" if method == b"POST" else b"")
            assert await response.read() == b"abc"
            assert (upstream.connections, pool.connections) == (count, 1)


async def test_request_is_not_sent_a_third_time() -> None:
    requests = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        while True:
            await receive(reader)
            requests += 1
            if requests > 1:
                return
            writer.write(ABC)

    async with pooling(script) as (pool, _):
        await get_all(pool)
        with pytest.raises(httpx.RemoteProtocolError):
            await get(pool)
        assert (requests, pool.connections) == (3, 0)


async def test_request_on_a_new_connection_is_not_sent_again() -> None:
    async with pooling(closing_after(0)) as (pool, upstream):
        with pytest.raises(httpx.RemoteProtocolError):
            await get(pool)
        assert upstream.connections == 1


@pytest.mark.parametrize("with_reset", (False, True))
@pytest.mark.parametrize("method", (b"GET", b"POST"))
async def test_request_that_a_kept_connection_held_for_a_while_is_not_sent_again(
    method: bytes, with_reset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream.pool._IDLE_CLOSE_S", 0.05)
    requests = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await receive(reader)
        writer.write(ABC)
        await receive(reader)
        requests += 1
        await asyncio.sleep(0.2)  # an engine that works on it, and dies
        if with_reset:
            writer.transport.abort()

    async with pooling(script) as (pool, upstream):
        await get_all(pool)
        with pytest.raises(httpx.TransportError):
            await pool.request(method, b"/", HOST, b"body" if method == b"POST" else b"")
        assert (requests, upstream.connections) == (1, 1)


async def test_request_answered_by_one_byte_is_not_sent_again() -> None:
    requests = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await receive(reader)
        writer.write(ABC)
        await receive(reader)
        requests += 1
        writer.write(b"H")

    async with pooling(script) as (pool, _):
        await get_all(pool)
        with pytest.raises(httpx.RemoteProtocolError):
            await get(pool)
        assert requests == 1


async def test_request_that_timed_out_is_not_sent_again() -> None:
    requests = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        while True:
            await receive(reader)
            requests += 1
            if requests == 1:
                writer.write(ABC)

    async with pooling(script, timeouts=Timeouts(head_s=0.05)) as (pool, _):
        await get_all(pool)
        with pytest.raises(httpx.ReadTimeout):
            await get(pool)
        assert requests == 2


async def test_upload_that_has_begun_is_not_sent_again() -> None:
    async def upload() -> AsyncIterator[bytes]:
        yield b"a"

    async with pooling(closing_after(1)) as (pool, upstream):
        await get_all(pool)
        with pytest.raises(httpx.TransportError):
            await pool.request(b"POST", b"/", HOST, upload())
        assert upstream.connections == 1


async def test_request_is_sent_again_on_a_new_connection_though_others_are_kept_and_the_pool_is_full() -> None:
    async with pooling(closing_after(1), limits=Limits(max_connections=2)) as (pool, upstream):
        await asyncio.gather(get_all(pool), get_all(pool))
        before = upstream.connections
        assert await get_all(pool) == (200, b"abc")
        assert upstream.connections == before + 1
        assert pool.connections <= 2


# Limits


async def test_requests_beyond_the_limit_wait_for_a_connection() -> None:
    async with pooling(answering(ABC), limits=Limits(max_connections=3)) as (pool, upstream):
        assert await asyncio.gather(*(get_all(pool) for _ in range(50))) == [(200, b"abc")] * 50
        assert pool.connections <= 3
        assert upstream.connections <= 3


async def test_waiting_requests_get_the_slots_of_connections_that_close() -> None:
    answer = OK + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc"
    async with pooling(answering(answer), limits=Limits(max_connections=2)) as (pool, upstream):
        assert await asyncio.gather(*(get_all(pool) for _ in range(20))) == [(200, b"abc")] * 20
        assert (pool.connections, upstream.connections) == (0, 20)


async def test_no_free_connection_in_time_is_a_pool_timeout() -> None:
    async with pooling(
        answering(OK + b"Content-Length: 9\r\n\r\n"), limits=Limits(max_connections=1), timeouts=Timeouts(pool_s=0.05)
    ) as (pool, _):
        response = await get(pool)
        with pytest.raises(httpx.PoolTimeout):
            await get(pool)
        assert not pool._waiting
        response.close()
        assert (await get(pool)).status == 200


async def test_queue_for_connections_is_bounded() -> None:
    limits = Limits(max_connections=1, max_waiting=2)
    async with pooling(answering(OK + b"Content-Length: 9\r\n\r\n"), limits=limits) as (pool, _):
        response = await get(pool)
        waiting = [asyncio.create_task(get(pool)) for _ in range(2)]
        await eventually(lambda: len(pool._waiting) == 2)
        with pytest.raises(httpx.PoolTimeout, match="Too many"):
            await get(pool)
        response.close()
        (await waiting[0]).close()
        (await waiting[1]).close()
        assert pool.connections == 0


async def test_cancelled_waiter_hands_on_what_it_was_given() -> None:
    for cancel_first in (True, False):
        async with pooling(answering(ABC), limits=Limits(max_connections=1)) as (pool, _):
            await get_all(pool)
            connection = pool._take_idle()
            assert connection is not None
            waiting = [asyncio.create_task(get_all(pool)) for _ in range(3)]
            await eventually(lambda pool=pool: len(pool._waiting) == 3)  # type: ignore[misc]
            if cancel_first:
                waiting[0].cancel()
                pool._give_back(connection)
            else:  # it has been given the connection, or the slot, and has not run yet
                pool._give_back(connection)
                waiting[0].cancel()
            assert await asyncio.gather(*waiting[1:]) == [(200, b"abc")] * 2
            with pytest.raises(asyncio.CancelledError):
                await waiting[0]
            assert pool.connections == pool.idle == 1


async def test_connection_that_dies_on_its_way_to_a_waiter_is_replaced() -> None:
    async with pooling(answering(ABC), limits=Limits(max_connections=1)) as (pool, upstream):
        await get_all(pool)
        connection = pool._take_idle()
        assert connection is not None
        waiting = [asyncio.create_task(get_all(pool)) for _ in range(2)]
        await eventually(lambda: len(pool._waiting) == 2)
        pool._give_back(connection)
        connection.close()
        assert await asyncio.gather(*waiting) == [(200, b"abc")] * 2
        assert (upstream.connections, pool.connections) == (2, 1)


# Cancellation


def open_sockets() -> int:
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(link.startswith("socket:") for link in links)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("streamed", (False, True))
async def test_cancelling_anywhere_leaks_nothing(streamed: bool) -> None:
    chance = random.Random(7)
    answer = b"HTTP/1.1 100 C\r\n\r\n" + OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"3\r\nabc\r\n" * 5 + b"0\r\n\r\n"

    async def upload() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x"
            await asyncio.sleep(0)

    async def exchange(pool: ConnectionPool) -> bytes:
        response = await pool.request(b"POST", b"/", HOST, upload() if streamed else b"body")
        body = b""
        while piece := await response.read():
            body += piece
            await asyncio.sleep(0)
        return body

    async def patient(pool: ConnectionPool) -> None:
        task = asyncio.create_task(exchange(pool))
        for _ in range(chance.randrange(40)):
            await asyncio.sleep(0 if chance.random() < 0.7 else 0.0005)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            assert await task == b"abc" * 5

    sockets = open_sockets()
    async with pooling(answering(answer, split=60), limits=Limits(max_connections=4)) as (pool, upstream):
        for _ in range(12):
            await asyncio.gather(*(patient(pool) for _ in range(12)))
            assert pool.connections == pool.idle <= 4
            assert not pool._waiting
            await eventually(lambda: pool.sockets == pool.idle)
        assert await exchange(pool) == b"abc" * 5
        await pool.aclose()
        await eventually(lambda: upstream.open == 0)
    await eventually(lambda: len(asyncio.all_tasks()) == 1)
    await eventually(lambda: open_sockets() <= sockets)


async def test_closing_the_pool_ends_everything_in_it() -> None:
    answer = OK + b"Content-Length: 9\r\n\r\nabc"
    async with pooling(answering(answer), limits=Limits(max_connections=1)) as (pool, upstream):
        response = await get(pool)
        waiting = asyncio.create_task(get(pool))
        await eventually(lambda: len(pool._waiting) == 1)
        await pool.aclose()
        assert await response.read() == b"abc"
        with pytest.raises(httpx.ReadError):
            await response.read()
        with pytest.raises(httpx.ConnectError):
            await waiting
        with pytest.raises(httpx.ConnectError):
            await get(pool)
        assert pool.connections == pool.sockets == 0
        await eventually(lambda: upstream.open == 0)


# Connecting


async def test_refused_connection_is_a_connect_error() -> None:
    async with serving(answering(ABC)) as upstream:
        port = upstream.port
    pool = ConnectionPool(origin=Origin("127.0.0.1", port), timeouts=QUICK)
    with pytest.raises(httpx.ConnectError):
        await get(pool)
    assert pool.connections == pool.sockets == 0
    await pool.aclose()


async def test_name_that_does_not_resolve_is_a_connect_error() -> None:
    pool = ConnectionPool(origin=Origin("upstream.invalid", 80), timeouts=QUICK)
    with pytest.raises((httpx.ConnectError, httpx.ConnectTimeout)):
        await get(pool)
    assert pool.connections == pool.sockets == 0
    await pool.aclose()


async def test_tls_handshake_that_never_ends_is_a_connect_timeout() -> None:
    async with serving(answering(ABC)) as upstream:
        origin = Origin("127.0.0.1", upstream.port, tls=system_tls())
        pool = ConnectionPool(origin=origin, timeouts=Timeouts(connect_s=0.05))
        with pytest.raises(httpx.ConnectTimeout):
            await get(pool)
        assert pool.connections == 0
        await eventually(lambda: pool.sockets == 0)
        await pool.aclose()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    make = (
        f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run([*make.split(), "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


async def test_tls_upstream_is_spoken_to_and_checked(certificate: Path) -> None:
    serving_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving_tls.load_cert_chain(certificate)
    trusting = system_tls()
    trusting.load_verify_locations(certificate)
    body = b"x" * 300_000

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, received = await receive(reader)
            writer.write(OK + b"Content-Length: %d\r\n\r\n" % len(received) + received)
            await writer.drain()

    async with serving(script, tls=serving_tls) as upstream:
        pool = ConnectionPool(origin=Origin("localhost", upstream.port, trusting))
        for _ in range(3):
            response = await pool.request(b"POST", b"/", [(b"host", b"localhost")], body)
            received = b""
            while piece := await response.read():
                received += piece
            assert received == body
        assert upstream.connections == 1
        await pool.aclose()
        untrusting = ConnectionPool(origin=Origin("localhost", upstream.port, system_tls()))
        with pytest.raises(httpx.ConnectError):
            await untrusting.request(b"GET", b"/", [(b"host", b"localhost")], b"")
        await untrusting.aclose()


async def test_a_certificate_for_another_name_is_told_without_the_address(certificate: Path) -> None:
    serving_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving_tls.load_cert_chain(certificate)
    trusting = system_tls()
    trusting.load_verify_locations(certificate)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await receive(reader)

    async with serving(script, tls=serving_tls) as upstream:
        pool = ConnectionPool(origin=Origin("127.0.0.1", upstream.port, trusting))
        with pytest.raises(httpx.ConnectError) as caught:
            await pool.request(b"GET", b"/", [(b"host", b"localhost")], b"")
        await pool.aclose()
    told = str(failure(caught.value))
    assert "certificate is not trusted (IP address mismatch)" in told
    assert "127.0.0.1" not in told
