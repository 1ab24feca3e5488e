"""Proxies on one PostgreSQL server, killed under load: one at a time, and now and then the server itself.

The database is judged as an SQLite file, into which it is migrated first.
"""

import asyncio
import random
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg

from proxy.storage import migration, sqlite
from tests.crash.ledger import Chat, Verdict, judge
from tests.crash.traffic import Crowd, Script
from tests.fake_upstream import FakeUpstream
from tests.postgresql import Server, connect_for_tests
from tests.serving import ServerProcess

_SETTLED_SECONDS = 60.0
_UNSETTLED = """SELECT (SELECT COUNT(*) FROM exchanges WHERE status = 'in_progress')
                     + (SELECT COUNT(*) FROM exchange_fragments)"""


class SharedTrial:
    """Several proxies, each with a state folder of its own, on one database."""

    def __init__(
        self,
        folder: Path,
        upstream: FakeUpstream,
        server: Server,
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
        self.not_ready = 0
        self._dice = random.Random(seed)
        self._script = Script(seed, longest=longest)
        upstream.on("/v1/chat/completions", self._script.behaviour())
        self._folder, self._server, self._url = folder, server, url
        self._callers = max(1, chats // proxies)
        self._behind_seconds = behind_seconds
        self._had_trouble = False
        self._all: list[Chat] = []
        self._rounds = 0
        self._proxies = [self._proxy(number, upstream.url) for number in range(proxies)]

    def _proxy(self, number: int, upstream_url: str) -> ServerProcess:
        home = self._folder / f"host-{number}"
        home.mkdir()
        environment = {"DATABASE_URL": self._url, "STELLARCHAT_STATE_DIR": str(home / "state")}
        return ServerProcess(home, upstream_url, **environment)

    async def start(self) -> None:
        """Start every proxy."""
        await asyncio.gather(*(asyncio.to_thread(each.start) for each in self._proxies))

    def kill(self) -> None:
        """End every proxy at once."""
        for each in self._proxies:
            each.kill()

    async def kill_one(self) -> None:
        """Chat at all proxies, and kill one of them, or the server at each fifth time; start it again, and judge."""
        self._rounds += 1
        crowds = [
            Crowd(self._script, callers=self._callers, label=f"{self._script.seed}.{self._rounds}.{number}")
            for number in range(len(self._proxies))
        ]
        for crowd, proxy in zip(crowds, self._proxies, strict=True):
            crowd.start(int(proxy.url.rsplit(":", 1)[1]))
        await asyncio.sleep(self._dice.uniform(0.3, 3.0))
        cut_at = time.monotonic()
        self.kills += 1
        await self._crash()
        await asyncio.gather(*(crowd.stop() for crowd in crowds))
        await self._judge([chat for crowd in crowds for chat in crowd.chats], cut_at=cut_at)

    async def _crash(self) -> None:
        if self.kills % 5 == 0:
            await self._crash_server()
        else:
            await self._crash_proxy(self._dice.choice(self._proxies))

    async def _crash_server(self) -> None:
        self._had_trouble = True
        await asyncio.to_thread(self._server.stop, signal.SIGKILL)
        await asyncio.sleep(self._dice.uniform(0.0, 3.0))
        await asyncio.to_thread(self._server.start)

    async def _crash_proxy(self, victim: ServerProcess) -> None:
        victim.kill()
        if self._dice.random() < 0.25:  # its chats are ended by the others
            await asyncio.to_thread(self._wait, self._count_of_strangers)
        await asyncio.to_thread(victim.start)

    async def _judge(self, chats: list[Chat], *, cut_at: float) -> None:
        self._all += chats
        await asyncio.to_thread(self._wait, lambda connection: int(connection.execute(_UNSETTLED).fetchone()[0]))
        self.verdict.add(await asyncio.to_thread(self._judged, chats, cut_at, self._behind_seconds))

    async def finish(self) -> None:
        """Stop every proxy, and judge all chats of all rounds once more."""
        codes = [await asyncio.to_thread(each.stop) for each in self._proxies]
        final = await asyncio.to_thread(self._judged, self._all, 0.0, 0.0)
        self.verdict.lost += final.lost
        self.verdict.doubled += final.doubled
        self.verdict.wrong += final.wrong + sum(code != 0 for code in codes)
        self.verdict.notes += final.notes + [f"exit code {code}" for code in codes if code]

    def _judged(self, chats: list[Chat], cut_at: float, behind_seconds: float) -> Verdict:
        file = self._folder / "judged.db"
        for suffix in ("", "-wal", "-shm"):
            file.with_name(file.name + suffix).unlink(missing_ok=True)
        with closing(connect_for_tests(self._url)) as source, closing(sqlite.connect(file)) as target:
            sqlite.prepare(target)
            migration.copy(*migration.sides(source, target), progress=lambda _done, _total: None)
        return judge(file, chats, cut_at=cut_at, behind_seconds=behind_seconds, in_trouble=self._had_trouble)

    def _count_of_strangers(self, connection: Any) -> int:
        """Exchanges in progress of processes that are not seen any more."""
        text = """SELECT COUNT(*) FROM exchanges WHERE status = 'in_progress' AND worker_id NOT IN
                  (SELECT worker_id FROM workers WHERE seen_at > clock_timestamp() - INTERVAL '10 seconds')"""
        seen = "SELECT COUNT(*) FROM workers WHERE seen_at > clock_timestamp() - INTERVAL '10 seconds'"
        is_gone = connection.execute(seen).fetchone()[0] < len(self._proxies)
        return int(connection.execute(text).fetchone()[0]) if is_gone else 1

    def _wait(self, count: Any) -> None:
        deadline = time.monotonic() + _SETTLED_SECONDS
        while time.monotonic() < deadline:
            with psycopg.connect(self._url) as connection:
                if not count(connection):
                    return
            time.sleep(0.1)
        self.verdict.wrong += 1
        self.verdict.notes.append(f"not settled after {_SETTLED_SECONDS:.0f} s")


def refuse_options(given: Any) -> None:
    """What only a file can be put into."""
    if given.trouble or given.locked or given.disk_full or given.workers != 1:
        raise SystemExit("--database postgresql goes with --proxies, --kills, --chats and --seed alone")
