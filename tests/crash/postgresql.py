"""Proxies on one PostgreSQL server, killed under load: one at a time, and now and then the server itself.

The callers of the others chat on meanwhile. Each some of the kills have a database of their own, which is judged at the
end: it is migrated into an SQLite file, which takes longer the more chats it has.
"""

import argparse
import asyncio
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, NamedTuple

import psycopg

from proxy.maintenance import check
from proxy.maintenance.check import OF_FILES
from proxy.storage import migration, sqlite
from tests.crash.ledger import Part, Verdict, judge_parts
from tests.crash.traffic import Crowd, Script
from tests.fake_upstream import FakeUpstream, fake_upstream
from tests.postgresql import Server, connect_for_tests, database_url, own_server
from tests.serving import ServerProcess

_SETTLED_SECONDS = 60.0
_GONE_SECONDS = 10.0
_BACK_AT_ONCE = 5  # each has up to 6 connections, of the server's 100
_UNSETTLED = """SELECT (SELECT COUNT(*) FROM exchanges WHERE status = 'in_progress')
                     + (SELECT COUNT(*) FROM exchange_fragments)"""
_OF_STRANGERS = f"""SELECT COUNT(*) FROM exchanges WHERE status = 'in_progress' AND worker_id NOT IN
                    (SELECT worker_id FROM workers
                     WHERE seen_at > clock_timestamp() - INTERVAL '{_GONE_SECONDS:.0f} seconds')"""


@dataclass(slots=True)
class Total:
    """The figures of all databases."""

    verdict: Verdict = field(default_factory=Verdict)
    kills: int = 0
    not_ready: int = 0

    def add(self, trial: "SharedTrial") -> None:
        """Take the figures of one database."""
        self.verdict.add(trial.verdict)
        self.kills += trial.kills


class _Life(NamedTuple):
    """A process from its start to its end, and its callers."""

    proxy: ServerProcess
    crowd: Crowd


