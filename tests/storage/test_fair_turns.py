import asyncio

import pytest

from proxy.storage.fair_turns import FairTurns, TurnsFullError


def turns_of(*, places: int = 2, per_caller: int = 4, waiting: int = 8, wait_seconds: float = 30) -> FairTurns:
    return FairTurns(places=places, per_caller=per_caller, waiting=waiting, wait_seconds=wait_seconds)


class Callers:
    """Calls that keep their place until they are let go."""

    def __init__(self, turns: FairTurns) -> None:
        self.turns = turns
        self.running: list[str] = []
        self.is_over = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self, *callers: str) -> None:
        self.tasks += [asyncio.create_task(self._run(caller)) for caller in callers]
        for _ in range(5):
            await asyncio.sleep(0)

    async def end(self) -> None:
        self.is_over.set()
        await asyncio.gather(*self.tasks)

    async def _run(self, caller: str) -> None:
        async with self.turns.turn(caller):
            self.running.append(caller)
            await self.is_over.wait()


async def test_a_caller_has_one_place_at_a_time_and_leaves_the_others_theirs() -> None:
    callers = Callers(turns_of())
    await callers.start("ann", "ann", "ann", "bo")
    assert callers.running == ["ann", "bo"]
    await callers.end()
    assert sorted(callers.running) == ["ann", "ann", "ann", "bo"]


async def test_the_calls_of_one_and_of_all_are_limited() -> None:
    callers = Callers(turns_of(per_caller=2, waiting=3))
    await callers.start("ann", "ann", "bo")
    for refused in ("ann", "cy"):
        with pytest.raises(TurnsFullError):
            async with callers.turns.turn(refused):
                pass
    await callers.end()
    async with callers.turns.turn("ann"):
        pass


@pytest.mark.parametrize("late", ("ann", "cy"))
async def test_one_that_waits_too_long_is_refused_and_takes_no_place(late: str) -> None:
    callers = Callers(turns_of(wait_seconds=0.01))
    await callers.start("ann", "bo")
    with pytest.raises(TurnsFullError):
        async with callers.turns.turn(late):
            pass
    await callers.end()
    async with callers.turns.turn(late):
        pass


async def test_one_that_is_cancelled_while_it_waits_takes_no_place() -> None:
    callers = Callers(turns_of())
    await callers.start("ann", "bo", "ann", "cy")
    for task in callers.tasks[2:]:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    del callers.tasks[2:]
    await callers.end()
    again = Callers(callers.turns)
    await again.start("ann", "bo", "cy")
    assert again.running == ["ann", "bo"]
    await again.end()
