"""Two proxies with state folders of their own, as on two hosts, on one PostgreSQL server."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest

psycopg = pytest.importorskip("psycopg")

from proxy import ids
from proxy.access.keys import NewKey, create_key
from proxy.demo import MODEL
from proxy.storage import queries
from tests.access.test_keys import bearer
from tests.chats import said, user
from tests.long import IS_LONG
from tests.postgresql import connect_for_tests, database_url
from tests.recording.test_postgresql_faults import problems, rows, stored, world_on
from tests.serving import ServerProcess, server_process
from tests.world import World

RACES = 1000 if IS_LONG else 20
WORDS = 700  # some seconds of a reply


@pytest.fixture
def url() -> Iterator[str]:
    with database_url() as made:
        yield made


@asynccontextmanager
async def two_worlds(url: str, folder: Path, **changes: Any) -> AsyncIterator[tuple[World, World]]:
    async with AsyncExitStack() as stack:
        worlds = []
        for name in ("one", "other"):
            (folder / name).mkdir()
            worlds.append(await world_on(stack, url, folder / name, **changes))
        yield worlds[0], worlds[1]


async def until(condition: Any, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_conversation_goes_on_at_the_other(url: str, tmp_path: Path) -> None:
    async with two_worlds(url, tmp_path) as worlds:
        turns = [user("one")]
        sessions = set()
        for turn in range(6):
            answer = await worlds[turn % 2].chat(turns, said(f"reply {turn}"), stream=turn % 3 == 0)
            sessions.add(answer.headers["x-session-id"])
            turns += [said(f"reply {turn}"), user(f"next {turn}")]
        [session_id] = sessions
        assert await worlds[0].read(session_id) == await worlds[1].read(session_id) == turns[:-1]
    assert problems(url, tmp_path) == []


async def test_same_turn_and_same_name_at_both_at_once_are_stored_once(url: str, tmp_path: Path) -> None:
    async with two_worlds(url, tmp_path) as worlds:
        for race in range(RACES):
            # On a slow machine a caller may be told of another session than the one in which its chat is stored.
            await asyncio.gather(
                *(each.chat([user(f"{race}")], said("yes"), session=f"s{race}", user_id=f"u{race}") for each in worlds)
            )
            await stored(url, 4 * race + 2)
            turns = [user(f"{race}"), said("yes"), user("and?")]
            await asyncio.gather(*(each.chat(turns, said("no"), user_id=f"u{race}") for each in worlds))
        await stored(url, 4 * RACES)
    assert rows(url, "SELECT COUNT(*) FROM sessions") == [(RACES,)]
    # Each of two requests has a reply of its own; what they ask is stored once.
    assert rows(url, "SELECT role, COUNT(*) FROM messages GROUP BY role ORDER BY role") == [
        ("assistant", 4 * RACES),
        ("user", 2 * RACES),
    ]
    assert rows(url, "SELECT COUNT(*) FROM users WHERE user_id LIKE 'u%'") == [(RACES,)]
    assert problems(url, tmp_path) == []


async def test_parameters_whose_last_user_goes_while_another_comes_are_kept(url: str, tmp_path: Path) -> None:
    async with two_worlds(url, tmp_path) as (one, other):
        before = await one.chat([user("0")], said("yes"), temperature=0.5)
        for race in range(1, RACES + 1):
            path = f"/v1/sessions/{before.headers['x-session-id']}"
            gone, after = await asyncio.gather(
                one.client.delete(path, headers={"X-User-Id": "u"}),
                other.chat([user(f"{race}")], said("yes"), temperature=0.5),
            )
            await stored(url, 1)
            assert (gone.status_code, after.status_code) == (200, 200)
            before = after
        await stored(url, 1)
    assert rows(url, "SELECT COUNT(*) FROM parameters") == [(1,)]
    assert rows(url, "SELECT COUNT(*), COUNT(parameters_no) FROM exchanges") == [(1, 1)]
    assert problems(url, tmp_path) == []


async def test_what_one_deletes_the_other_does_not_store(url: str, tmp_path: Path) -> None:
    async with two_worlds(url, tmp_path) as (one, other):
        for turn in range(5):
            await one.chat([user(f"{turn}")], said("yes"), user_id="gone")
            late = asyncio.create_task(one.chat([user("late")], said("yes"), user_id="gone", stream=True))
            assert (await other.client.delete("/v1/users/gone")).status_code == 200
            await late
            await other.client.delete("/v1/users/gone")
            assert rows(url, "SELECT COUNT(*) FROM messages") == [(0,)]
            kept = await other.chat([user("again")], said("yes"), user_id="gone")
            assert await one.read(kept.headers["x-session-id"], user_id="gone") == [user("again"), said("yes")]
            await one.client.delete("/v1/users/gone")


async def test_limit_of_a_minute_is_shared_and_a_revoked_key_ends_at_both(url: str, tmp_path: Path) -> None:
    with closing(connect_for_tests(url)) as connection, connection.transaction():
        key, row = create_key(connection, NewKey(user_id="ann", requests_per_minute=8))
    async with two_worlds(url, tmp_path, auth="required") as worlds:
        await until(lambda: rows(url, "SELECT COUNT(*) FROM workers") == [(2,)], seconds=10)
        await asyncio.sleep(5)  # until both have been told of each other
        for world in worlds:
            answers = [await world.client.get("/v1/sessions", headers=bearer(key)) for _ in range(5)]
            assert [answer.status_code for answer in answers] == [200] * 4 + [429]
            assert answers[0].headers["x-ratelimit-limit-requests"] == "8"
        with closing(connect_for_tests(url)) as connection, connection.transaction():
            assert queries.keys.revoke_key(connection, row.key_id, now=ids.timestamp())
        for world in worlds:
            async with asyncio.timeout(10):
                while (await world.client.get("/v1/sessions", headers=bearer(key))).status_code != 401:
                    await asyncio.sleep(0.1)
    assert rows(url, "SELECT COUNT(*) FROM workers") == [(0,)]


def demo_proxies(stack: ExitStack, url: str, folder: Path) -> list[ServerProcess]:
    started = []
    for name in ("one", "other"):
        (folder / name).mkdir()
        environment = {"DATABASE_URL": url, "STELLARCHAT_STATE_DIR": str(folder / name / "state")}
        started.append(
            stack.enter_context(server_process(folder / name, "http://127.0.0.1:9", "--demo", **environment))
        )
    return started


def long_chat() -> dict[str, Any]:
    return {"model": MODEL, "stream": True, "messages": [user("word " * WORDS)]}


async def test_chats_of_a_killed_proxy_are_incomplete_soon_without_a_start(url: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        one, other = demo_proxies(stack, url, tmp_path)
        async with (
            httpx.AsyncClient(base_url=one.url, timeout=30) as client,
            client.stream("POST", "/v1/chat/completions", json=long_chat()) as reply,
        ):
            assert reply.status_code == 200
            await until(lambda: rows(url, "SELECT 1 FROM exchange_fragments"), seconds=20)
            one.kill()
        ended = "SELECT 1 FROM exchanges WHERE status = 'incomplete'"
        await until(lambda: rows(url, ended), seconds=60)
        assert rows(url, "SELECT length(content) > 0, status FROM messages WHERE role = 'assistant'") == [
            (True, "incomplete")
        ]
        assert other.stop() == 0
    assert problems(url, tmp_path) == []


async def test_reply_of_a_proxy_that_was_only_paused_is_whole(url: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        one, other = demo_proxies(stack, url, tmp_path)
        async with (
            httpx.AsyncClient(base_url=one.url, timeout=90) as client,
            client.stream("POST", "/v1/chat/completions", json=long_chat()) as reply,
        ):
            await until(lambda: rows(url, "SELECT 1 FROM exchange_fragments"), seconds=20)
            os.killpg(one.pid, signal.SIGSTOP)
            ended = "SELECT 1 FROM exchanges WHERE status = 'incomplete'"
            await until(lambda: rows(url, ended), seconds=60)  # the other takes it for gone
            os.killpg(one.pid, signal.SIGCONT)
            text = (await reply.aread()).decode()
        assert text.rstrip().endswith("data: [DONE]")
        await stored(url, 1)
        [(content, status)] = rows(url, "SELECT content, status FROM messages WHERE role = 'assistant'")
        assert status is None
        assert content.count("word") == WORDS
        assert [each.stop() for each in (one, other)] == [0, 0]
    assert rows(url, "SELECT status, COUNT(*) FROM exchanges GROUP BY status") == [("completed", 1)]
    assert problems(url, tmp_path) == []


def test_clock_is_brought_between_what_the_servers_time_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_started_at", 100.0)
    for earliest, latest, then in ((90.0, 110.0, 100.0), (120.0, 130.0, 120.0), (50.0, 60.0, 60.0)):
        ids.keep_clock_between(earliest, latest)
        assert ids._started_at == then
