"""`python -m tests.crash --seed 1 --kills 100 --chats 50`: kills the proxy under load and prints what that cost."""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.crash.ledger import Verdict
from tests.crash.rounds import Trial
from tests.fake_upstream import fake_upstream


async def kill_rounds(
    folder: Path, *, seed: int, kills: int, chats: int, workers: int, behind_seconds: float
) -> tuple[int, Verdict]:
    """The trial: how many kills, and what the database says after them."""
    async with fake_upstream() as upstream:
        trial = Trial(folder, upstream, seed=seed, chats=chats, workers=workers, behind_seconds=behind_seconds)
        await trial.start()
        try:
            while trial.kills < kills:
                if trial.kills % 8 == 7:
                    await trial.kill_while_starting()
                elif workers > 1 and trial.dice.random() < 0.5:
                    await trial.kill_one_worker()
                else:
                    await trial.kill_while_chatting()
                if trial.kills % 10 == 0:
                    print(figures(trial.kills, trial.verdict), flush=True)
            await trial.finish()
        finally:
            trial.server.kill()
    return trial.kills, trial.verdict


def figures(kills: int, verdict: Verdict) -> str:
    """One line."""
    return (
        f"kills {kills} · chats {verdict.chats} · acknowledged {verdict.acknowledged} · lost {verdict.lost} · "
        f"doubled {verdict.doubled} · wrong {verdict.wrong} · incomplete {verdict.incomplete} · "
        f"worst lag {verdict.worst_lag_seconds:.2f} s · longest hold {verdict.longest_hold_seconds:.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--chats", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--behind", type=float, default=1.0, help="seconds a cut reply may be behind")
    given = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        kills, verdict = asyncio.run(
            kill_rounds(
                Path(folder),
                seed=given.seed,
                kills=given.kills,
                chats=given.chats,
                workers=given.workers,
                behind_seconds=given.behind,
            )
        )
    for note in verdict.notes[:40]:
        print("  ", note)
    print(f"{figures(kills, verdict)} · {time.monotonic() - started:.0f} s")
    sys.exit(not verdict.is_good)


if __name__ == "__main__":
    main()
