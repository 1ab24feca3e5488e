"""The crash tests, short: `python -m tests.crash` and `python -m tests.crash.callers` run them for long."""

import asyncio
from pathlib import Path

import pytest

from tests.crash import kinds
from tests.crash.callers import CHAT, QuickScript, leave_at_random_bytes, read_own_writes
from tests.crash.ledger import Verdict
from tests.crash.rounds import Trial
from tests.crash.trouble import lock, no_growth
from tests.fake_upstream import fake_upstream
from tests.serving import running_proxy, settings_for

# How far behind a cut reply is, is measured in the long runs: a slow machine must not fail these.
BEHIND_SECONDS = 30.0


async def trial(folder: Path, *, workers: int, kind: str) -> Verdict:
    special = kinds.environment(kind, folder)
    if special is None:
        pytest.skip(f"{kind}: no C compiler on this machine")
    async with fake_upstream() as upstream:
        trial = Trial(
            folder,
            upstream,
            seed=1,
            chats=15,
            workers=workers,
            behind_seconds=BEHIND_SECONDS,
            longest=40,
            environment={"STELLARCHAT_COMMIT_TIMEOUT_SECONDS": "2", **special},
        )
        await trial.start()
        try:
            if kind == "kill":
                await trial.kill_while_chatting()
                await trial.kill_while_starting()
            elif kind == "kill a worker":
                await trial.kill_one_worker()
            elif kind in kinds.KINDS:
                made = kinds.trouble(kind, trial)
                await trial.chat_through(made, seconds=2.5, kills=False)
                await trial.chat_through(made, seconds=1.5, kills=True)
            elif kind == "lock":
                await trial.chat_through(lock(trial.database), seconds=1.5, kills=True)
            else:
                await trial.chat_through(no_growth(trial.database, lambda: trial.pids), seconds=2, kills=False)
            await trial.finish()
        finally:
            trial.server.kill()
    return trial.verdict


@pytest.mark.parametrize(
    ("workers", "kind"),
    (
        *((1, "kill"), (2, "kill a worker"), (1, "lock"), (1, "full")),
        *((1, kind) for kind in kinds.KINDS),
    ),
)
async def test_nothing_acknowledged_is_lost(tmp_path: Path, workers: int, kind: str) -> None:
    verdict = await trial(tmp_path, workers=workers, kind=kind)
    assert verdict.is_good, verdict.notes
    assert verdict.acknowledged


async def test_chats_cut_by_their_callers_are_saved_and_leave_nothing_behind(tmp_path: Path) -> None:
    async with fake_upstream() as upstream:
        script = QuickScript(1)
        upstream.on(CHAT, script.behaviour())
        async with running_proxy(settings_for(tmp_path, upstream_url=upstream.url)) as url:
            port = int(url.rsplit(":", 1)[1])
            assert await read_own_writes(port, script, count=30) == 0
            tasks = len(asyncio.all_tasks())
            verdict = await leave_at_random_bytes(port, tmp_path / "stellarchat.db", script, count=200, at_once=20)
            await upstream.until(lambda: all(call.answered or call.left for call in upstream.calls))
            # Idle connections to upstream may be kept for a while, each with a task of the fake upstream's.
            await upstream.until(lambda: len(asyncio.all_tasks()) <= tasks, seconds=20)
        assert verdict.is_good, verdict.notes
        assert verdict.chats == 200
