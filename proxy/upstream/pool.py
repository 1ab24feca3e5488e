"""A pool of keep-alive connections to one origin."""

import asyncio
import math
import ssl
from collections import OrderedDict, deque
from dataclasses import dataclass
from time import monotonic

import httpx

from proxy.upstream.http11 import Connection
from proxy.upstream.request import Body, Timeouts, request_head
from proxy.upstream.response import Response
from proxy.wire.headers import Headers

# Maximum wait until all sockets are closed.
CLOSE_LIMIT_S = 1.0
# If an upstream closes an idle connection while a request is on its way, the request was not read, and the close
# arrives within a round trip. If it closes later, it may have started to work on the request.
_IDLE_CLOSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Origin:
    host: str
    port: int
    tls: ssl.SSLContext | None = None

    @property
    def scheme(self) -> str:
        return "http" if self.tls is None else "https"


@dataclass(frozen=True, slots=True)
class Limits:
    max_connections: int = 4096
    max_waiting: int = 4096
    """Requests that may wait for a connection; one more fails immediately with httpx.PoolTimeout."""
    idle_s: float = 4.0
    """Shorter than vLLM's 5 seconds, so that our side closes idle connections first."""


def system_tls() -> ssl.SSLContext:
    """A TLS context with the system's trusted certificates, for HTTP/1.1."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class ConnectionPool:
    """Connections to one origin, for one event loop. The most recently used one is reused first."""

    def __init__(self, *, origin: Origin, limits: Limits | None = None, timeouts: Timeouts | None = None) -> None:
        self._origin = origin
        self._limits = limits or Limits()
        self._timeouts = timeouts or Timeouts()
        self._slots = 0  # connections open or being opened
        self._open: set[Connection] = set()  # connections that hold a slot
        self._sockets: set[Connection] = set()  # connections whose socket is not closed yet
        self._idle: OrderedDict[Connection, float] = OrderedDict()  # idle since, oldest first
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._all_lost: asyncio.Future[None] | None = None
        self._closed = False
        self._received_before = 0  # by closed connections

    @property
    def received(self) -> int:
        """Number of reads from upstream; tells a working upstream from a stalled one."""
        return self._received_before + sum(connection.received for connection in self._open)

    @property
    def connections(self) -> int:
        """Connections open or being opened."""
        return self._slots

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def sockets(self) -> int:
        """Sockets not closed yet, or being opened."""
        return len(self._sockets)

    async def request(
        self, method: bytes, target: bytes, headers: Headers, body: Body, *, timeouts: Timeouts | None = None
    ) -> Response:
        """Sends a request; returns its response when the head has arrived. Header names must be lower case.

        `headers` must contain Host; only the framing headers are added. If a kept-alive connection turns out to be
        closed before any byte of the response, the request is sent once more on a new one. Raises httpx.TransportError.
        """
        timeouts = timeouts or self._timeouts
        head, length = request_head(method, target, headers, body)
        head_only = method == b"HEAD"
        connection = self._take_idle() or await self._acquire(timeouts)
        kept = connection.exchanges > 0
        sent_at = monotonic()
        response = connection.send(head, body, length, head_only=head_only, timeouts=timeouts)
        try:
            await response.wait_for_head(timeouts.head_s)
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            is_unread = kept and response.unanswered and monotonic() - sent_at < _IDLE_CLOSE_S
            if not (is_unread and response.replayable):
                raise
        else:
            return response
        connection = await self._acquire_new(timeouts)
        response = connection.send(head, body, length, head_only=head_only, timeouts=timeouts)
        await response.wait_for_head(timeouts.head_s)
        return response

    async def aclose(self) -> None:
        """Closes all connections, including those in use, and waits until their sockets are closed."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(httpx.ConnectError("The pool is closed"))
        self._waiting.clear()
        for connection in list(self._open):
            connection.close()
        if self._sockets:
            self._all_lost = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._all_lost,), timeout=CLOSE_LIMIT_S)

    # Acquiring connections

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection, since = self._idle.popitem()
            if connection.usable and monotonic() - since < self._limits.idle_s:
                return connection
            connection.close()
        return None

    async def _acquire(self, timeouts: Timeouts) -> Connection:
        """Returns a kept-alive connection that becomes free, or a new one."""
        if self._take_slot():
            return await self._connect(timeouts)
        try:
            async with asyncio.timeout(_finite(timeouts.pool_s)):
                connection = await self._wait_for_connection()
        except TimeoutError:
            raise httpx.PoolTimeout("No connection became free in time") from None
        return connection or await self._connect(timeouts)

    async def _acquire_new(self, timeouts: Timeouts) -> Connection:
        if self._idle:
            self._idle.popitem(last=False)[0].close()
        connection = await self._acquire(timeouts)
        if connection.exchanges == 0:
            return connection
        self._open.discard(connection)  # we take over its slot
        self._received_before += connection.received
        connection.close()
        return await self._connect(timeouts)

    def _take_slot(self) -> bool:
        """Takes a slot for a new connection, if one is free."""
        if self._slots >= self._limits.max_connections:
            return False
        self._slots += 1
        return True

    async def _wait_for_connection(self) -> Connection | None:
        """Waits for a connection; None is the permission to open one."""
        while True:
            if self._take_slot():
                return None
            if len(self._waiting) >= self._limits.max_waiting:
                raise httpx.PoolTimeout("Too many requests wait for a connection")
            waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                connection = await waiter
            except asyncio.CancelledError:
                self._leave_queue(waiter)
                raise
            if connection is None or connection.usable:
                return connection
            connection.close()  # closed just before it was handed over

    def _leave_queue(self, waiter: "asyncio.Future[Connection | None]") -> None:
        if waiter.cancelled():
            # _next_waiter skips finished waiters; removing this one keeps the queue short.
            if waiter in self._waiting:
                self._waiting.remove(waiter)
        elif waiter.exception() is None:  # served and cancelled at once: pass it on to the next waiter
            connection = waiter.result()
            if connection is None:
                self._release_slot()
            elif not connection.closed:
                self._give_back(connection)

    async def _connect(self, timeouts: Timeouts) -> Connection:
        """Opens a connection for a slot already taken."""
        connection = Connection(on_free=self._give_back, on_closed=self._forget, on_lost=self._lost)
        self._open.add(connection)
        self._sockets.add(connection)
        try:
            async with asyncio.timeout(_finite(timeouts.connect_s)):
                await self._open_socket(connection)
        except BaseException as exc:  # also on cancellation: the slot must not leak
            connection.close()
            self._lost(connection)  # uvloop does not report the loss of a socket if opening it was cancelled
            if isinstance(exc, TimeoutError):
                raise httpx.ConnectTimeout(f"No connection to {self._origin.host} in time") from exc
            if isinstance(exc, OSError):
                raise httpx.ConnectError(str(exc)) from exc
            raise
        return connection

    async def _open_socket(self, connection: Connection) -> None:
        origin = self._origin
        if self._closed:
            raise httpx.ConnectError("The pool is closed")
        await asyncio.get_running_loop().create_connection(
            lambda: connection,
            origin.host,
            origin.port,
            ssl=origin.tls,
            server_hostname=origin.host if origin.tls else None,
        )
        if connection.closed:
            raise httpx.ConnectError("The connection was closed as soon as it was open")

    # Releasing connections

    def _give_back(self, connection: Connection) -> None:
        waiter = self._next_waiter()
        if waiter is not None:
            waiter.set_result(connection)
            return
        self._idle[connection] = monotonic()
        if self._sweeper is None:
            self._sweep_in(self._limits.idle_s)

    def _sweep_in(self, seconds: float) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(seconds, self._sweep)

    def _sweep(self) -> None:
        """Closes connections that were idle for too long; one timer serves all."""
        self._sweeper = None
        expired = monotonic() - self._limits.idle_s
        while self._idle:
            connection, since = next(iter(self._idle.items()))
            if since > expired:
                self._sweep_in(since - expired)
                return
            connection.close()

    def _forget(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        if connection in self._open:
            self._open.discard(connection)
            self._received_before += connection.received
            self._release_slot()

    def _release_slot(self) -> None:
        waiter = self._next_waiter()
        if waiter is None:
            self._slots -= 1
        else:
            waiter.set_result(None)

    def _next_waiter(self) -> "asyncio.Future[Connection | None] | None":
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                return waiter
        return None

    def _lost(self, connection: Connection) -> None:
        self._sockets.discard(connection)
        if self._all_lost is not None and not self._sockets and not self._all_lost.done():
            self._all_lost.set_result(None)


def _finite(seconds: float) -> float | None:
    return None if seconds == math.inf else seconds
