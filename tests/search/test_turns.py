"""Searches are fair between users, few at a time, and end when they are told to."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from proxy.search.deadline import Deadline, TimeOutError
from proxy.search.turns import BusyError, Turns


@pytest.fixture
async def searches() -> AsyncIterator[Turns]:
    searches = Turns()
    yield searches
    searches.close()


def until_over(deadline: Deadline) -> None:
    """Python's own work, which SQLite's limits do not reach."""
    while True:
        deadline.check()


def waiting_for(event: threading.Event, started: list[str], name: str) -> Callable[[Deadline], str]:
    def work(_: Deadline) -> str:
        started.append(name)
        event.wait()
        return name

    return work


async def test_one_users_searches_leave_room_for_anothers(searches: Turns) -> None:
    event, started = threading.Event(), list[str]()
    greedy = [asyncio.create_task(searches.run("ann", waiting_for(event, started, f"ann-{n}"))) for n in range(4)]
    while not started:
        await asyncio.sleep(0.001)
    assert await searches.run("bo", lambda _: "bo's") == "bo's"
    assert started == ["ann-0"]
    event.set()
    assert await asyncio.gather(*greedy) == [f"ann-{n}" for n in range(4)]


async def test_a_user_has_no_more_than_a_few_waiting_and_all_have_a_limit(searches: Turns) -> None:
    searches.turns.waiting = 6
    event, started = threading.Event(), list[str]()
    running = [asyncio.create_task(searches.run("ann", waiting_for(event, started, "ann"))) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(BusyError):
        await searches.run("ann", lambda _: None)
    running += [asyncio.create_task(searches.run("bo", waiting_for(event, started, "bo"))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(BusyError):
        await searches.run("cy", lambda _: None)
    event.set()
    await asyncio.gather(*running)
    assert await searches.run("ann", lambda _: 1) == 1


async def test_a_search_that_waits_too_long_for_its_turn_is_refused(searches: Turns) -> None:
    searches.turns.wait_seconds = 0.01
    event = threading.Event()
    running = [asyncio.create_task(searches.run(name, waiting_for(event, [], name))) for name in ("ann", "bo")]
    await asyncio.sleep(0)
    for name in ("ann", "cy"):
        with pytest.raises(BusyError):
            await searches.run(name, lambda _: None)
    event.set()
    await asyncio.gather(*running)


async def test_a_search_whose_request_is_given_up_ends(searches: Turns) -> None:
    task = asyncio.create_task(searches.run("ann", until_over))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await searches.run("ann", lambda _: "next") == "next"


async def test_the_time_limit_binds_pythons_work_too() -> None:
    searches = Turns(seconds=0.01)
    with pytest.raises(TimeOutError):
        await searches.run("ann", until_over)
    searches.close()


async def test_at_the_end_of_the_server_a_running_search_ends(searches: Turns) -> None:
    task = asyncio.create_task(searches.run("ann", until_over))
    await asyncio.sleep(0.01)
    searches.close()
    with pytest.raises(TimeOutError):
        await task