class SharedTrial:
    """Several proxies, each with a state folder of its own, on one database."""

    def __init__(
        self,
        server: Server,
        folder: Path,
        upstream: FakeUpstream,
        url: str,
        *,
        seed: int,
        chats: int,
        proxies: int,
        behind_seconds: float,
        longest: int = 150,
    ) -> None:
        self.verdict = Verdict()
        self.kills = 0
        self._lives = 0
        self._dice = random.Random(seed)
        self._script = Script(seed, longest=longest)
        upstream.on("/v1/chat/completions", self._script.behaviour())
        self._upstream_url = upstream.url
        self._folder, self._server, self._url = folder, server, url
        self._callers = max(1, chats // proxies)
        self._behind_seconds = behind_seconds
        self._hosts: list[ServerProcess] = []
        self._living: list[_Life] = []
        self._away: list[ServerProcess] = []  # killed, and their hosts did not come back
        self._parts: list[Part] = []
        for _ in range(proxies):
            self._new_host()

    def _new_host(self) -> ServerProcess:
        home = self._folder / f"host-{len(self._hosts)}"
        home.mkdir()
        environment = {"DATABASE_URL": self._url, "STELLARCHAT_STATE_DIR": str(home / "state")}
        self._hosts.append(ServerProcess(home, self._upstream_url, **environment))
        return self._hosts[-1]

    async def start(self) -> None:
        """Start every proxy, and chat at each."""
        self._living = await asyncio.gather(*map(self._live, self._hosts))

    async def _live(self, proxy: ServerProcess) -> _Life:
        self._lives += 1
        crowd = Crowd(self._script, callers=self._callers, label=f"{self._script.seed}.{self._lives}")
        await asyncio.to_thread(proxy.start)
        crowd.start(int(proxy.url.rsplit(":", 1)[1]))
        return _Life(proxy, crowd)

    def kill(self) -> None:
        """End every proxy at once."""
        for each in self._hosts:
            if each not in self._away:
                each.kill()

    async def kill_one(self) -> None:
        """Chat for a while; kill one of the proxies, or the server at each fifth time, and start it again."""
        await asyncio.sleep(self._dice.uniform(0.3, 3.0))
        self.kills += 1
        await self._crash()

    async def _crash(self) -> None:
        if self.kills % 5 == 0:
            await self._crash_server()
        else:
            await self._crash_proxy(self._dice.randrange(len(self._living)))

    async def _crash_server(self) -> None:
        await asyncio.to_thread(self._server.stop, signal.SIGKILL)
        await asyncio.sleep(self._dice.uniform(0.0, 3.0))
        await asyncio.to_thread(self._server.start)

    async def _crash_proxy(self, number: int) -> None:
        proxy, crowd = self._living[number]
        cut_at = time.monotonic()
        await asyncio.to_thread(proxy.kill)
        await self._end(crowd, cut_at=cut_at)
        if self._dice.random() < 0.25:  # its chats are ended by the others
            self._away.append(proxy)
            proxy = self._new_host()
        self._living[number] = await self._live(proxy)

    async def _end(self, crowd: Crowd, *, cut_at: float | None = None) -> None:
        await crowd.stop()
        # always in trouble: a commit of more than 0.4 s is spilled, too, and its session not found for so long
        self._parts.append(Part(crowd.chats, cut_at or time.monotonic(), had_trouble=True))

    async def finish(self) -> None:
        """Let those that were away come back, stop every proxy, and judge all chats."""
        if self._away:
            await asyncio.sleep(_GONE_SECONDS)  # until nobody believes that they live
            await asyncio.to_thread(self._wait, _OF_STRANGERS)
            some = asyncio.Semaphore(_BACK_AT_ONCE)
            await asyncio.gather(*(self._come_back(each, some) for each in self._away))
        await asyncio.gather(*(self._end(life.crowd) for life in self._living))
        await asyncio.to_thread(self._wait, _UNSETTLED)
        await asyncio.gather(*(self._stop(life.proxy) for life in self._living))
        self.verdict.add(await asyncio.to_thread(self._judged))

    async def _come_back(self, proxy: ServerProcess, some: asyncio.Semaphore) -> None:
        """Start it, which stores what it had left, and stop it."""
        async with some:
            try:
                await asyncio.to_thread(proxy.start)
                await self._stop(proxy)
            except BaseException:
                proxy.kill()
                raise

    async def _stop(self, proxy: ServerProcess) -> None:
        if code := await asyncio.to_thread(proxy.stop):
            self._wrong(f"exit code {code}")

    def _judged(self) -> Verdict:
        file = self._folder / "judged.db"
        with closing(connect_for_tests(self._url)) as source, closing(sqlite.connect(file)) as target:
            for kind, find in check.steps(self._folder / "none", living=check.living_anywhere):
                for problem in () if kind in OF_FILES else find(source):
                    self._wrong(f"check: {problem.message}")
            sqlite.prepare(target)
            migration.copy(*migration.sides(source, target), progress=lambda _done, _total: None)
        return judge_parts(file, self._parts, behind_seconds=self._behind_seconds)

    def _wait(self, query: str) -> None:
        """Wait until a query counts nothing."""
        deadline = time.monotonic() + _SETTLED_SECONDS
        while time.monotonic() < deadline:
            with psycopg.connect(self._url) as connection:
                if connection.execute(query).fetchall() == [(0,)]:
                    return
            time.sleep(0.1)
        self._wrong(f"not settled after {_SETTLED_SECONDS:.0f} s")

    def _wrong(self, note: str) -> None:
        self.verdict.wrong += 1
        self.verdict.notes.append(note)


async def run_shared(given: argparse.Namespace, show: Callable[[Total], None]) -> Total:
    """All kills, on a new database for each some of them."""
    total = Total()
    with own_server() as server:
        while total.kills < given.kills:
            with database_url(server.url) as url:
                trial = await run_on(url, partial(SharedTrial, server), given, total)
            total.add(trial)
            show(total)
    return total


async def run_on(url: str, trial: Callable[..., SharedTrial], given: argparse.Namespace, total: Total) -> SharedTrial:
    """The next kills, on one database."""
    kills = min(given.batch, given.kills - total.kills)
    with TemporaryDirectory() as folder:
        async with fake_upstream() as upstream:
            made = trial(
                Path(folder),
                upstream,
                url,
                seed=given.seed * 10_000 + total.kills,
                chats=given.chats,
                proxies=given.proxies,
                behind_seconds=given.behind,
            )
            try:
                await made.start()
                for _ in range(kills):
                    await made.kill_one()
                await made.finish()
            finally:
                made.kill()
        if not made.verdict.is_good:
            print(*made.verdict.notes, f"kept: {_keep(Path(folder))}", sep="\n", flush=True)
    return made


def _keep(folder: Path) -> str:
    """The database and the logs, to find out why."""
    return str(shutil.copytree(folder, mkdtemp(prefix="stellarchat-crash-"), dirs_exist_ok=True))


def refuse_options(given: Any) -> None:
    """What only a file can be put into."""
    if given.trouble or given.locked or given.disk_full or given.workers != 1:
        raise SystemExit(
            "--database postgresql goes with --proxies, --kills, --batch, --chats, --behind and --seed alone"
        )
