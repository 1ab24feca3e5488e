"""Rounds of a crash test: start, chat, kill at a random moment, start again, judge."""

import asyncio
import os
import random
import signal
import time
from pathlib import Path

from tests.crash.ledger import Chat, Verdict, judge, wait_until_settled
from tests.crash.traffic import Crowd, Script, status_of
from tests.crash.trouble import Trouble
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
        longest: int = 150,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.script = Script(seed, longest=longest)
        upstream.on("/v1/chat/completions", self.script.behaviour())
        self.dice = random.Random(seed)
        self.folder = folder
        self.database = folder / "stellarchat.db"
        self.server = ServerProcess(folder, upstream.url, **(environment or {}))
        self.verdict = Verdict()
        self.kills = 0
        self.probes: list[tuple[int, int]] = []
        self.not_ready = 0
        self._had_trouble = False
        self.expects_not_ready = True  # in trouble that lasts; some kinds are none for the database
        self._upstream = upstream
        self._callers = chats
        self.workers = workers
        self._behind_seconds = behind_seconds
        self._all: list[Chat] = []
        self._rounds = 0

    @property
    def pids(self) -> list[int]:
        """The processes that write."""
        return worker_pids(self.server.pid) if self.workers > 1 else [self.server.pid]

    @property
    def port(self) -> int:
        """Where the server listens."""
        return int(self.server.url.rsplit(":", 1)[1])

    async def start(self) -> None:
        """Start the server, and wait until it is ready."""
        await asyncio.to_thread(self.server.start, "--workers", str(self.workers))

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
        process = await asyncio.to_thread(self.server.spawn, "--workers", str(self.workers))
        await asyncio.sleep(self.dice.uniform(0.0, 1.2))
        os.killpg(process.pid, signal.SIGKILL)
        await asyncio.to_thread(process.wait, 10)
        self.kills += 1
        await self.start()
        await self.judge([], cut_at=time.monotonic())

    async def chat_through(self, trouble: Trouble, *, seconds: float, kills: bool) -> None:
        """Chat while the database is in trouble for a while; with `kills`, kill everything within it."""
        self._had_trouble = True
        crowd = self.crowd()
        crowd.start(self.port)
        await asyncio.sleep(self.dice.uniform(0.2, 1.5))
        probe = asyncio.create_task(self._probe())
        with trouble():
            await asyncio.sleep(self.dice.uniform(0.5, seconds) if kills else seconds)
            cut_at = time.monotonic()
            probe.cancel()
            await asyncio.wait([probe])
            if kills:
                self.server.kill()
                self.kills += 1
        if kills:
            await crowd.stop()
            await self.start()
        else:
            await asyncio.to_thread(self._wait_until_ready)
            await asyncio.sleep(0.5)
            await crowd.stop()
            self._judge_probes(seconds)
        self.probes.clear()
        await self.judge(crowd.chats, cut_at=cut_at)

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            self.probes.append((await status_of(self.port, "/health"), await status_of(self.port, "/ready")))

    def _judge_probes(self, seconds: float) -> None:
        self.not_ready += sum(ready == 503 for _, ready in self.probes)
        if any(health != 200 for health, _ in self.probes):
            self.verdict.wrong += 1
            self.verdict.notes.append("/health did not answer 200 in trouble")
        if self.expects_not_ready and seconds >= 4 and not any(ready == 503 for _, ready in self.probes):
            self.verdict.wrong += 1
            self.verdict.notes.append(f"/ready did not answer 503 in trouble: {[ready for _, ready in self.probes]}")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if asyncio.run(status_of(self.port, "/ready")) == 200:
                return
            time.sleep(0.05)
        self.verdict.wrong += 1
        self.verdict.notes.append("not ready 20 s after the trouble")

    async def judge(self, chats: list[Chat], *, cut_at: float, survivors: bool = False) -> None:
        """Compare this round's chats with the database; where others survived, each broke off at its own moment."""
        self._all += chats
        await asyncio.to_thread(self._wait_until_retried)
        await asyncio.to_thread(wait_until_settled, self.database, seconds=20)
        judged = await asyncio.to_thread(
            judge,
            self.database,
            chats,
            cut_at=cut_at,
            behind_seconds=self._behind_seconds,
            in_trouble=self._had_trouble,
        )
        left = [path.name for path in self.folder.glob("stellarchat.db-spill-*")]
        if len(left) > self.workers:
            judged.wrong += 1
            judged.notes.append(f"spill files: {left}")
        self.verdict.add(judged)

    def _wait_until_retried(self) -> None:
        """What the database has refused is tried again by the server."""
        deadline = time.monotonic() + 20
        while list(self.folder.glob("stellarchat.db-refused*")) and time.monotonic() < deadline:
            time.sleep(0.05)

    async def finish(self) -> None:
        """Stop the server, and judge all chats of all rounds once more."""
        code = await asyncio.to_thread(self.server.stop)
        final = await asyncio.to_thread(
            judge, self.database, self._all, cut_at=0.0, behind_seconds=0.0, in_trouble=self._had_trouble
        )
        self.verdict.lost += final.lost
        self.verdict.doubled += final.doubled
        self.verdict.wrong += final.wrong + (code != 0)
        self.verdict.notes += final.notes + ([f"exit code {code}"] if code else [])


def worker_pids(pid: int) -> list[int]:
    """The worker processes of a supervisor."""
    children = [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
