"""Rounds of a crash test: start, chat, kill at a random moment, start again, judge."""

import asyncio
import os
import random
import signal
import subprocess
import time
from pathlib import Path

from tests.crash.ledger import Chat, Verdict, judge, wait_until_settled
from tests.crash.traffic import Crowd, Script
from tests.fake_upstream import FakeUpstream
from tests.serving import ServerProcess


class Trial:
    """One database, killed again and again."""

    def __init__(
        self,
        folder: Path,
        upstream: FakeUpstream,
        *,
        seed: int,
        chats: int,
        workers: int,
        behind_seconds: float,
        **environment: str,
    ) -> None:
        self.script = Script(seed)
        upstream.on("/v1/chat/completions", self.script.behaviour())
        self.dice = random.Random(seed)
        self.folder = folder
        self.database = folder / "stellarchat.db"
        self.server = ServerProcess(folder, upstream.url, **environment)
        self.verdict = Verdict()
        self.kills = 0
        self._upstream = upstream
        self._callers = chats
        self._workers = workers
        self._behind_seconds = behind_seconds
        self._all: list[Chat] = []
        self._rounds = 0

    @property
    def port(self) -> int:
        """Where the server listens."""
        return int(self.server.url.rsplit(":", 1)[1])

    async def start(self) -> None:
        """Start the server, and wait until it is ready."""
        await asyncio.to_thread(self.server.start, "--workers", str(self._workers))

    def crowd(self) -> Crowd:
        """Callers for one round."""
        self._rounds += 1
        return Crowd(self.script, callers=self._callers, label=f"{self.script.seed}.{self._rounds}")

    async def kill_while_chatting(self) -> None:
        """Chat for a random time, kill everything, start again, and judge."""
        crowd = self.crowd()
        crowd.start(self.port)
        await asyncio.sleep(self.dice.uniform(0.05, 3.0))
        cut_at = time.monotonic()
        self.server.kill()
        self.kills += 1
        await crowd.stop()
        await self.start()
        await self.judge(crowd.chats, cut_at=cut_at)

    async def kill_one_worker(self) -> None:
        """Kill one of the workers; the others' chats go on, and its own are saved by the one that takes its place."""
        crowd = self.crowd()
        crowd.start(self.port)
        await asyncio.sleep(self.dice.uniform(0.5, 2.5))
        victim = self.dice.choice(worker_pids(self.server.pid))
        cut_at = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        self.kills += 1
        await asyncio.sleep(self.dice.uniform(0.0, 2.0))
        await crowd.stop()
        await asyncio.to_thread(wait_until_settled, self.database)
        await self.judge(crowd.chats, cut_at=cut_at, survivors=True)

    async def kill_while_starting(self) -> None:
        """Kill a start at a random moment, then start for good."""
        self.server.kill()
        process = await asyncio.to_thread(self.server.spawn, "--workers", str(self._workers))
        await asyncio.sleep(self.dice.uniform(0.0, 1.2))
        os.killpg(process.pid, signal.SIGKILL)
        await asyncio.to_thread(process.wait, 10)
        self.kills += 1
        await self.start()
        await self.judge([], cut_at=time.monotonic())

    async def judge(self, chats: list[Chat], *, cut_at: float, survivors: bool = False) -> None:
        """Compare this round's chats with the database; where others survived, each broke off at its own moment."""
        self._all += chats
        await asyncio.to_thread(wait_until_settled, self.database, seconds=10)
        judged = await asyncio.to_thread(
            judge, self.database, chats, cut_at=cut_at, behind_seconds=self._behind_seconds
        )
        left = [path.name for path in self.folder.glob("stellarchat.db-spill-*")]
        if len(left) > self._workers:
            judged.wrong += 1
            judged.notes.append(f"spill files: {left}")
        self.verdict.add(judged)

    async def finish(self) -> None:
        """Stop the server, and judge all chats of all rounds once more."""
        code = await asyncio.to_thread(self.server.stop)
        final = await asyncio.to_thread(judge, self.database, self._all, cut_at=0.0, behind_seconds=0.0)
        self.verdict.lost += final.lost
        self.verdict.doubled += final.doubled
        self.verdict.wrong += final.wrong + (code != 0)
        self.verdict.notes += final.notes + ([f"exit code {code}"] if code else [])


def worker_pids(pid: int) -> list[int]:
    """The worker processes of a supervisor."""
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    lines = [line.split(None, 1) for line in listed.stdout.splitlines()]
    return [int(number) for number, args in lines if "spawn_main" in args]
