"""The load client: its own process, raw protocols, no parsing while it measures; what came is checked at the end."""

import asyncio
import dataclasses
import itertools
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import cast

import uvloop

from tests.bench import dialects, wire

_MAX_FAILURES = 100  # a relay that is broken is not asked for ever
_CONNECT_AT_ONCE = 100
_END = (
    b"\r\n" + wire.TERMINATOR
)  # without the line end before it, a head whose last value ends in 0 would look the same


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """What a run asks for: each connection repeats its request until `seconds` are over or `requests` are sent."""

    port: int
    stream: bool
    connections: int
    seconds: float
    deadline_s: float
    requests: int = 1 << 40
    endpoint: str = dialects.CHAT
    model: str = wire.MODEL
    sends_done: bool = True
    tokens: int = 200
    rate: int = 50
    ramp_s: float = 0.0
    """The connections begin one after the other over this time."""
    sample_after_s: float = 0.0
    """Requests that began earlier are load, and no samples."""
    samples: int = 0
    """The load goes on past its time until it has so many."""
    label: int = 0
    """Tells this run's requests from those of another."""


@dataclasses.dataclass(slots=True)
class Outcome:
    """What came of it. Times are lists, one of each finished request; errors are counted by their text."""

    finished: int = 0
    unfinished: int = 0
    elapsed_s: float = 0.0
    cpu_s: float = 0.0
    events: int = 0
    first_token_ms: list[float] = dataclasses.field(default_factory=list)
    lag_ms: list[float] = dataclasses.field(default_factory=list)
    errors: dict[str, int] = dataclasses.field(default_factory=dict)


class Connection(asyncio.Protocol):
    """Sends one request after the other on one connection, and opens another when the relay closes it."""

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.transport: asyncio.Transport | None = None
        self.pieces: list[bytes] = []
        self.busy = False
        self.sent = 0.0
        self.first = 0.0
        self.last = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.busy:
            self.end(f"closed early ({exc or 'end of stream'})")

    async def open(self) -> None:
        """Connect; the run has a deadline, so this has none of its own."""
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self.run.load.port)

    async def begin(self) -> None:
        """Send the next request, on a new connection where there is none."""
        try:
            if self.transport is None or self.transport.is_closing():
                await self.open()
        except OSError as exc:
            self.busy = True
            self.end(f"cannot connect ({exc.strerror})")
            return
        self.send()

    def send(self) -> None:
        assert self.transport is not None
        self.pieces = []
        self.busy = True
        self.first = self.last = 0.0
        request = self.run.next_request()
        self.sent = time.monotonic()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.pieces.append(data)
        if not self.first and wire.FIRST in data:
            self.first = now
        if wire.LAST in data:
            self.last = now
        if data.endswith(_END) or (len(data) < len(_END) and b"".join(self.pieces[-8:]).endswith(_END)):
            self.end(None)
        elif not self.first:
            self.end_if_framed_by_length()

    def end_if_framed_by_length(self) -> None:
        """A whole reply, or an error in place of a stream."""
        raw = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        head_end = raw.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = wire.content_length(raw[: head_end + 2])
        if length is not None and len(raw) >= head_end + 4 + length:
            self.end(None)

    def end(self, error: str | None) -> None:
        """Take down what came, and begin again if there is more to do."""
        self.busy = False
        self.run.note(self, error)
        if not self.run.wants_more():
            self.run.leave()
        elif error is None and self.transport is not None and not self.transport.is_closing():
            self.send()
        else:
            self.run.later(self)


