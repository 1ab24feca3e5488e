import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy import ids
from proxy.recording.open_exchange import OpenExchange
from proxy.recording.recorder import Recorder
from proxy.recording.spill import spill_files
from proxy.settings import Settings
from proxy.storage.engine import database_of
from proxy.storage.exchange import Exchange, Outcome, SessionRef
from proxy.wire.chat_reply import Completion
from tests.engines import connected, on_both_engines, rows_of
from tests.fake_upstream import DONE, FakeUpstream, chat_chunk, event, garbage, sse, until
from tests.serving import running_proxy, settings_for

pytestmark = on_both_engines

CHAT = "/v1/chat/completions"
HELLO = [event(chat_chunk(1, {"role": "assistant", "content": ""})), event(chat_chunk(1, {"content": "Hel"}))]
WORLD = [event(chat_chunk(1, {"content": "lo"})), event(chat_chunk(1, {}, finish_reason="stop")), DONE]


class Caller:
    """A caller on a socket of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.received = b""

    async def read_until(self, text: bytes) -> None:
        async with asyncio.timeout(20):
            while text not in self.received:
                data = await self.reader.read(65536)
                assert data, self.received
                self.received += data

    def leave(self) -> None:
        self.writer.transport.abort()


@asynccontextmanager
async def asking(url: str, text: str = "hi", *, headers: str = "", **fields: Any) -> AsyncIterator[Caller]:
    """A chat that has been sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    body = orjson.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": text}], **fields})
    head = f"POST {CHAT} HTTP/1.1\r\nHost: proxy\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    try:
        yield Caller(reader, writer)
    finally:
        writer.transport.abort()


