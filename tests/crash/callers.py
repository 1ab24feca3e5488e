"""Callers that leave at a random byte, read at once what they said, or read slowly: what that does to the proxy.

`python -m tests.crash.callers --cuts 10000 --reads 1000 --slow-seconds 20` prints the figures.
"""

import argparse
import asyncio
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.crash.ledger import Chat, Verdict, judge, wait_until_settled
from tests.crash.traffic import Script, connected, request_bytes, talk
from tests.fake_upstream import DONE, FakeUpstream, chat_chunk, event, fake_upstream, gigantic, sse
from tests.serving import server_process

CHAT = "/v1/chat/completions"


@dataclass(slots=True)
class Use:
    """What a process holds."""

    files: int
    memory_mb: float

    @classmethod
    def of(cls, pid: int) -> "Use":
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(len(os.listdir(f"/proc/{pid}/fd")), pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


class QuickScript(Script):
    """Short replies, quickly."""

    def words(self, chat: Chat) -> list[tuple[float, str]]:
        dice = random.Random(f"{self.seed} {chat.name}")
        return [(0.002, f"{chat.name}:{number} ") for number in range(dice.choice((3, 10, 40)))]


async def leave_at_random_bytes(port: int, database: Path, script: Script, *, count: int, at_once: int) -> Verdict:
    """Chats that are cut by their caller; each must be stored as far as it got, and no less than its caller saw."""
    dice = random.Random(script.seed)
    chats = [script.add(Chat(f"cut-{number}", is_streamed=dice.random() < 0.8)) for number in range(count)]
    waiting = iter(chats)

    async def caller() -> None:
        for chat in waiting:
            await talk(port, chat, cut_after=dice.randrange(1, 600 + 230 * chat.text.count(" ")))

    await asyncio.gather(*(caller() for _ in range(at_once)))
    await asyncio.to_thread(wait_until_settled, database)
    await asyncio.sleep(0.5)
    verdict = await asyncio.to_thread(judge, database, chats, cut_at=0.0, behind_seconds=0.0, in_trouble=False)
    stored = await asyncio.to_thread(_names, database)
    for chat in chats:
        if chat.status is not None and chat.name not in stored:
            verdict.lost += 1
            verdict.notes.append(f"{chat.name}: not stored")
    return verdict


def _names(database: Path) -> set[str]:
    connection = sqlite3.connect(database)
    try:
        return {name for (name,) in connection.execute("SELECT content FROM messages WHERE role = 'user'")}
    finally:
        connection.close()


async def read_own_writes(port: int, script: Script, *, count: int) -> int:
    """Chat, then read the session at once: how often the reply was not there."""
    missing = 0
    for number in range(count):
        chat = script.add(Chat(f"read-{number}", is_streamed=bool(number % 2)))
        await talk(port, chat)
        shown = json.loads(await get(port, f"/v1/sessions/{chat.session_id}/messages"))
        contents = [message["content"] for message in shown.get("messages", [])]
        missing += contents[-2:] != [chat.name, chat.text]
    return missing


async def get(port: int, path: str) -> bytes:
    """The body of a GET."""
    async with connected(port) as (reader, writer):
        writer.write(f"GET {path} HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n".encode())
        _, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return body


async def read_slowly(port: int, *, is_streamed: bool, seconds: float) -> None:
    """One chat whose caller takes 1 KB a second, and leaves after a while."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(request_bytes(Chat("slow", is_streamed=is_streamed)))
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        await reader.read(1024)
        await asyncio.sleep(1)
    writer.transport.abort()


def fifty_megabytes(upstream: FakeUpstream, *, is_streamed: bool) -> None:
    """From now on every reply is this long."""
    if is_streamed:
        piece = event(chat_chunk(1, {"content": "x" * 10_000}))
        end = event(chat_chunk(1, {}, finish_reason="stop"))
        upstream.on(CHAT, sse([*[piece] * 5000, end, DONE]))
    else:
        upstream.on(CHAT, gigantic(50 * 2**20))


async def slow(upstream: FakeUpstream, port: int, pid: int, *, is_streamed: bool, seconds: float) -> None:
    """Print what one slow caller costs, and how others fare meanwhile."""
    fifty_megabytes(upstream, is_streamed=is_streamed)
    before = Use.of(pid)
    task = asyncio.create_task(read_slowly(port, is_streamed=is_streamed, seconds=seconds))
    await asyncio.sleep(2)
    script = QuickScript(99)
    upstream.on(CHAT, script.behaviour())
    peak, longest = 0.0, 0.0
    number = 0
    while not task.done():
        number += 1
        chat = script.add(Chat(f"beside-{is_streamed}-{number}", is_streamed=True))
        started = time.monotonic()
        await talk(port, chat)
        longest = max(longest, time.monotonic() - started - 0.0025 * chat.text.count(" "))
        peak = max(peak, Use.of(pid).memory_mb)
        await asyncio.sleep(0.05)
    await task
    await asyncio.sleep(1)
    after = Use.of(pid)
    print(
        f"slow caller of 50 MB ({'stream' if is_streamed else 'whole'}): RSS {before.memory_mb:.0f} MB before, "
        f"{peak:.0f} MB peak, {after.memory_mb:.0f} MB after; {number} chats beside it, "
        f"at most {longest * 1000:.0f} ms longer than upstream took",
        flush=True,
    )


async def run(given: argparse.Namespace, folder: Path) -> bool:
    """All three."""
    async with fake_upstream() as upstream:
        script = QuickScript(given.seed)
        upstream.on(CHAT, script.behaviour())
        with await asyncio.to_thread(lambda: server_process(folder, upstream.url)) as server:
            port, database = int(server.url.rsplit(":", 1)[1]), folder / "stellarchat.db"
            missing = await read_own_writes(port, script, count=given.reads)
            print(f"read at once: {given.reads} chats, {missing} missing", flush=True)
            before = Use.of(server.pid)
            verdict = await leave_at_random_bytes(port, database, script, count=given.cuts, at_once=given.at_once)
            await asyncio.sleep(6)  # idle connections to upstream are kept for four seconds
            after = Use.of(server.pid)
            print(
                f"cut by the caller: {verdict.chats} chats, {verdict.acknowledged} saw the end, "
                f"{verdict.incomplete} incomplete, lost {verdict.lost}, doubled {verdict.doubled}, "
                f"wrong {verdict.wrong}; "
                f"files {before.files} → {after.files}, RSS {before.memory_mb:.0f} → {after.memory_mb:.0f} MB, "
                f"upstream still works on {sum(not (call.answered or call.left) for call in upstream.calls)}",
                flush=True,
            )
            for note in verdict.notes[:20]:
                print("  ", note)
            if given.slow_seconds:
                await slow(upstream, port, server.pid, is_streamed=True, seconds=given.slow_seconds)
                await slow(upstream, port, server.pid, is_streamed=False, seconds=given.slow_seconds)
    return verdict.is_good and not missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--reads", type=int, default=50)
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--slow-seconds", type=float, default=0.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        is_good = asyncio.run(run(given, Path(folder)))
    sys.exit(not is_good)


if __name__ == "__main__":
    main()
