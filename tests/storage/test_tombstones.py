"""A deleted user or session stays deleted, wherever a chat of it still is."""

import asyncio
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from proxy.history import sessions
from proxy.ids import timestamp, uuid7
from proxy.recording import spill_codec
from proxy.storage import exchange_store, queries, session_lookup, tombstones
from proxy.storage.exchange import Exchange, Outcome, SessionRef
from proxy.storage.sqlite import connect, prepare
from proxy.storage.sqlite_connection import SqliteConnection
from proxy.storage.write_batch import write_batch
from tests.access.test_keys import bearer, make_key
from tests.chats import Chats, exchange_of, said, user
from tests.engines import on_sqlite
from tests.fake_upstream import FakeUpstream, chat_completion, dumps, until, whole
from tests.recording.test_recorder import (
    HELLO,
    WORLD,
    asking,
    die,
    eventually,
    lock,
    open_live,
    recording,
    rows,
    spilled,
)
from tests.serving import running_proxy, settings_for
from tests.stored import opened

CHAT = "/v1/chat/completions"
BEFORE, MOMENT, AFTER = (f"2026-01-01T00:00:00.00{number}Z" for number in (1, 2, 3))
TABLES = ("sessions", "messages", "exchanges", "exchange_fragments", "blobs")


def asked_at(moment: str, *, user_id: str = "ann") -> Exchange:
    return replace(exchange_of([user("secret")], SessionRef(uuid7(), "new"), user_id=user_id), created_at=moment)


def delete_user(connection: SqliteConnection, user_id: str = "ann", *, now: str = MOMENT) -> None:
    with connection.transaction():
        tombstones.add_tombstone(connection, "user", user_id, now=now)
        queries.users.delete_user(connection, user_id)


