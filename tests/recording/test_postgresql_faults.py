"""Chats on PostgreSQL when its server, the way to it or the proxy fails: each is stored once."""

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

psycopg = pytest.importorskip("psycopg")

from proxy.demo import MODEL
from proxy.maintenance import check
from proxy.maintenance.check import OF_FILES, Problem
from tests.chats import said, user
from tests.cutting import cutting
from tests.long import IS_LONG
from tests.postgresql import connect_for_tests, database_url, own_server
from tests.serving import server_process
from tests.world import World, open_world

# Longer than a write waits before it is spilled.
SILENCE_SECONDS = 60.0 if IS_LONG else 4.0


@pytest.fixture
def url() -> Iterator[str]:
    with database_url() as made:
        yield made


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        found: list[tuple[Any, ...]] = connection.execute(statement).fetchall()
        return found


async def world_on(stack: AsyncExitStack, url: str, folder: Path, **changes: Any) -> World:
    return await open_world(stack, folder, database_url=url, state_dir=str(folder / "state"), **changes)


async def stored(url: str, count: int) -> None:
    """Wait until as many chats have ended in the database."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if rows(url, "SELECT COUNT(*) FROM exchanges WHERE status = 'completed'")[0][0] >= count:
                return
        except psycopg.OperationalError:
            pass
        await asyncio.sleep(0.1)
    raise AssertionError(rows(url, "SELECT status, COUNT(*) FROM exchanges GROUP BY status"))


def problems(url: str, folder: Path) -> list[Problem]:
    with closing(connect_for_tests(url)) as connection:
        steps = check.steps(folder / "none", living=check.living_anywhere)
        finds = [find for kind, find in steps if kind not in OF_FILES]
        return [problem for find in finds for problem in find(connection)]


async def test_conversation_is_stored_and_read_back(url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        world = await world_on(stack, url, tmp_path)
        turns = [user("one \0 two")]
        answer = await world.chat(turns, said("three"), stream=True)
        turns += [said("three"), user("four")]
        again = await world.chat(turns, said("five"))
        session_id = answer.headers["x-session-id"]
        assert again.headers["x-session-id"] == session_id
        assert again.headers["x-session-source"] == "stitched"
        assert await world.read(session_id) == [*turns, said("five")]
        gone = await world.client.delete(f"/v1/sessions/{session_id}", headers={"X-User-Id": "u"})
        assert gone.status_code == 200
    assert rows(url, "SELECT COUNT(*) FROM messages") == [(0,)]
    assert problems(url, tmp_path) == []


@pytest.mark.parametrize("where", ("before", "after"))
async def test_cut_at_a_commit_loses_and_doubles_nothing(url: str, tmp_path: Path, where: Any) -> None:
    parts = urlsplit(url)
    assert parts.port
    async with AsyncExitStack() as stack:
        way = stack.enter_context(cutting(parts.port))
        world = await world_on(stack, url.replace(f":{parts.port}/", f":{way.port}/"), tmp_path)
        for turn in range(20):
            if turn % 3 == 1:
                way.cuts.append(where)
            await world.chat([user(f"question {turn}")], said("yes"), session=f"s{turn % 5}")
        await stored(url, 20)
        assert way.cuts == []
    assert rows(url, "SELECT COUNT(*), COUNT(DISTINCT exchange_id) FROM exchanges") == [(20, 20)]
    assert rows(url, "SELECT COUNT(*) FROM messages") == [(40,)]
    assert problems(url, tmp_path) == []


@pytest.mark.parametrize("directions", (("up", "down"), ("up",), ("down",)))
async def test_silence_loses_and_doubles_nothing(url: str, tmp_path: Path, directions: Any) -> None:
    """Of both directions, or of one: then the server hears what it is told, or its answers are not heard."""
    port = urlsplit(url).port
    assert port
    async with AsyncExitStack() as stack:
        way = stack.enter_context(cutting(port))
        world = await world_on(stack, url.replace(f":{port}/", f":{way.port}/"), tmp_path, commit_timeout_seconds=2.0)
        is_over = asyncio.Event()
        answered = 0

        async def talk(caller: int) -> None:
            nonlocal answered
            turn = 0
            while not is_over.is_set():
                turn += 1
                await world.chat([user(f"{caller} asks {turn}")], said("yes"), session=f"s{caller}")
                answered += 1

        talking = [asyncio.create_task(talk(caller)) for caller in range(3)]
        await asyncio.sleep(0.5)
        with way.silent(*directions):
            await asyncio.sleep(SILENCE_SECONDS)
        await asyncio.sleep(0.5)
        is_over.set()
        await asyncio.gather(*talking)
        await stored(url, answered)
    assert rows(url, "SELECT COUNT(*), COUNT(DISTINCT exchange_id) FROM exchanges") == [(answered, answered)]
    assert rows(url, "SELECT COUNT(*), COUNT(DISTINCT content) FROM messages WHERE role = 'user'") == [
        (answered, answered)
    ]
    assert problems(url, tmp_path) == []


async def test_crash_of_the_server_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with own_server() as server, database_url(server.url) as url:
        async with AsyncExitStack() as stack:
            world = await world_on(stack, url, tmp_path)

            async def talk(caller: int) -> None:
                for turn in range(15):
                    await world.chat([user(f"{caller} asks {turn}")], said("yes"), session=f"s{caller}", user_id="u")

            talking = [asyncio.create_task(talk(caller)) for caller in range(4)]
            for _ in range(3):
                await asyncio.sleep(0.5)
                await asyncio.to_thread(server.stop, signal.SIGKILL)
                await asyncio.sleep(0.2)
                await asyncio.to_thread(server.start)
            await asyncio.gather(*talking)
            await stored(url, 60)
        assert rows(url, "SELECT COUNT(*), COUNT(DISTINCT exchange_id) FROM exchanges") == [(60, 60)]
        assert rows(url, "SELECT COUNT(*) FROM messages") == [(120,)]
        assert problems(url, tmp_path) == []


async def test_reply_of_a_killed_proxy_is_incomplete_after_the_next_start(url: str, tmp_path: Path) -> None:
    environment = {"DATABASE_URL": url, "STELLARCHAT_STATE_DIR": str(tmp_path / "state")}
    long = {"model": MODEL, "stream": True, "messages": [user("word " * 2000)]}
    with server_process(tmp_path, "http://127.0.0.1:9", "--demo", **environment) as server:
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=10) as client,
            client.stream("POST", "/v1/chat/completions", json=long) as reply,
        ):
            assert reply.status_code == 200
            deadline = time.monotonic() + 20
            while not rows(url, "SELECT 1 FROM exchange_fragments"):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
            server.kill()
        server.start()
        async with httpx.AsyncClient(base_url=server.url, timeout=10) as client:
            [session] = (await client.get("/v1/sessions")).json()["sessions"]
            path = f"/v1/sessions/{session['session_id']}/messages"
            messages = (await client.get(path)).json()["messages"]
        assert [message["status"] for message in messages] == ["completed", "incomplete"]
        assert messages[1]["content"]
        assert server.stop() == 0
    assert problems(url, tmp_path) == []
