"""`python -m tests.bench.neighbours`: 50 streams and 20 chats a second, while one caller sends what could stop them.

For each thing it sends: how late the others' tokens were (99.9 % of them, against the moments upstream sent them), the
slowest head of a chat, the longest time an end was held, the server's memory, and what was not saved. The callers, the
one caller, upstream and the server are a process each: the row "nothing" says what this machine does to all of them.
The one caller's process has the lowest priority, as it stands for one on another machine.
"""

import argparse
import asyncio
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import httpx
import uvloop

from tests.fake_upstream import (
    DONE,
    LAST_CHUNK,
    STREAM_HEADERS,
    Call,
    Wire,
    chat_chunk,
    chat_completion,
    chunk_bytes,
    dumps,
    event,
    fake_upstream,
    head_bytes,
)
from tests.serving import ServerProcess

CHAT = "/v1/chat/completions"
STREAMS = 50
CHATS_A_SECOND = 20
_SENT_AT = re.compile(rb'"content":\s?"(?:end )?(\d+\.\d+) ?"')
_WHOLE = re.compile(rb"HTTP/1.1 (\d+)[^\0]*?content-length: (\d+)\r\n[^\0]*?\r\n\r\n", re.IGNORECASE)
_TOKEN_SECONDS = 0.05
_TIMEOUT_SECONDS = 120.0
_WARM_UP_SECONDS = 4.0  # the callers' process starts and connects


@dataclass(slots=True)
class Figures:
    """What the well-behaved callers saw."""

    lateness: list[float] = field(default_factory=list)
    heads: list[float] = field(default_factory=list)
    holds: list[float] = field(default_factory=list)
    failed: int = 0

    def clear(self) -> None:
        """Forget what was seen until now."""
        self.lateness, self.heads, self.holds, self.failed = [], [], [], 0

    @property
    def late_ms(self) -> float:
        """Of the tokens' lateness the 99.9th percentile."""
        ordered = sorted(self.lateness) or [0.0]
        return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * 0.999))]


async def answer(call: Call, wire: Wire) -> None:
    """Upstream: a token each 50 ms, with the moment it was sent in it; a whole reply at once; a flood where asked."""
    # What is large is not parsed: this process measures the others at the same time.
    request = call.json() if len(call.body) < 100_000 else {}
    last = request["messages"][-1]["content"] if request.get("messages") else ""
    if request.get("stream"):
        await wire.send(head_bytes(200, STREAM_HEADERS))
        if last == "flood":
            await wire.send(chunk_bytes(b": x\n\n" * 1_000_000))
        for _ in range(0 if last == "flood" else 60):
            await asyncio.sleep(_TOKEN_SECONDS)
            await wire.chunk(event(chat_chunk(1, {"content": f"{time.monotonic()} "})))
        end = event(chat_chunk(1, {"content": f"end {time.monotonic()}"}, finish_reason="stop"))
        await wire.send(chunk_bytes(end) + chunk_bytes(DONE) + LAST_CHUNK)
        return
    body = dumps(chat_completion(1, [{"role": "assistant", "content": "yes"}]))
    await wire.send(head_bytes(200, (("content-type", "application/json"), ("content-length", str(len(body))))) + body)


class Caller(asyncio.Protocol):
    """Sends one request after the other on a connection, without a client library: its work would count as lateness."""

    def __init__(self, port: int, figures: Figures, ended: Callable[["Caller"], None]) -> None:
        self._port = port
        self._figures = figures
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._started = 0.0
        self._last_sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._started:
            self._end(failed=True)

    async def ask(self, body: dict[str, object]) -> None:
        """Send a request; `ended` is called when its reply is over."""
        if self._transport is None:
            await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._port)
        assert self._transport is not None
        sent = dumps({"model": "m", "user": "good", **body})
        self._data, self._started, self._last_sent = b"", time.monotonic(), 0.0
        self._transport.write(
            b"POST %b HTTP/1.1\r\nHost: proxy\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (CHAT.encode(), len(sent), sent)
        )

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if not self._data:
            self._figures.heads.append(now - self._started)
        for sent_at in map(float, _SENT_AT.findall(data)):
            self._figures.lateness.append(now - sent_at)
            self._last_sent = sent_at
        self._data = self._data[-400:] + data  # enough for the head of a short reply, and for a stream's end
        if self._data.endswith(LAST_CHUNK):
            self._figures.holds.append(now - self._last_sent)
            self._end(failed=not self._last_sent)
        elif (whole := _WHOLE.search(self._data)) and len(self._data) >= whole.end() + int(whole[2]):
            self._end(failed=whole[1] != b"200")

    def _end(self, *, failed: bool) -> None:
        self._started = 0.0
        self._figures.failed += failed
        self._ended(self)


