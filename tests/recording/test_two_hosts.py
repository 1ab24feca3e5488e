"""Two hosts with a proxy each, and PostgreSQL on a third: one of them is cut off from the database for a while."""

import asyncio
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

psycopg = pytest.importorskip("psycopg")

from proxy.demo import MODEL
from tests.chats import said, user
from tests.long import IS_LONG
from tests.namespaces import hosts
from tests.postgresql import database_url, own_server
from tests.recording.test_postgresql_faults import problems, rows, stored
from tests.serving import server_process

# Longer than the lease of a process.
CUT_SECONDS = 30.0 if IS_LONG else 22.0


async def test_host_that_is_cut_off_goes_on_and_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with ExitStack() as stack:
        database, *others = stack.enter_context(hosts(3))
        server = stack.enter_context(own_server(database))
        url = stack.enter_context(database_url(server.url))
        clients = []
        for host in others:
            folder = tmp_path / host.name
            folder.mkdir()
            environment = {
                "DATABASE_URL": url.replace(database.address, host.database_address),
                "STELLARCHAT_STATE_DIR": str(folder / "state"),
                "STELLARCHAT_HOST": host.address,
            }
            proxy = stack.enter_context(
                server_process(folder, "http://127.0.0.1:9", "--demo", prefix=host.prefix, **environment)
            )
            clients.append(httpx.AsyncClient(base_url=proxy.url, timeout=60))
        answered: list[int] = [0, 0]
        is_over = asyncio.Event()

        async def talk(at: int) -> None:
            number = 0
            while not is_over.is_set():
                number += 1
                body = {"model": MODEL, "stream": number % 2 == 0, "messages": [user(f"{at} asks {number}")]}
                headers = {"X-Session-Id": f"{at}-{number}", "X-User-Id": f"u{at}"}
                answer = await clients[at].post("/v1/chat/completions", json=body, headers=headers)
                assert answer.status_code == 200, answer.text
                answered[at] += 1
                await asyncio.sleep(0.1)

        talking = [asyncio.create_task(talk(at)) for at in (0, 1)]
        await asyncio.sleep(2)
        others[0].cut()
        await asyncio.sleep(1)
        before = list(answered)
        await asyncio.sleep(CUT_SECONDS)
        during = [now - then for now, then in zip(answered, before, strict=True)]
        others[0].mend()
        await asyncio.sleep(2)
        is_over.set()
        await asyncio.gather(*talking)
        await stored(url, sum(answered))
        assert min(during) > 0
        assert rows(url, "SELECT COUNT(*), COUNT(DISTINCT exchange_id) FROM exchanges") == [(sum(answered),) * 2]
        assert rows(url, "SELECT COUNT(*) FROM messages") == [(2 * sum(answered),)]
        histories = []
        for client in clients:
            path = f"/v1/sessions/0-{before[0] + 1}/messages?format=openai"  # a chat within the cut
            answer = await client.get(path, headers={"X-User-Id": "u0"})
            histories.append(answer.json()["messages"])
            await client.aclose()
        assert histories[0] == histories[1]
        assert histories[0][0] == user(f"0 asks {before[0] + 1}")
        assert set(histories[0][1]) >= set(said(""))
        assert problems(url, tmp_path) == []
