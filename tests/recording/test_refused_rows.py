"""What streams while the database refuses rows is kept in the dead-letter file, at most a second behind."""

from dataclasses import replace
from pathlib import Path

import pytest

from proxy.ids import timestamp
from proxy.recording.dead_letters import count_lines, dead_letter_path
from proxy.recording.open_exchange import OpenExchange
from proxy.recording.recorder import Recorder
from proxy.storage import queries, tombstones, write_batch
from proxy.storage.exchange import Outcome
from proxy.storage.sqlite import connect
from proxy.storage.write_batch import WriteBatch
from proxy.wire.chat_reply import Completion
from tests.fake_upstream import chat_chunk, event
from tests.recording.test_recorder import (
    HELLO,
    WORLD,
    die,
    eventually,
    exchange_of,
    open_live,
    recording,
    replies,
    rows,
    statuses,
)
from tests.serving import settings_for

MANY = 600  # messages: more than are stored at once
MORE = event(chat_chunk(1, {"content": "lo"}))
END = event(chat_chunk(1, {"content": "!"}))


def refuse(folder: Path, table: str) -> None:
    run(folder, f"CREATE TRIGGER refuse BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'by a test'); END")


def allow(folder: Path) -> None:
    run(folder, "DROP TRIGGER refuse")


def run(folder: Path, statement: str) -> None:
    connection = connect(folder / "stellarchat.db")
    connection.execute(statement)
    connection.close()


def delete_user(batch: WriteBatch) -> None:
    tombstones.add_tombstone(batch.connection, "user", "u", now=timestamp())
    queries.users.delete_user(batch.connection, "u")


def kept(folder: Path) -> int:
    return count_lines(dead_letter_path(folder / "stellarchat.db", folder))


def open_of(recorder: Recorder, messages: int) -> OpenExchange:
    exchange = exchange_of("hi")
    said = [{"role": "user", "content": f"hi {number}"} for number in range(messages)]
    live = recorder.open(replace(exchange, request={"model": "m", "messages": said}), Completion(), size=10)
    live.is_placed = True
    return live


@pytest.mark.parametrize("messages", (1, MANY))
@pytest.mark.parametrize(("table", "begins"), (("exchanges", 1), ("messages", 1), ("exchange_fragments", 0)))
async def test_what_a_killed_process_streamed_while_rows_were_refused_is_stored_by_the_next(
    tmp_path: Path, table: str, begins: int, messages: int
) -> None:
    settings = settings_for(tmp_path, flush_interval_seconds=0.05)
    async with recording(settings) as killed:
        refuse(tmp_path, table)
        live = open_of(killed, messages)
        live.feed(b"".join(HELLO))
        await eventually(lambda: kept(tmp_path) == begins + 1)
        live.feed(MORE)
        await eventually(lambda: kept(tmp_path) == begins + 2)
        await die(killed)
        allow(tmp_path)
        for _ in range(2):
            async with recording(settings):
                assert not kept(tmp_path)
                assert replies(tmp_path) == [("Hello", "incomplete")]
                assert statuses(tmp_path) == ["incomplete"]
                assert not rows(tmp_path, "SELECT 1 FROM exchange_fragments")


@pytest.mark.parametrize(
    ("order", "text"),
    (
        ((2, 1, 0, 3), "Hello!"),  # what is tried again may be written back after what came meanwhile
        ((3, 2, 1, 0), "Hello!"),
        ((0, 1, 3), "Hel"),  # one that stays refused: the reply ends before it
        ((0, 3, 2), ""),
    ),
)
async def test_a_killed_reply_has_no_hole_in_whatever_order_its_pieces_were_kept(
    tmp_path: Path, order: tuple[int, ...], text: str
) -> None:
    settings = settings_for(tmp_path, flush_interval_seconds=0.05)
    async with recording(settings) as killed:
        refuse(tmp_path, "exchanges")
        live = open_live(killed)
        for count, data in enumerate((b"".join(HELLO), MORE, END), start=2):
            live.feed(data)
            await eventually(lambda count=count: kept(tmp_path) == count)  # type: ignore[misc]
        await die(killed)
    file = dead_letter_path(tmp_path / "stellarchat.db", tmp_path)
    lines = file.read_bytes().splitlines()
    # Beside a line that no program understands, each is stored on its own.
    file.write_bytes(b'{"kind":"?"}\n' + b"".join(lines[number] + b"\n" for number in order))
    allow(tmp_path)
    async with recording(settings):
        assert kept(tmp_path) == 1
        assert [content for content, _ in replies(tmp_path)] == ([text] if text else [])
        assert statuses(tmp_path) == ["incomplete"]


async def test_a_reply_streams_to_the_dead_letters_although_its_long_request_was_rejected_in_a_later_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_batch, "_LONG_SECONDS", 0.0005)
    settings = settings_for(tmp_path, flush_interval_seconds=0.05)
    async with recording(settings) as killed:
        refuse(tmp_path, "messages")
        live = open_of(killed, MANY)
        live.feed(b"".join(HELLO))
        await eventually(lambda: kept(tmp_path) == 2)
        await die(killed)
        allow(tmp_path)
        async with recording(settings):
            await eventually(lambda: replies(tmp_path) == [("Hel", "incomplete")])


async def test_a_reply_that_outlasts_the_refusal_is_stored_once_and_whole(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, flush_interval_seconds=0.05)
    async with recording(settings) as recorder:
        refuse(tmp_path, "exchanges")
        live = open_live(recorder)
        live.feed(b"".join(HELLO))
        await eventually(lambda: kept(tmp_path) == 2)
        allow(tmp_path)
        for data in WORLD[:2]:
            live.feed(data)
        live.reply.take_whole(
            b'{"choices":[{"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}]}'
        )
        saved = recorder.finish(live, Outcome(status="completed", reply=live.reply))
        assert saved is not None
        assert await saved is True
        recorder.recovery._retry_refused_at = 0.0
        await eventually(lambda: not kept(tmp_path))
        assert replies(tmp_path) == [("Hello", "completed")]
    assert not rows(tmp_path, "SELECT 1 FROM exchange_fragments")


async def test_one_chat_that_is_refused_again_and_again_does_not_speak_for_the_database(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, flush_interval_seconds=0.05)
    async with recording(settings) as recorder:
        refuse(tmp_path, "exchanges")
        live = open_live(recorder)
        for count in range(2, 6):
            live.feed(MORE)
            await eventually(lambda count=count: kept(tmp_path) == count)  # type: ignore[misc]
        assert recorder.writer.last_error is None
        for text in ("a", "b"):
            open_live(recorder, text).feed(MORE)
        await eventually(lambda: recorder.writer.last_error is not None)


async def test_pieces_of_a_deleted_chat_are_kept_nowhere(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, flush_interval_seconds=0.05)
    async with recording(settings) as recorder:
        live = open_live(recorder)
        live.feed(b"".join(HELLO))
        await eventually(lambda: rows(tmp_path, "SELECT 1 FROM exchange_fragments"))
        await recorder.writer.submit(delete_user)
        live.feed(MORE)
        await eventually(lambda: live.sequence == 2)
        await recorder.writer.flushed()
        assert not kept(tmp_path)
        assert not rows(tmp_path, "SELECT 1 FROM exchange_fragments")
        assert recorder.writer.unsaved == {}
