"""`python -m tests.bench.pages`: what ten people on the history page cost the streams beside them, and a large session.

200 streams of 50 tokens a second run alone, and while ten pages are open and being used, each by a program that does
what the page's script does (asks for what is live, for Markdown, searches while typing) and opens another page each
half second. In between, the pages are another server's: what the tokens lose then is what the machine has no time for,
not what pages do to the streams of their own server. For each: how late the tokens came, against the pace of their
stream and its most punctual token. Then a session of 5,000 messages and one of 50 MB are opened ten times: how long
that takes, and the server's memory.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import uvloop

from tests.bench import client, figures, machine, relays, wire
from tests.serving import ServerProcess
from tests.stored import assistant, chat, choice, exchange, opened, outcome, user

_TEXT = "**The bridge** over the river is old; `code` and a list:\n\n" + "- a point about the harbour\n" * 12
_TYPED = "river br"


class _Timed(client.Connection):
    """Notes when each token came, less the time that its stream's pace gives it."""

    def send(self) -> None:
        self.events = 0
        self.offsets: list[float] = []
        super().send()

    def data_received(self, data: bytes) -> None:
        self.events += data.count(b"data: ")
        if wire.LAST not in data:  # the end of a reply waits for its commit
            self.offsets.append((time.monotonic() - self.events / self.run.load.rate) * 1e3)
        super().data_received(data)

    def end(self, error: str | None) -> None:
        _lateness.extend(each - min(self.offsets) for each in self.offsets)
        super().end(error)


class _TimedRun(client.Run):
    connection = _Timed


_lateness: list[float] = []


def streams(load: client.Load) -> list[float]:
    """Run the load in a process of its own; the lateness of its tokens in milliseconds, in order."""
    arguments = [sys.executable, "-m", "tests.bench.pages", "--client", json.dumps(dataclasses.asdict(load))]
    ran = subprocess.run(arguments, stdout=subprocess.PIPE, check=True, timeout=load.seconds + load.deadline_s)
    return [float(each) for each in json.loads(ran.stdout)]


def _be_client(load: client.Load) -> None:
    ended = uvloop.run(_TimedRun(load).perform())
    if ended.errors:
        raise SystemExit(f"streams failed: {ended.errors}")
    print(json.dumps(sorted(round(each, 2) for each in _lateness)))


class Visitors:
    """People with a page open each, in a thread of their own event loop."""

    def __init__(self, url: str, sessions: list[str], *, count: int) -> None:
        self._url, self._sessions, self._count = url, sessions, count
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))
        self.took: list[float] = []

    def __enter__(self) -> "Visitors":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(60)

    async def _all(self) -> None:
        await asyncio.gather(*(self._one(number) for number in range(self._count)))

    async def _one(self, number: int) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=30) as http:
            while not self._is_over.is_set():
                session_id = self._sessions[number % len(self._sessions)]
                for path in ("/ui", f"/ui/s/{session_id}", "/ui/usage", "/ui/search?q=harbour"):
                    await self._open(http, path)
                for end in range(1, len(_TYPED) + 1):
                    await self._get(http, "/ui/search", q=_TYPED[:end])
                    await asyncio.sleep(0.1)

    async def _open(self, http: httpx.AsyncClient, path: str) -> None:
        page = await self._get(http, path)
        rich = re.findall(r'data-rich="([^"]+)"', page)
        live = re.search(r'data-live="([^"]+)"', page)
        for address in rich[-8:]:
            await self._get(http, address)
        if live:
            await self._get(http, live[1].replace("&amp;", "&"))
        await asyncio.sleep(0.5)

    async def _get(self, http: httpx.AsyncClient, path: str, **query: str) -> str:
        if self._is_over.is_set():
            return ""
        began = time.monotonic()
        response = await http.get(path, params=query or None)
        self.took.append((time.monotonic() - began) * 1e3)
        if response.status_code not in (200, 204, 304):
            raise SystemExit(f"{path}: {response.status_code}")
        return response.text


