"""On PostgreSQL another host ends the chats of a killed process without its spill file: what that has comes later."""

import asyncio
import fcntl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.recording.dead_letters import dead_letter_path
from proxy.recording.recorder import Recorder
from proxy.recording.spill import spill_files
from proxy.settings import Settings
from proxy.storage import exchange_store
from proxy.storage.exchange import Outcome
from proxy.storage.write_batch import write_batch
from proxy.wire.chat_reply import Completion
from tests.fake_upstream import chat_chunk, event
from tests.recording.test_recorder import (
    HELLO,
    die,
    eventually,
    lock,
    open_live,
    recording,
    replies,
    rows,
    statuses,
)
from tests.serving import settings_for
from tests.stored import assistant, choice, exchange, opened, outcome, problems_of, user

pytest.importorskip("psycopg")
pytestmark = [
    pytest.mark.usefixtures("engine"),
    pytest.mark.parametrize("engine", ("postgresql",), indirect=True),
]

MORE = event(chat_chunk(1, {"content": "p me"}))


def host(folder: Path, name: str) -> Settings:
    return settings_for(folder, flush_interval_seconds=0.05, state_dir=str(folder / name))


@asynccontextmanager
async def killed_host(folder: Path, *, says: str | None = None) -> AsyncIterator[None]:
    """A killed process had a piece of a reply in the database, and the next, or the end, in its spill file only.

    At the end of the block, all is in order.
    """
    async with recording(host(folder, "one")) as killed:
        live = open_live(killed, "q")
        live.feed(b"".join(HELLO))
        await eventually(lambda: rows(folder, "SELECT 1 FROM exchange_fragments"))
        await stop_beating(killed)
        with lock(folder):
            live.feed(MORE)
            await eventually(lambda: killed._spill.count)
            if says is not None:
                body = b'{"choices":[{"message":{"role":"assistant","content":"%s"}}]}' % says.encode()
                saved = killed.finish(live, Outcome(status="completed", reply=Completion.from_body(body)))
                assert saved is not None
                await saved
            await die(killed)
        rows(folder, "UPDATE workers SET seen_at = seen_at - INTERVAL '1 minute'")
        yield
    assert rows(folder, "SELECT 1 FROM exchange_fragments") == []
    assert problems_of(folder / "stellarchat.db", state_path=folder / "one") == []


@asynccontextmanager
async def ended_by_another(folder: Path, *, says: str | None = None) -> AsyncIterator[None]:
    """Another host has ended the chat of a killed process."""
    async with killed_host(folder, says=says):
        async with recording(host(folder, "other")):
            assert replies(folder) == [("Hel", "incomplete")]
        yield


async def stop_beating(killed: Recorder) -> None:
    beating: asyncio.Task[None] = killed._database._beating  # type: ignore[attr-defined]
    beating.cancel()
    await asyncio.wait([beating])


async def a_day_passes(folder: Path) -> None:
    rows(folder, "UPDATE workers SET seen_at = seen_at - INTERVAL '2 days'")
    for _ in range(2):
        async with recording(host(folder, "other")) as recorder:
            with opened(folder / "stellarchat.db") as connection, write_batch(connection) as batch:
                exchange_store.recover(batch, recorder.worker_id)


def usage(folder: Path) -> list[tuple[object, ...]]:
    return rows(folder, "SELECT CAST(SUM(requests) AS INTEGER), CAST(SUM(incomplete) AS INTEGER) FROM usage_days")


async def test_pieces_of_the_spill_file_are_added_once(tmp_path: Path) -> None:
    async with ended_by_another(tmp_path):
        for _ in range(2):
            async with recording(host(tmp_path, "one")):
                assert replies(tmp_path) == [("Help me", "incomplete")]
    assert statuses(tmp_path) == ["incomplete"]
    assert usage(tmp_path) == [(1, 1)]
    assert rows(tmp_path, "SELECT message_count FROM sessions") == [(2,)]


async def test_an_end_of_the_spill_file_takes_the_place_of_the_assumed_one(tmp_path: Path) -> None:
    async with ended_by_another(tmp_path, says="Help yourself"), recording(host(tmp_path, "one")):
        assert replies(tmp_path) == [("Help yourself", "completed")]
    assert statuses(tmp_path) == ["completed"]
    assert usage(tmp_path) == [(1, 0)]


async def test_a_reply_that_the_conversation_went_on_from_stays_beside_the_longer_one(tmp_path: Path) -> None:
    async with ended_by_another(tmp_path):
        [(session_id,)] = rows(tmp_path, "SELECT session_id FROM sessions")
        more = exchange([user("q"), assistant("Hel"), user("go on")], session_id=session_id, user_id="u")
        with opened(tmp_path / "stellarchat.db") as connection, write_batch(connection) as batch:
            assert exchange_store.finish(batch, more, outcome(choice("lo")))
        async with recording(host(tmp_path, "one")):
            pass
    assert sorted(replies(tmp_path)) == [("Hel", "incomplete"), ("Help me", "incomplete"), ("lo", "completed")]


async def test_pieces_of_a_host_that_does_not_come_back_go_with_its_heartbeat(tmp_path: Path) -> None:
    async with ended_by_another(tmp_path):
        assert rows(tmp_path, "SELECT COUNT(*) FROM exchange_fragments") == [(1,)]
        async with recording(host(tmp_path, "other")):
            assert rows(tmp_path, "SELECT COUNT(*) FROM exchange_fragments") == [(1,)]
        await a_day_passes(tmp_path)
    assert replies(tmp_path) == [("Hel", "incomplete")]


async def test_a_host_that_comes_back_after_a_day_takes_nothing_from_a_reply(tmp_path: Path) -> None:
    async with ended_by_another(tmp_path):
        await a_day_passes(tmp_path)
        assert rows(tmp_path, "SELECT 1 FROM exchange_fragments") == []
        async with recording(host(tmp_path, "one")):
            assert replies(tmp_path) == [("Hel", "incomplete")]
    assert usage(tmp_path) == [(1, 1)]


async def test_a_take_over_that_has_to_wait_leaves_no_file_of_another_host(tmp_path: Path) -> None:
    settings = host(tmp_path, "other")
    refused = dead_letter_path(settings.database_path, settings.state_path)
    refused.parent.mkdir()
    async with killed_host(tmp_path):
        with refused.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # another process is retrying rejected writes
            async with recording(settings) as recorder:
                assert statuses(tmp_path) == ["in_progress"]
                assert list(spill_files(settings.database_path, folder=settings.state_path)) == [recorder.worker_id]
            refused.unlink()
        async with recording(host(tmp_path, "one")):
            assert replies(tmp_path) == [("Help me", "incomplete")]