def rows(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    return rows_of(folder / "stellarchat.db", sql)


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def replies(folder: Path) -> list[tuple[Any, ...]]:
    return rows(
        folder,
        "SELECT content, COALESCE(status, 'completed') FROM messages WHERE role = 'assistant' ORDER BY message_no",
    )


def statuses(folder: Path) -> list[str]:
    return [status for (status,) in rows(folder, "SELECT status FROM exchanges ORDER BY exchange_id")]


def spilled(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*-spill-*"))


def lock(folder: Path) -> ExitStack:
    """Hold the lock that whoever writes takes, until it is closed."""
    stack = ExitStack()
    connection = stack.enter_context(closing(connected(folder / "stellarchat.db")))
    stack.enter_context(connection.transaction())
    connection.numbers()  # on PostgreSQL a transaction begins with its first query
    return stack


# A recorder by itself


@asynccontextmanager
async def recording(settings: Settings) -> AsyncIterator[Recorder]:
    database = database_of(settings)
    await database.open()
    recorder = Recorder(database, settings)
    await recorder.start()
    try:
        yield recorder
    finally:
        await recorder.drain()
        await database.close()


async def die(recorder: Recorder) -> None:
    """What is left of a killed process: nothing but its files, unlocked."""
    for task in (recorder._ticking, recorder._recovering, recorder.writer._task, recorder.writer._spilling):
        assert task is not None
        task.cancel()
        await asyncio.wait([task])
    recorder.writer._task = recorder.writer._spilling = recorder._ticking = recorder._recovering = None
    recorder._is_empty.set()
    os.close(recorder._spill._file)
    recorder._spill.close = lambda: None  # type: ignore[method-assign]


def exchange_of(text: str) -> Exchange:
    return Exchange(
        user_id="u",
        session=SessionRef(ids.uuid7(), "new"),
        endpoint=CHAT,
        request_id="r",
        request={"model": "m", "messages": [{"role": "user", "content": text}]},
    )


def open_live(recorder: Recorder, text: str = "hi") -> OpenExchange:
    live = recorder.open(exchange_of(text), Completion(), size=10)
    live.is_placed = True
    return live


async def open_written_down(recorder: Recorder, folder: Path) -> OpenExchange:
    """An exchange in progress of which a piece is on disk."""
    live = open_live(recorder)
    live.feed(HELLO[0] + HELLO[1])
    await eventually(lambda: rows(folder, "SELECT 1 FROM exchange_fragments"))
    return live


async def test_what_a_killed_process_had_written_down_is_incomplete_at_the_next_start(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, flush_interval_seconds=0.05)
    async with recording(settings) as killed:
        live = open_live(killed)
        live.feed(HELLO[0] + HELLO[1][:30])
        await eventually(lambda: rows(tmp_path, "SELECT 1 FROM exchange_fragments"))
        live.feed(HELLO[1][30:] + WORLD[0][:20])
        await eventually(lambda: len(rows(tmp_path, "SELECT 1 FROM exchange_fragments")) == 2)
        await die(killed)
        async with recording(settings):
            assert replies(tmp_path) == [("Hel", "incomplete")]
            assert statuses(tmp_path) == ["incomplete"]
            assert rows(tmp_path, "SELECT * FROM exchange_fragments") == []
            assert len(spill_files(settings.database_path, folder=settings.state_path)) == 1


async def test_pieces_of_replies_that_ended_just_before_a_kill_go_at_the_next_start(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, flush_interval_seconds=0.05)
    async with recording(settings) as killed:
        live = await open_written_down(killed, tmp_path)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(killed, "_delete_fragments", lambda: None)
            saved = killed.finish(live, Outcome(status="completed"))
            assert saved is not None
            await saved
            await die(killed)
        assert rows(tmp_path, "SELECT 1 FROM exchange_fragments")
        async with recording(settings):
            assert statuses(tmp_path) == ["completed"]
            assert rows(tmp_path, "SELECT 1 FROM exchange_fragments") == []


async def test_a_drained_process_leaves_no_pieces(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, flush_interval_seconds=0.05)
    async with recording(settings) as recorder:
        live = await open_written_down(recorder, tmp_path)
        recorder.finish(live, Outcome(status="completed"))
    assert rows(tmp_path, "SELECT 1 FROM exchange_fragments") == []


async def test_what_a_living_process_streams_is_not_touched_by_another_that_starts(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, flush_interval_seconds=0.05)
    async with recording(settings) as living:
        live = open_live(living)
        live.feed(HELLO[0])
        await eventually(lambda: rows(tmp_path, "SELECT 1 FROM exchange_fragments"))
        async with recording(settings):
            assert statuses(tmp_path) == ["in_progress"]
        assert statuses(tmp_path) == ["in_progress"]
        await living.finish(live, Outcome(status="completed"))  # type: ignore[misc]
        assert statuses(tmp_path) == ["completed"]


async def test_what_a_killed_process_had_spilled_is_stored_once_and_in_order(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, flush_interval_seconds=0.05)
    async with recording(settings) as killed:
        holder = lock(tmp_path)
        ended, streaming = open_live(killed, "ended"), open_live(killed, "streaming")
        streaming.feed(b"".join(HELLO))
        await eventually(lambda: killed._spill.count >= 3)
        reply = Completion.from_body(b'{"choices":[{"message":{"role":"assistant","content":"whole"}}]}')
        saved = killed.finish(ended, Outcome(status="completed", reply=reply))
        assert saved is not None
        assert await saved is True
        await die(killed)
        holder.close()
        for _ in range(2):  # the second start finds nothing to do
            async with recording(settings):
                assert sorted(replies(tmp_path)) == [("Hel", "incomplete"), ("whole", "completed")]
                assert sorted(statuses(tmp_path)) == ["completed", "incomplete"]


async def test_a_spill_file_that_is_read_twice_takes_nothing_from_a_reply(tmp_path: Path) -> None:
    """The process that stores what another has left is killed before it deletes the file."""
    settings = settings_for(tmp_path, flush_interval_seconds=0.05)
    async with recording(settings) as killed:
        live = await open_written_down(killed, tmp_path)
        with lock(tmp_path):
            live.feed(WORLD[0])
            await eventually(lambda: killed._spill.count)
            await die(killed)
        left = spilled(tmp_path)
        for _ in range(2):
            killed._spill.path.write_bytes(left)
            async with recording(settings):
                assert replies(tmp_path) == [("Hello", "incomplete")]
                assert rows(tmp_path, "SELECT 1 FROM exchange_fragments") == []


async def test_a_start_while_the_database_is_locked_serves_and_recovers_later(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, flush_interval_seconds=0.05)
    async with recording(settings) as killed:
        live = open_live(killed)
        live.feed(b"".join(HELLO))
        await eventually(lambda: rows(tmp_path, "SELECT 1 FROM exchange_fragments"))
        await die(killed)
        holder = lock(tmp_path)
        async with recording(settings) as recorder:
            assert statuses(tmp_path) == ["in_progress"]
            saved = recorder.finish(open_live(recorder, "new"), Outcome(status="failed"))
            assert saved is not None
            assert await saved is True
            holder.close()
            await eventually(lambda: sorted(statuses(tmp_path)) == ["failed", "incomplete"])


async def test_a_full_queue_leaves_no_gap_in_what_is_written_down(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, flush_interval_seconds=0.05, queue_limit=10)
    async with recording(settings) as recorder:
        lives = [open_live(recorder, str(number)) for number in range(40)]
        for piece in [*HELLO, *WORLD]:
            for live in lives:
                live.feed(piece)
            await asyncio.sleep(0.06)
        await eventually(lambda: not any(live.unwritten() for live in lives))
        await eventually(lambda: not recorder.writer.waiting)
        for live in lives:
            fragments = rows(
                tmp_path,
                "SELECT data FROM exchange_fragments JOIN exchanges USING (exchange_no) "
                f"WHERE exchange_id = '{live.exchange.exchange_id}' ORDER BY sequence",
            )
            assert b"".join(data for (data,) in fragments) == b"".join([*HELLO, *WORLD])
            while (saved := recorder.finish(live, Outcome(status="completed"))) is None:
                await asyncio.sleep(0.01)
            await saved
    assert statuses(tmp_path) == ["completed"] * 40


async def test_a_reply_that_cannot_be_written_down_does_not_keep_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwritten = OpenExchange.unwritten

    def broken(live: OpenExchange) -> bytes:
        if live.exchange.messages[0]["content"] == "odd":
            raise TypeError("odd")
        return unwritten(live)

    monkeypatch.setattr(OpenExchange, "unwritten", broken)
    async with recording(settings_for(tmp_path, flush_interval_seconds=0.05)) as recorder:
        odd, plain = open_live(recorder, "odd"), open_live(recorder, "plain")
        plain.feed(b"".join(HELLO))
        await eventually(lambda: rows(tmp_path, "SELECT 1 FROM exchange_fragments"))
        plain.feed(b"".join(WORLD))
        await eventually(lambda: len(rows(tmp_path, "SELECT 1 FROM exchange_fragments")) == 2)
        monkeypatch.undo()
        for live in (odd, plain):
            saved = recorder.finish(live, Outcome(status="completed"))
            assert saved is not None
            await saved


async def test_an_exchange_whose_beginning_found_no_room_is_stored_at_its_end(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, flush_interval_seconds=0.05, queue_limit_bytes=100)
    async with recording(settings) as recorder:
        reply = Completion()
        reply.batched.append(b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n')
        live = recorder.open(exchange_of("hi"), reply, size=200)
        live.is_placed = True
        live.opened_at -= 10
        recorder._save_streams([live])
        assert reply.batched == []  # what cannot be written down yet is kept in little room
        assert not live.is_begun
        live.size = 10
        saved = recorder.finish(live, Outcome(status="completed"))
        assert saved is not None
        await saved
    assert statuses(tmp_path) == ["completed"]


async def test_an_exchange_that_finds_no_room_at_its_end_is_counted(tmp_path: Path) -> None:
    async with recording(settings_for(tmp_path, queue_limit_bytes=100)) as recorder:
        for count in (1, 2):
            live = recorder.open(exchange_of("hi"), Completion(), size=200)
            assert recorder.finish(live, Outcome(status="completed")) is None
            assert recorder.writer.unsaved == {"queue_full": count}
        assert recorder.live_count == 0
        saved = recorder.finish(open_live(recorder), Outcome(status="completed"))
        assert saved is not None
        await saved
    assert statuses(tmp_path) == ["completed"]


async def test_identifiers_rise_though_the_clock_jumps_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(tmp_path)
    monkeypatch.setattr(ids, "_last", ids._last)  # put back at the end: later tests would be given tomorrow's
    real = time.time_ns
    async with recording(settings) as recorder:
        for number, jump_s in enumerate((0, -3600, 86400, -86400)):
            monkeypatch.setattr(time, "time_ns", lambda jump_s=jump_s: real() + jump_s * 10**9)
            monkeypatch.setattr(time, "time", lambda jump_s=jump_s: real() / 10**9 + jump_s)
            saved = recorder.finish(open_live(recorder, str(number)), Outcome(status="completed"))
            assert saved is not None
            await saved
    contents = rows(tmp_path, "SELECT content FROM messages JOIN exchanges USING (exchange_no) ORDER BY exchange_id")
    assert contents == [("0",), ("1",), ("2",), ("3",)]


# Through the proxy


async def test_a_reply_is_written_down_while_it_streams(tmp_path: Path, upstream: FakeUpstream) -> None:
    gate = asyncio.Event()
    upstream.on(CHAT, until(gate, HELLO, WORLD))
    settings = settings_for(tmp_path, upstream_url=upstream.url, flush_interval_seconds=0.05)
    async with running_proxy(settings) as url, asking(url) as caller:
        await eventually(lambda: rows(tmp_path, "SELECT 1 FROM exchange_fragments"))
        assert statuses(tmp_path) == ["in_progress"]
        gate.set()
        await caller.read_until(b"[DONE]")
        assert replies(tmp_path) == [("Hello", "completed")]
        await eventually(lambda: not rows(tmp_path, "SELECT * FROM exchange_fragments"))


async def test_only_done_waits_while_the_database_is_locked_whatever_it_is_packed_with(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.on(CHAT, sse([b"".join([*HELLO, *WORLD])]))
    settings = settings_for(tmp_path, upstream_url=upstream.url, spill_reserve_bytes=0)
    async with running_proxy(settings) as url:
        holder = lock(tmp_path)
        async with asking(url) as caller:
            await caller.read_until(b'"finish_reason":"stop"')
            assert b"[DONE]" not in caller.received
            await caller.read_until(b"[DONE]\n\n\r\n0\r\n\r\n")
            assert rows(tmp_path, "SELECT * FROM exchanges") == []
            assert b'"finish"' in spilled(tmp_path)  # on disk before the end went out
        holder.close()
        await eventually(lambda: replies(tmp_path) == [("Hello", "completed")])


async def test_done_does_not_wait_for_upstreams_last_chunk(tmp_path: Path, upstream: FakeUpstream) -> None:
    gate = asyncio.Event()
    upstream.on(CHAT, until(gate, [*HELLO, *WORLD], []))
    async with running_proxy(settings_for(tmp_path, upstream_url=upstream.url)) as url, asking(url) as caller:
        await caller.read_until(b"[DONE]")
        assert replies(tmp_path) == [("Hello", "completed")]
        gate.set()
        await caller.read_until(b"\r\n0\r\n\r\n")


async def test_a_new_session_streams_though_the_database_is_locked(tmp_path: Path, upstream: FakeUpstream) -> None:
    gate = asyncio.Event()
    upstream.on(CHAT, until(gate, HELLO, WORLD))
    async with running_proxy(settings_for(tmp_path, upstream_url=upstream.url)) as url:
        holder = lock(tmp_path)
        async with asking(url, headers="X-Session-Id: mine\r\n") as caller:
            await caller.read_until(b"Hel")
            gate.set()
            await caller.read_until(b"[DONE]")
        holder.close()
        await eventually(lambda: replies(tmp_path) == [("Hello", "completed")])
    assert rows(tmp_path, "SELECT external_id FROM sessions") == [("mine",)]


async def test_a_caller_who_leaves_is_saved_with_what_had_come_and_upstream_is_left(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.on(CHAT, until(asyncio.Event(), HELLO, WORLD))
    async with running_proxy(settings_for(tmp_path, upstream_url=upstream.url)) as url:
        async with asking(url) as caller:
            await caller.read_until(b"Hel")
        await eventually(lambda: replies(tmp_path) == [("Hel", "incomplete")])
        await upstream.until(lambda: upstream.calls[0].left)
    assert "caller_disconnected" in rows(tmp_path, "SELECT error FROM exchanges")[0][0]


async def test_a_caller_who_leaves_while_its_session_is_looked_for_is_saved(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.on(CHAT, garbage())
    async with running_proxy(settings_for(tmp_path, upstream_url=upstream.url)) as url:
        holder = lock(tmp_path)
        async with asking(url, headers="X-Session-Id: mine\r\n"):
            await upstream.until(lambda: upstream.calls)
            await asyncio.sleep(0.1)
        holder.close()
        await eventually(lambda: statuses(tmp_path) == ["failed"])


async def test_an_upstream_that_dies_leaves_an_incomplete_reply_and_no_done(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.on(CHAT, sse([*HELLO, *WORLD], die_after=3, reset=True))
    async with running_proxy(settings_for(tmp_path, upstream_url=upstream.url)) as url, asking(url) as caller:
        await caller.read_until(b'"code":"upstream_disconnected"')
        assert await caller.reader.read() in (b"", b"\r\n")
        assert b"[DONE]" not in caller.received
        assert replies(tmp_path) == [("Hello", "incomplete")]


async def test_a_caller_who_leaves_while_the_end_is_stored_leaves_a_whole_reply(
    tmp_path: Path, upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.on(CHAT, sse([*HELLO, *WORLD]))
    async with running_proxy(settings_for(tmp_path, upstream_url=upstream.url)) as url:
        holder = lock(tmp_path)
        async with asking(url) as caller:
            await caller.read_until(b'"stop"')
            await asyncio.sleep(0.05)  # [DONE] has come, and is held
            assert b"[DONE]" not in caller.received
        await asyncio.sleep(0.05)
        holder.close()
        await eventually(lambda: replies(tmp_path) == [("Hello", "completed")])
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_caller_who_leaves_after_a_second_request_is_noticed(tmp_path: Path, upstream: FakeUpstream) -> None:
    gate = asyncio.Event()
    upstream.on(CHAT, until(gate, HELLO, WORLD))
    async with running_proxy(settings_for(tmp_path, upstream_url=upstream.url)) as url:
        async with asking(url) as caller:
            await caller.read_until(b"Hel")
            caller.writer.write(b"GET /v1/models HTTP/1.1\r\nHost: proxy\r\n\r\n")
            await asyncio.sleep(0.1)  # until it has been read, and waits for its turn
        await eventually(lambda: replies(tmp_path) == [("Hel", "incomplete")])
    gate.set()


async def test_a_caller_who_leaves_while_a_failure_is_stored_raises_nothing(
    tmp_path: Path, upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.on(CHAT, garbage())
    async with running_proxy(settings_for(tmp_path, upstream_url=upstream.url)) as url:
        holder = lock(tmp_path)
        async with asking(url):
            await upstream.until(lambda: upstream.calls)
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.05)
        holder.close()
        await eventually(lambda: statuses(tmp_path) == ["failed"])
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_garbage_is_a_502_and_a_failed_exchange(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.on(CHAT, garbage())
    async with running_proxy(settings_for(tmp_path, upstream_url=upstream.url)) as url, asking(url) as caller:
        await caller.read_until(b"upstream_protocol_error")
        assert caller.received.startswith(b"HTTP/1.1 502")
        assert statuses(tmp_path) == ["failed"]


async def test_a_reply_is_read_to_its_end_for_a_caller_who_left(tmp_path: Path, upstream: FakeUpstream) -> None:
    gate = asyncio.Event()
    upstream.on(CHAT, until(gate, HELLO, WORLD))
    settings = settings_for(tmp_path, upstream_url=upstream.url, on_disconnect="finish")
    async with running_proxy(settings) as url:
        async with asking(url) as caller:
            await caller.read_until(b"Hel")
        await asyncio.sleep(0.2)  # long enough to be noticed; the test does not depend on it
        gate.set()
        await eventually(lambda: replies(tmp_path) == [("Hello", "completed")])


async def test_no_more_replies_are_orphans_than_the_limit_allows(tmp_path: Path, upstream: FakeUpstream) -> None:
    gate = asyncio.Event()
    upstream.on(CHAT, until(gate, HELLO, WORLD))
    settings = settings_for(tmp_path, upstream_url=upstream.url, on_disconnect="finish", orphan_limit=2)
    async with running_proxy(settings) as url:
        callers = [asking(url, str(number)) for number in range(5)]
        opened = [await each.__aenter__() for each in callers]
        for caller in opened:
            await caller.read_until(b"Hel")
        for each in callers:
            await each.__aexit__(None, None, None)
        await eventually(lambda: statuses(tmp_path).count("incomplete") == 3)
        gate.set()
        await eventually(lambda: statuses(tmp_path).count("completed") == 2)
        async with asking(url, "again") as caller:  # there is room again
            await caller.read_until(b"Hel")
        await eventually(lambda: statuses(tmp_path).count("completed") == 3)
    assert statuses(tmp_path).count("incomplete") == 3