def beside(folder: Path, options: argparse.Namespace) -> None:
    """The table of the streams, alone and beside pages, one after the other so often."""
    with relays.upstream() as upstream:
        sessions = _tell(folder / "stellarchat.db")
        (folder / "other").mkdir()
        shutil.copy(folder / "stellarchat.db", folder / "other")
        server, other = (
            ServerProcess(each, f"http://127.0.0.1:{upstream.port}") for each in (folder, folder / "other")
        )
        relays.set_pace(upstream.port, tokens=200, rate=50)
        print(f"{'':<28}{'p50':>8}{'p99':>8}{'p99.9':>8}   ms late; pages: p50, p99, how many")
        try:
            server.start()
            other.start()
            port = int(server.url.rpartition(":")[2])
            load = client.Load(
                port=port, stream=True, connections=options.streams, seconds=options.seconds, deadline_s=60, ramp_s=2
            )
            for _ in range(options.rounds):
                _line("alone", streams(load))
                for name, asked in (("another server's", other), ("its own", server)):
                    with Visitors(asked.url, sessions, count=options.pages) as visitors:
                        late = streams(load)
                    _line(f"{options.pages} pages, {name}", late, visitors.took)
        finally:
            server.stop()
            other.stop()


def _line(name: str, late: Sequence[float], took: Sequence[float] = ()) -> None:
    shares = "".join(f"{figures.quantile(late, share):>8.1f}" for share in (0.5, 0.99, 0.999))
    pages = f"   {figures.quantile(took, 0.5):.0f}, {figures.quantile(took, 0.99):.0f}, {len(took)}" if took else ""
    print(f"{name:<28}{shares}{pages}", flush=True)


def _tell(path: Path) -> list[str]:
    sessions = []
    with opened(path) as connection:
        for number in range(200):
            turns = [user(f"question {number}"), assistant(_TEXT), user("and then?")]
            sessions.append(chat(connection, exchange(turns, user_id=f"user-{number % 7}"), outcome(choice(_TEXT))))
    return sessions


def large(folder: Path) -> None:
    """The table of the large sessions."""
    path = folder / "large.db"
    many = [each for number in range(2500) for each in (user(f"question {number}"), assistant(_TEXT))]
    with opened(path) as connection:
        told = {"5,000 messages": chat(connection, exchange(many[:-1]), outcome(choice(_TEXT)))}
        long = [user("x" * 5_000_000 + f" {number}") for number in range(9)]
        told["50 MB"] = chat(connection, exchange(long), outcome(choice("y" * 5_000_000)))
    server = ServerProcess(folder, "http://127.0.0.1:9", DATABASE_URL=f"sqlite:///{path}")
    server.start()
    try:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            http.get("/ui")
            print(f"{'session':<16}{'first':>8}{'median':>8}{'slowest':>8} ms  {'before':>8}{'after':>8} MB")
            for name, session_id in told.items():
                took = [open_page(http, f"/ui/s/{session_id}")]
                before = _resident_mb(server.pid)
                took += [open_page(http, f"/ui/s/{session_id}") for _ in range(10)]
                after = _resident_mb(server.pid)
                times = f"{took[0]:>8.0f}{statistics.median(took[1:]):>8.0f}{max(took[1:]):>8.0f}"
                print(f"{name:<16}{times}     {before:>8.0f}{after:>8.0f}")
    finally:
        server.stop()


def open_page(http: httpx.Client, path: str) -> float:
    """Milliseconds until a page has come whole. Raises SystemExit if it is not a 200."""
    began = time.monotonic()
    response = http.get(path)
    took = (time.monotonic() - began) * 1e3
    if response.status_code != 200:
        raise SystemExit(f"{path}: {response.status_code}")
    return took


def _resident_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pages", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pages", type=int, default=10)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        _be_client(client.Load(**json.loads(options.client)))
        return
    machine.prepare(cores=2)
    with tempfile.TemporaryDirectory(prefix="pages-") as folder:
        print(f"load {os.getloadavg()[0]:.1f}")
        with suppress(KeyboardInterrupt):
            beside(Path(folder), options)
            large(Path(folder))


if __name__ == "__main__":
    main()