class Run:
    """One load: its connections, what they brought, and when it is over."""

    connection = Connection

    def __init__(self, load: Load) -> None:
        self.load = load
        self.outcome = Outcome()
        self.errors: Counter[str] = Counter()
        self.replies: deque[list[bytes]] = deque()
        host = f"127.0.0.1:{load.port}"
        self.before, self.after = dialects.request(load.endpoint, host=host, stream=load.stream, model=load.model)
        self.numbers = itertools.count()
        self.sent = 0
        self.active = load.connections
        self.started = self.measured_from = self.ends = 0.0
        self.over = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()

    async def perform(self) -> Outcome:
        load = self.load
        connections = [self.connection(self) for _ in range(load.connections)]
        await self._connect(connections)
        loop = asyncio.get_running_loop()
        cpu, self.started = time.process_time(), time.monotonic()
        self.measured_from = self.started + load.sample_after_s
        self.ends = self.started + load.seconds
        for i, connection in enumerate(connections):
            loop.call_later(load.ramp_s * i / load.connections, self._start, connection)
        try:
            await asyncio.wait_for(self.over.wait(), load.deadline_s)
        except TimeoutError:
            self.ends = 0.0
        self.outcome.elapsed_s = time.monotonic() - self.started
        self.outcome.cpu_s = time.process_time() - cpu
        self.outcome.unfinished = sum(connection.busy for connection in connections)
        self.outcome.events += sum(_count_events(connection.pieces) for connection in connections if connection.busy)
        self._check()
        return self.outcome

    async def _connect(self, connections: Iterable[Connection]) -> None:
        """Open the connections before the clock starts; one that fails is tried again by its first request."""
        waiting = deque(connections)
        while waiting:
            some = [waiting.popleft() for _ in range(min(_CONNECT_AT_ONCE, len(waiting)))]
            await asyncio.gather(*(connection.open() for connection in some), return_exceptions=True)

    def _start(self, connection: Connection) -> None:
        if not self.wants_more():
            self.leave()
        elif connection.transport is not None and not connection.transport.is_closing():
            connection.send()
        else:
            self.later(connection)

    def next_request(self) -> bytes:
        self.sent += 1
        return b"%b%08d%b" % (self.before, (self.load.label * 1_000_000 + self.sent) % 100_000_000, self.after)

    def wants_more(self) -> bool:
        failing = self.errors.total() > _MAX_FAILURES
        return self.sent < self.load.requests and not failing and (self.sent < self.load.connections or self._in_time())

    def _in_time(self) -> bool:
        now = time.monotonic()
        return now < self.ends or (self.ends > 0 and len(self.outcome.first_token_ms) < self.load.samples)

    def leave(self) -> None:
        self.active -= 1
        if not self.active:
            self.over.set()

    def later(self, connection: Connection) -> None:
        task = asyncio.ensure_future(connection.begin())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def note(self, connection: Connection, error: str | None) -> None:
        if error is not None:
            self.errors[error] += 1
            return
        self.outcome.finished += 1
        self.replies.append(connection.pieces)
        if self.load.stream and connection.first and connection.sent >= self.measured_from:
            self.outcome.first_token_ms.append((connection.first - connection.sent) * 1e3)
            nominal = (self.load.tokens - 1) / self.load.rate
            last = connection.last or time.monotonic()
            self.outcome.lag_ms.append((last - connection.sent - nominal) * 1e3)

    def _check(self) -> None:
        """Every reply is taken apart, now that the clock has stopped."""
        load = self.load
        for pieces in self.replies:
            raw = b"".join(pieces)
            try:
                if load.stream:
                    dialects.check_stream(load.endpoint, raw, tokens=load.tokens, sends_done=load.sends_done)
                    self.outcome.events += load.tokens + 3
                else:
                    dialects.check_whole(load.endpoint, raw)
            except (ValueError, KeyError, TypeError) as exc:
                self.errors[str(exc)[:300]] += 1
                self.outcome.finished -= 1
        self.outcome.errors = dict(self.errors.most_common(3))


def _count_events(pieces: list[bytes]) -> int:
    return b"".join(pieces).count(b"data: ")


if __name__ == "__main__":
    outcome = uvloop.run(Run(Load(**json.loads(sys.argv[1]))).perform())
    outcome.first_token_ms = [round(each, 3) for each in outcome.first_token_ms]
    outcome.lag_ms = [round(each, 3) for each in outcome.lag_ms]
    print(json.dumps(dataclasses.asdict(outcome)))
