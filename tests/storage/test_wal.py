"""What was deleted is in none of the database's files, also while readers hold the log for a while."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from proxy.storage import wal
from proxy.storage.sqlite import connect
from tests.chats import Chats, said, user
from tests.serving import running_proxy, settings_for

SECRET = "a secret that somebody regrets"
WAYS = (
    "/v1/sessions/{session}",
    "/api/sessions/{session}",
    "/v1/conversations/conv_{session}",
    "/v1/conversations/conv_{session}/items/{item}",
    "/v1/chat/completions/{completion}",
    "/v1/users/default_user",
)


def found_in(folder: Path) -> list[str]:
    """The files of the database that hold the secret."""
    names = ("stellarchat.db", "stellarchat.db-wal")
    return [name for name in names if (folder / name).exists() and SECRET.encode() in (folder / name).read_bytes()]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.fixture
def session(tmp_path: Path) -> str:
    chats = Chats(tmp_path / "stellarchat.db")
    session_id = chats.store([user("hi")], said(SECRET), user_id="default_user")
    chats.connection.close()
    return session_id


@pytest.mark.parametrize("way", WAYS)
async def test_what_was_deleted_leaves_the_files(tmp_path: Path, session: str, way: str) -> None:
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as client:
        completions = (await client.get("/v1/chat/completions")).json()["data"]
        items = (await client.get(f"/v1/conversations/conv_{session}/items")).json()["data"]
        assert found_in(tmp_path)
        path = way.format(session=session, completion=completions[0]["id"], item=items[0]["id"])
        (await client.delete(path)).raise_for_status()
        await until(lambda: not found_in(tmp_path))


async def test_a_reader_that_keeps_the_log_only_delays_it(
    tmp_path: Path, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bool] = []
    empty_log = wal.empty_log

    def noting(path: Path) -> bool:
        tried.append(empty_log(path))
        return tried[-1]

    monkeypatch.setattr(wal, "empty_log", noting)
    monkeypatch.setattr(wal, "_TRIES", 1)
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as client:
        await until(lambda: tried)
        reader = connect(tmp_path / "stellarchat.db")
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM messages").fetchone()
        (await client.delete(f"/v1/sessions/{session}")).raise_for_status()
        await until(lambda: tried[1:] and not tried[-1])
        assert found_in(tmp_path)
        reader.execute("ROLLBACK")
        reader.close()
        await until(lambda: not found_in(tmp_path))


async def test_a_killed_process_s_deletions_leave_the_log_at_the_next_start(tmp_path: Path, session: str) -> None:
    holder = connect(tmp_path / "stellarchat.db")  # so that the log stays, as after a kill
    holder.execute("DELETE FROM sessions")
    assert found_in(tmp_path)
    async with running_proxy(settings_for(tmp_path)):
        await until(lambda: not found_in(tmp_path))
    holder.close()