class Callers:
    """The well-behaved ones: streams that follow each other, and chats at a steady rate."""

    def __init__(self, port: int, figures: Figures) -> None:
        self._port = port
        self._figures = figures
        self._idle: list[Caller] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0
        self._is_over = False

    async def call(self, until: Awaitable[object]) -> None:
        """Call until the other has ended."""
        for _ in range(STREAMS):
            self._stream(Caller(self._port, self._figures, self._stream))
        chats = asyncio.create_task(self._chats())
        await until
        self._is_over = True
        await chats

    def _stream(self, caller: Caller) -> None:
        if not self._is_over:
            self._ask(caller, stream=True)

    async def _chats(self) -> None:
        while not self._is_over:
            caller = self._idle.pop() if self._idle else Caller(self._port, self._figures, self._idle.append)
            self._ask(caller, stream=False)
            await asyncio.sleep(1 / CHATS_A_SECOND)

    def _ask(self, caller: Caller, *, stream: bool) -> None:
        self._count += 1
        said = {"role": "user", "content": f"{self._count} {time.monotonic()}"}
        task = asyncio.ensure_future(caller.ask({"messages": [said], "stream": stream}))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _until_told(pipe: Connection) -> object:
    return await asyncio.to_thread(pipe.recv)


def upstream_process(pipe: Connection) -> None:
    """Upstream, until it is told to end; says its address."""

    async def serve() -> None:
        async with fake_upstream() as upstream:
            upstream.on(CHAT, answer)
            pipe.send(upstream.url)
            await _until_told(pipe)

    asyncio.run(serve())


def callers_process(pipe: Connection, port: int) -> None:
    """The well-behaved callers, until they are told to end; says what they saw since they were told to begin."""
    figures = Figures()

    async def told() -> None:
        await _until_told(pipe)
        figures.clear()
        await _until_told(pipe)

    uvloop.run(Callers(port, figures).call(told()))
    pipe.send(figures)


def attacker_process(pipe: Connection, url: str, name: str, seconds: float) -> None:
    """The one caller: prepares what it sends, says so, sends it when told, and says what became of it."""
    os.nice(19)  # it stands for another machine, which takes no processor time from the others

    async def attack() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_SECONDS) as client:
            if name in ON_A_BRANCH:
                await client.post(CHAT, content=messages(20_000), headers={"X-Session-Id": "big"})
            send = ATTACKS[name]()
            pipe.send("ready")
            await _until_told(pipe)
            pipe.send(await _become_of(send(client), seconds=seconds))

    asyncio.run(attack())


async def _become_of(attack: Awaitable[object], *, seconds: float) -> str:
    """Nothing, or how it ended."""
    try:
        async with asyncio.timeout(seconds):
            await attack
    except (TimeoutError, httpx.HTTPError) as exc:
        return f"  {type(exc).__name__}"
    return ""


