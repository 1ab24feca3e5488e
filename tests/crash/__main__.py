"""`python -m tests.crash --seed 1 --kills 100 --chats 50`: kills the proxy under load and prints what that cost."""

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tests.crash import kinds
from tests.crash.rounds import Trial
from tests.crash.trouble import Trouble, full_disk, lock, no_growth, small_disk
from tests.fake_upstream import fake_upstream

if TYPE_CHECKING:  # it needs the extra
    from tests.crash.postgresql import Total


async def kill_rounds(trial: Trial, *, kills: int) -> None:
    """Kills at random moments: while chatting, of single workers, while starting."""
    while trial.kills < kills:
        if trial.kills % 8 == 7:
            await trial.kill_while_starting()
        elif trial.workers > 1 and trial.dice.random() < 0.5:
            await trial.kill_one_worker()
        else:
            await trial.kill_while_chatting()
        if trial.kills % 10 == 0:
            show(trial)


async def trouble_rounds(trial: Trial, trouble: Trouble, *, kills: int, seconds: float) -> None:
    """Each kind of trouble once lived through, then kills within it."""
    await trial.chat_through(trouble, seconds=seconds, kills=False)
    show(trial)
    while trial.kills < kills:
        await trial.chat_through(trouble, seconds=seconds / 2, kills=True)
        if trial.kills % 10 == 0:
            show(trial)
    await trial.chat_through(trouble, seconds=seconds, kills=False)


async def run(folder: Path, given: argparse.Namespace, *, has_small_disk: bool) -> Trial:
    """The trial that the options ask for."""
    async with fake_upstream() as upstream:
        environment = {"STELLARCHAT_SPILL_RESERVE_BYTES": str(given.reserve * 2**20)}
        if given.trouble:
            special = kinds.environment(given.trouble, folder)
            if special is None:
                sys.exit(f"{given.trouble}: this machine has no C compiler")
            environment |= special
        trial = Trial(
            folder,
            upstream,
            seed=given.seed,
            chats=given.chats,
            workers=given.workers,
            behind_seconds=given.behind,
            environment=environment,
        )
        await trial.start()
        try:
            if given.trouble:
                made = kinds.trouble(given.trouble, trial)
                await trouble_rounds(trial, made, kills=given.kills, seconds=given.seconds)
            elif given.locked:
                await trouble_rounds(trial, lock(trial.database), kills=given.kills, seconds=given.seconds)
            elif given.disk_full:
                trouble = full_disk(folder) if has_small_disk else no_growth(trial.database, lambda: trial.pids)
                await trouble_rounds(trial, trouble, kills=given.kills, seconds=given.seconds)
            else:
                await kill_rounds(trial, kills=given.kills)
            await trial.finish()
        finally:
            trial.server.kill()
    return trial


def run_shared(given: argparse.Namespace) -> "Total":
    """Several proxies on one PostgreSQL server."""
    from tests.crash import postgresql

    postgresql.refuse_options(given)
    return asyncio.run(postgresql.run_shared(given, show))


def show(trial: "Trial | Total") -> None:
    """Print the figures so far."""
    print(figures(trial), flush=True)


def figures(trial: "Trial | Total") -> str:
    """One line."""
    verdict = trial.verdict
    return (
        f"kills {trial.kills} · chats {verdict.chats} · acknowledged {verdict.acknowledged} · lost {verdict.lost} · "
        f"doubled {verdict.doubled} · apart {verdict.apart} · wrong {verdict.wrong} · "
        f"incomplete {verdict.incomplete} · worst lag {verdict.worst_lag_seconds:.2f} s · "
        f"longest hold {verdict.longest_hold_seconds:.2f} s · not ready {trial.not_ready}"
    )


def end_on_sigterm() -> None:
    """Leave no process behind where the run is ended before its time."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def conclude(trial: "Trial | Total", started: float) -> NoReturn:
    """Print what was found, and end."""
    for note in trial.verdict.notes[:40]:
        print("  ", note)
    print(f"{figures(trial)} · {time.monotonic() - started:.0f} s")
    sys.exit(not trial.verdict.is_good)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--chats", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--proxies", type=int, default=2, help="with postgresql: proxies on one server")
    parser.add_argument("--batch", type=int, default=50, help="with postgresql: kills on each database")
    parser.add_argument("--behind", type=float, default=1.0, help="seconds a cut reply may be behind")
    parser.add_argument("--trouble", choices=kinds.KINDS, help="another kind of trouble")
    parser.add_argument("--locked", action="store_true", help="another program holds the write lock for a while")
    parser.add_argument("--disk-full", action="store_true", help="the disk is full for a while")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the trouble lasts")
    parser.add_argument("--reserve", type=int, default=16, help="MiB held ready for the spill file")
    given = parser.parse_args()
    started = time.monotonic()
    end_on_sigterm()
    if given.database == "postgresql":
        conclude(run_shared(given), started)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        has_small_disk = given.disk_full and stack.enter_context(small_disk(Path(name), size_bytes=128 * 2**20))
        trial = asyncio.run(run(Path(name), given, has_small_disk=has_small_disk))
    conclude(trial, started)


if __name__ == "__main__":
    main()