def users(connection: SqliteConnection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT user_id FROM users WHERE user_id <> 'default_user'")]


@pytest.mark.parametrize(("moment", "stored"), ((BEFORE, 0), (MOMENT, 0), (AFTER, 1)))
def test_only_what_was_asked_after_the_deletion_is_stored(chats: Chats, moment: str, stored: int) -> None:
    delete_user(chats.connection)
    lines = (
        spill_codec.finish_line(asked_at(moment), Outcome(status="completed")),
        spill_codec.begin_line(asked_at(moment), worker_id="w"),
    )
    for line in lines:
        with write_batch(chats.connection) as rows_:
            spill_codec.replay(line)(rows_)
    assert chats.count("exchanges") == len(lines) * stored
    assert users(chats.connection) == ["ann"] * stored


def test_an_earlier_chat_does_not_come_back_either_when_the_user_was_made_anew(chats: Chats) -> None:
    delete_user(chats.connection)
    for moment in (AFTER, BEFORE):
        with write_batch(chats.connection) as rows_:
            exchange_store.finish(rows_, asked_at(moment), Outcome(status="failed"))
    assert chats.connection.execute("SELECT created_at FROM exchanges").fetchall() == [(AFTER,)]


def test_others_chats_of_that_time_are_stored(chats: Chats) -> None:
    delete_user(chats.connection)
    with write_batch(chats.connection) as rows_:
        exchange_store.finish(rows_, asked_at(BEFORE, user_id="bob"), Outcome(status="failed"))
    assert users(chats.connection) == ["bob"]


def test_what_followed_a_spilled_beginning_is_dropped_with_it(chats: Chats) -> None:
    delete_user(chats.connection)
    exchange = asked_at(BEFORE)
    for line in (
        spill_codec.begin_line(exchange, worker_id="w"),
        spill_codec.fragment_line(
            exchange.origin, exchange_id=exchange.exchange_id, sequence=0, data=b"data: secret\n\n"
        ),
        spill_codec.finish_line(exchange, Outcome(status="completed")),
    ):
        with write_batch(chats.connection) as rows_:
            spill_codec.replay(line)(rows_)
    assert [chats.count(table) for table in TABLES] == [0] * len(TABLES)
    assert users(chats.connection) == []


@pytest.mark.parametrize(("moment", "made"), ((BEFORE, False), (AFTER, True)))
def test_a_session_is_not_claimed_for_a_chat_of_a_deleted_user(chats: Chats, moment: str, made: bool) -> None:
    delete_user(chats.connection)
    with chats.connection.transaction():
        session_id = session_lookup.get_or_create_session(
            chats.connection, user_id="ann", external_id="trip", session_id="s", title="secret", asked_at=moment
        )
    assert session_id == "s"
    assert chats.count("sessions") == made


def test_a_chat_that_was_not_begun_does_not_bring_its_deleted_session_back(chats: Chats) -> None:
    chats.store([user("a")], said("b"), session="trip")
    waiting = chats.begin([user("a"), said("b"), user("c")], session="trip")
    with write_batch(chats.connection) as rows_:
        sessions.delete_session(rows_.connection, "trip", user_id="u")
        exchange_store.finish(rows_, waiting, Outcome(status="completed"))
    assert [chats.count(table) for table in TABLES] == [0] * len(TABLES)
    assert chats.store([user("a")], said("b"), session="trip") != waiting.session.session_id


def test_the_last_deletion_counts(chats: Chats) -> None:
    for now, before in ((MOMENT, BEFORE), (AFTER, MOMENT), (BEFORE, AFTER)):
        tombstones.add_tombstone(chats.connection, "session", "s", now=now)
        assert tombstones.was_deleted(chats.connection, user_id="s", session_id="s", asked_at=before)
    assert chats.count("tombstones") == 1


@on_sqlite
def test_who_was_deleted_cannot_be_read(chats: Chats) -> None:
    delete_user(chats.connection, "ann@example.org")
    chats.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = Path(chats.connection.execute("PRAGMA database_list").fetchone()[2])
    assert b"ann@example" not in path.read_bytes()


def test_a_deletion_is_forgotten_after_a_month(chats: Chats) -> None:
    now = 1_800_000_000.0
    month = tombstones.KEPT.total_seconds()
    for number, age in enumerate((0, month - 1, month + 1, 2 * month)):
        tombstones.add_tombstone(chats.connection, "session", str(number), now=timestamp(now - age))
    assert [tombstones.forget_some(chats.connection, now_seconds=now, limit=1) for _ in range(3)] == [1, 1, 0]
    assert chats.count("tombstones") == 2


# End to end


async def test_a_server_forgets_old_deletions(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with closing(connect(settings.database_path)) as connection:
        prepare(connection)
        tombstones.add_tombstone(connection, "session", "s", now=BEFORE)
        tombstones.add_tombstone(connection, "session", "t", now=timestamp())
    async with running_proxy(settings):
        await eventually(lambda: len(rows(tmp_path, "SELECT 1 FROM tombstones")) == 1)


async def test_a_chat_in_flight_does_not_bring_its_user_back(upstream: FakeUpstream, tmp_path: Path) -> None:
    """One that was begun in the tables and one that was not."""
    settings = settings_for(tmp_path, upstream_url=upstream.url, flush_interval_seconds=0.05)
    gate = asyncio.Event()
    upstream.on(CHAT, until(gate, HELLO, WORLD))
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        named = "X-User-Id: ann\r\n"
        async with asking(url, "begun", headers=named) as begun:
            await begun.read_until(b"Hel")
            await eventually(lambda: rows(tmp_path, "SELECT 1 FROM exchange_fragments"))
            async with asking(url, "trip", headers=named + "X-Session-Id: trip\r\n") as claimed:
                await claimed.read_until(b"Hel")
                assert (await http.delete("/v1/users/ann")).status_code == 200
                gate.set()
                await claimed.read_until(b"[DONE]")
            await begun.read_until(b"[DONE]")
        assert [rows(tmp_path, f"SELECT * FROM {table}") for table in TABLES] == [[]] * len(TABLES)
        assert rows(tmp_path, "SELECT 1 FROM users WHERE user_id = 'ann'") == []
        async with asking(url, "later", headers=named) as later:
            await later.read_until(b"[DONE]")
        assert rows(tmp_path, "SELECT user_id FROM exchanges JOIN users USING (user_no)") == [("ann",)]


async def test_what_another_process_has_spilled_does_not_come_back(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.on(CHAT, whole(dumps(chat_completion(1, [said("kept beside the database")]))))
    settings = settings_for(tmp_path, upstream_url=upstream.url)
    ann = {"X-User-Id": "ann"}
    body = {"model": "m", "messages": [user("secret")]}
    async with (
        running_proxy(settings) as here,
        running_proxy(settings) as there,
        httpx.AsyncClient(headers=ann) as http,
    ):
        assert (await http.post(here + CHAT, json=body)).status_code == 200
        other = lock(tmp_path)
        assert (await http.post(there + CHAT, json=body)).status_code == 200
        assert b"kept beside" in spilled(tmp_path)
        other.close()
        assert (await http.delete(here + "/v1/users/ann")).status_code == 200
        await eventually(lambda: b"kept beside" not in spilled(tmp_path))
        assert [rows(tmp_path, f"SELECT * FROM {table}") for table in TABLES] == [[]] * len(TABLES)
        assert rows(tmp_path, "SELECT 1 FROM users WHERE user_id = 'ann'") == []


async def test_what_a_killed_process_has_spilled_does_not_come_back(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, flush_interval_seconds=0.05)
    async with recording(settings) as killed:
        other = lock(tmp_path)
        live = open_live(killed, "secret")
        live.feed(HELLO[0])
        await eventually(lambda: b"fragment" in spilled(tmp_path))
        ended = killed.finish(open_live(killed, "secret too"), Outcome(status="completed"))
        assert ended is not None
        assert await ended
        await die(killed)
        other.close()
        with opened(tmp_path / "stellarchat.db") as connection:
            delete_user(connection, "u", now=timestamp())
        async with recording(settings):
            assert [rows(tmp_path, f"SELECT * FROM {table}") for table in TABLES] == [[]] * len(TABLES)
            assert not spilled(tmp_path).strip(b"\0")


@pytest.mark.parametrize("path", ("/v1/sessions/trip", "/api/sessions/trip", "/v1/conversations/trip"))
async def test_a_chat_in_flight_does_not_bring_its_session_back(
    upstream: FakeUpstream, tmp_path: Path, path: str
) -> None:
    """One that was begun in the tables, and one that was not."""
    settings = settings_for(tmp_path, upstream_url=upstream.url, flush_interval_seconds=0.2)
    gate = asyncio.Event()
    upstream.on(CHAT, until(gate, HELLO, WORLD))
    named = "X-Session-Id: trip\r\n"
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        async with asking(url, "begun", headers=named) as begun:
            await begun.read_until(b"Hel")
            await eventually(lambda: rows(tmp_path, "SELECT 1 FROM exchange_fragments"))
            async with asking(url, "young", headers=named) as young:
                await young.read_until(b"Hel")
                assert (await http.delete(path)).status_code == 200
                gate.set()
                await young.read_until(b"[DONE]")
            await begun.read_until(b"[DONE]")
        assert [rows(tmp_path, f"SELECT * FROM {table}") for table in TABLES] == [[]] * len(TABLES)
        async with asking(url, "anew", headers=named) as anew:
            await anew.read_until(b"[DONE]")
        assert rows(tmp_path, "SELECT external_id, message_count FROM sessions") == [("trip", 2)]


async def test_another_process_does_not_let_a_deleted_user_in_again(upstream: FakeUpstream, tmp_path: Path) -> None:
    """It remembers keys for a moment: the deletion waits for that, where there is another process."""
    key = bearer(make_key(tmp_path))
    upstream.on(CHAT, whole(dumps(chat_completion(1, [said("ok")]))))
    settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required")
    body = {"model": "m", "messages": [user("still here")]}
    async with (
        running_proxy(settings) as here,
        running_proxy(settings) as there,
        httpx.AsyncClient(headers=key, timeout=20) as http,
    ):
        statuses = [(await http.post(there + CHAT, json=body)).status_code]
        deleting = asyncio.create_task(http.delete(here + "/v1/users/ann"))
        while not deleting.done():
            statuses.append((await http.post(there + CHAT, json=body)).status_code)
        assert (await deleting).status_code == 200
        assert statuses[0] == 200
        assert statuses[-1] == 401
        assert (await http.post(there + CHAT, json=body)).status_code == 401
        assert rows(tmp_path, "SELECT exchange_id FROM exchanges") == []
        assert rows(tmp_path, "SELECT 1 FROM users WHERE user_id = 'ann'") == []