@contextmanager
def process(main: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    """A process of its own, which is told to end at the end of the block."""
    ours, its = get_context("spawn").Pipe()
    running = get_context("spawn").Process(target=main, args=(its, *arguments), daemon=True)
    running.start()
    its.close()
    try:
        yield ours
        with suppress(BrokenPipeError):  # it has ended
            ours.send("end")
    finally:
        running.join(_TIMEOUT_SECONDS)
        running.kill()


Attack = Callable[[httpx.AsyncClient], Awaitable[object]]


def posts(body: bytes) -> Attack:
    """A body for the chat route."""
    return lambda client: client.post(CHAT, content=body, headers={"X-User-Id": "bad"})


def messages(count: int) -> bytes:
    """A chat of many messages."""
    said = ",".join(f'{{"role":"user","content":"g{number}"}}' for number in range(count))
    return ('{"model":"m","messages":[' + said + "]}").encode()


def said(content: bytes) -> bytes:
    """A chat whose only message has this content."""
    return b'{"model":"m","messages":[{"role":"user","content":' + content + b"}]}"


async def _many(client: httpx.AsyncClient, path: str, count: int, **headers: str) -> None:
    await asyncio.gather(*(client.get(path, headers=headers) for _ in range(count)), return_exceptions=True)


async def _slow(client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield b" "
            await asyncio.sleep(0.5)
        yield b"{}"

    await asyncio.gather(*(client.post(CHAT, content=pieces()) for _ in range(50)), return_exceptions=True)


async def _keys(client: httpx.AsyncClient) -> None:
    wrong = [{"Authorization": f"Bearer sk-{number}"} for number in range(500)]
    await asyncio.gather(*(client.get("/v1/sessions", headers=each) for each in wrong), return_exceptions=True)


# Made in the process that sends them: some are large.
ATTACKS: dict[str, Callable[[], Attack]] = {
    "nothing": lambda: lambda _client: asyncio.sleep(5),
    "62 MB of [0,0,…], session_id": lambda: posts(b'{"session_id":"x","x":[' + b"0," * 31_000_000 + b"0]}"),
    "62 MB of [{},{},…]": lambda: posts(b'{"model":"m","messages":[' + b"{}," * 20_000_000 + b"{}]}"),
    "1,000,000 keys": lambda: posts(
        b'{"model":"m"' + b"".join(b',"k%d":1' % number for number in range(1_000_000)) + b"}"
    ),
    "40 MB in one string": lambda: posts(said(b'"' + b"x" * 40_000_000 + b'"')),
    "80,000 messages": lambda: posts(messages(80_000)),
    "1,000,000 messages": lambda: posts(messages(1_000_000)),
    "JSON 100,000 deep": lambda: posts(b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "1,000,000 events at once": lambda: posts(
        b'{"model":"m","stream":true,"messages":[{"role":"user","content":"flood"}]}',
    ),
    "40 reads of 1,000 messages": lambda: lambda client: _many(client, "/v1/sessions/big/messages?limit=1000", 40),
    "20 exports": lambda: lambda client: _many(client, "/v1/sessions/big/export", 20),
    "20 searches": lambda: lambda client: _many(client, "/v1/search?q=g1&limit=100", 20),
    "500 unknown keys": lambda: _keys,
    "50 slow bodies": lambda: _slow,
    "60 × /ready": lambda: lambda client: _many(client, "/ready", 60),
}

ON_A_BRANCH = ("40 reads of 1,000 messages", "20 exports", "20 searches")  # of a conversation of 20,000 messages


def resident_mb(pid: int) -> float:
    """The most memory the server has held."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(text.split("VmHWM:")[1].split()[0]) / 1024


async def unsaved(client: httpx.AsyncClient) -> int:
    """What the server says it has not saved."""
    text = (await client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("stellarchat_unsaved_total")]
    return int(sum(float(line.split()[-1]) for line in lines))


async def run(names: list[str], *, seconds: float) -> None:
    """The table, a line for each thing that is sent."""
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    titles = ("late p99.9", "worst head", "worst hold", "memory", "unsaved")
    print(f"{'one caller sends':<30}" + "".join(f"{title:>12}" for title in titles))
    for name in names:
        with tempfile.TemporaryDirectory() as folder, process(upstream_process) as upstream:
            server = ServerProcess(Path(folder), await asyncio.to_thread(upstream.recv))
            await asyncio.to_thread(server.start)
            try:
                await _line(server, name, seconds=seconds)
            finally:
                server.kill()


async def _line(server: ServerProcess, name: str, *, seconds: float) -> None:
    url = server.url.removesuffix("/v1")
    port = int(url.rsplit(":", 1)[1])
    with process(attacker_process, url, name, seconds) as attacker, process(callers_process, port) as callers:
        await asyncio.to_thread(attacker.recv)
        await asyncio.sleep(_WARM_UP_SECONDS)
        callers.send("begin")
        attacker.send("begin")
        note = await asyncio.to_thread(attacker.recv)
        await asyncio.sleep(3)
        callers.send("end")
        figures: Figures = await asyncio.to_thread(callers.recv)
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_SECONDS) as client:
        lost = await unsaved(client)
    shown = (
        f"{figures.late_ms:.0f} ms",
        f"{1000 * max(figures.heads, default=0.0):.0f} ms",
        f"{1000 * max(figures.holds, default=0.0):.0f} ms",
        f"{resident_mb(server.pid):.0f} MB",
        str(lost),
    )
    failed = f"  {figures.failed} failed" if figures.failed else ""
    print(f"{name:<30}" + "".join(f"{each:>12}" for each in shown) + failed + note, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long one thing is waited for, at most")
    parser.add_argument("names", nargs="*", help="what to send; all by default")
    given = parser.parse_args()
    asyncio.run(run(given.names or list(ATTACKS), seconds=given.seconds))


if __name__ == "__main__":
    main()
