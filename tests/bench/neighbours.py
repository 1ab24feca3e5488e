"""`python -m tests.bench.neighbours`: 50 streams and 20 chats a second, while one caller sends what could stop them.

For each thing it sends: how late the others' tokens were (99.9 % of them, against the moments upstream sent them), the
slowest head of a chat, the longest time an end was held, the server's memory, and what was not saved. The callers, the
one caller, upstream and the server are a process each: the row "nothing" says what this machine does to all of them.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import httpx

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


async def stream(client: httpx.AsyncClient, name: str, figures: Figures) -> None:
    """One stream: how late each token and the end came."""
    body = {"model": "m", "stream": True, "user": "good", "messages": [{"role": "user", "content": name}]}
    ended_at = 0.0
    try:
        async with client.stream("POST", CHAT, json=body) as response:
            async for line in response.aiter_lines():
                now = time.monotonic()
                if line == "data: [DONE]":
                    figures.holds.append(now - ended_at)
                elif line.startswith("data: "):
                    text = json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                    sent_at = float(text.split()[-1]) if text.strip() else now
                    figures.lateness.append(now - sent_at)
                    ended_at = sent_at
    except (httpx.HTTPError, ValueError, KeyError, IndexError):
        figures.failed += 1


async def chat(client: httpx.AsyncClient, name: str, figures: Figures) -> None:
    """One chat: its head comes when it is saved."""
    started = time.monotonic()
    body = {"model": "m", "user": "good", "messages": [{"role": "user", "content": name}]}
    try:
        response = await client.post(CHAT, json=body)
    except httpx.HTTPError:
        figures.failed += 1
        return
    figures.failed += response.status_code != 200
    figures.heads.append(time.monotonic() - started)


@asynccontextmanager
async def good_callers(url: str, figures: Figures) -> AsyncIterator[None]:
    """The well-behaved ones, while the block lasts."""
    limits = httpx.Limits(max_connections=STREAMS + 200)
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_SECONDS, limits=limits) as client:
        stopping = asyncio.Event()

        async def streams(number: int) -> None:
            count = 0
            while not stopping.is_set():
                count += 1
                await stream(client, f"s{number}.{count}.{time.monotonic()}", figures)

        async def chats() -> None:
            count, running = 0, set()
            while not stopping.is_set():
                count += 1
                running.add(asyncio.create_task(chat(client, f"c{count}.{time.monotonic()}", figures)))
                await asyncio.sleep(1 / CHATS_A_SECOND)
            await asyncio.gather(*running)

        tasks = [asyncio.create_task(streams(number)) for number in range(STREAMS)]
        tasks.append(asyncio.create_task(chats()))
        try:
            yield
        finally:
            stopping.set()
            await asyncio.gather(*tasks)


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


def callers_process(pipe: Connection, url: str) -> None:
    """The well-behaved callers, until they are told to end; says what they saw since they were told to begin."""

    async def call() -> Figures:
        figures = Figures()
        async with good_callers(url, figures):
            await _until_told(pipe)
            figures.lateness.clear()
            figures.heads.clear()
            figures.holds.clear()
            figures.failed = 0
            await _until_told(pipe)
        return figures

    pipe.send(asyncio.run(call()))


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


ATTACKS: dict[str, Attack] = {
    "nothing": lambda _client: asyncio.sleep(5),
    "62 MB of [0,0,…], session_id": posts(b'{"session_id":"x","x":[' + b"0," * 31_000_000 + b"0]}"),
    "62 MB of [{},{},…]": posts(b'{"model":"m","messages":[' + b"{}," * 20_000_000 + b"{}]}"),
    "1,000,000 keys": posts(b'{"model":"m"' + b"".join(b',"k%d":1' % number for number in range(1_000_000)) + b"}"),
    "40 MB in one string": posts(b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * 40_000_000 + b'"}]}'),
    "80,000 messages": posts(messages(80_000)),
    "1,000,000 messages": posts(messages(1_000_000)),
    "JSON 100,000 deep": posts(b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "1,000,000 events at once": posts(
        b'{"model":"m","stream":true,"messages":[{"role":"user","content":"flood"}]}',
    ),
    "40 reads of 1,000 messages": lambda client: _many(client, "/v1/sessions/big/messages?limit=1000", 40),
    "20 exports": lambda client: _many(client, "/v1/sessions/big/export", 20),
    "20 searches": lambda client: _many(client, "/v1/search?q=g1&limit=100", 20),
    "500 unknown keys": _keys,
    "50 slow bodies": _slow,
    "60 × /ready": lambda client: _many(client, "/ready", 60),
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
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_SECONDS) as bad:
        if name in ON_A_BRANCH:
            await bad.post(CHAT, content=messages(20_000), headers={"X-Session-Id": "big"})
        with process(callers_process, url) as callers:
            await asyncio.sleep(_WARM_UP_SECONDS)
            callers.send("begin")
            note = await _attack(bad, name, seconds=seconds)
            await asyncio.sleep(3)
            callers.send("end")
            figures: Figures = await asyncio.to_thread(callers.recv)
        shown = (
            f"{figures.late_ms:.0f} ms",
            f"{1000 * max(figures.heads, default=0.0):.0f} ms",
            f"{1000 * max(figures.holds, default=0.0):.0f} ms",
            f"{resident_mb(server.pid):.0f} MB",
            str(await unsaved(bad)),
        )
        failed = f"  {figures.failed} failed" if figures.failed else ""
        print(f"{name:<30}" + "".join(f"{each:>12}" for each in shown) + failed + note, flush=True)


async def _attack(bad: httpx.AsyncClient, name: str, *, seconds: float) -> str:
    """What became of it, where it did not end in time."""
    try:
        async with asyncio.timeout(seconds):
            await ATTACKS[name](bad)
    except (TimeoutError, httpx.HTTPError) as exc:
        return f"  {type(exc).__name__}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long one thing is waited for, at most")
    parser.add_argument("names", nargs="*", help="what to send; all by default")
    given = parser.parse_args()
    asyncio.run(run(given.names or list(ATTACKS), seconds=given.seconds))


if __name__ == "__main__":
    main()
