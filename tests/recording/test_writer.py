import asyncio
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import UnavailableError
from proxy.recording.spill import Spill
from proxy.recording.write_queue import QueueFullError
from proxy.recording.writer import Writer
from proxy.storage.database import Database
from proxy.storage.errors import StorageError
from proxy.storage.sqlite import connect
from proxy.storage.sqlite_connection import SqliteConnection
from proxy.storage.write_batch import UNFINISHED, WriteBatch
from tests.stored import execute


@asynccontextmanager
async def writing(
    folder: Path,
    *,
    queue_limit: int = 10_000,
    queue_limit_bytes: int = 2**20,
    commit_timeout_seconds: float = 5.0,
    reserve_bytes: int = 65536,
    replays: Callable[[str], Callable[[WriteBatch], Any]] | None = None,
) -> AsyncIterator[Writer]:
    """A writer on a table of names; a spilled line is a name."""
    database = Database(folder / "x.db")
    await database.open()
    await database.write(partial(execute, statement="CREATE TABLE IF NOT EXISTS names (name UNIQUE)"))
    spill = Spill(folder / "spill", reserve_bytes=reserve_bytes)
    writer = Writer(
        database,
        spill,
        replay=lambda line: (replays or insert)(line.decode()),
        dead_letters_path=folder / "refused",
        queue_limit=queue_limit,
        queue_limit_bytes=queue_limit_bytes,
        commit_timeout_seconds=commit_timeout_seconds,
    )
    await writer.start()
    try:
        yield writer
    finally:
        await writer.close()
        await database.close()


def insert(name: str) -> Callable[[WriteBatch], None]:
    def work(rows: WriteBatch) -> None:
        execute(rows.connection, "INSERT INTO names VALUES (?)", (name,))

    return work


def insert_if_missing(name: str) -> Callable[[WriteBatch], None]:
    def work(rows: WriteBatch) -> None:
        execute(rows.connection, "INSERT INTO names VALUES (?) ON CONFLICT DO NOTHING", (name,))

    return work


def record(writer: Writer, name: str, *, size: int = 1) -> asyncio.Future[Any]:
    """A write that must not be lost."""
    return writer.submit(insert(name), spilled=lambda: name.encode(), size=size)


def names(folder: Path) -> list[str]:
    connection = sqlite3.connect(folder / "x.db")
    try:
        return [name for (name,) in connection.execute("SELECT name FROM names ORDER BY rowid")]
    finally:
        connection.close()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Another program holds the write lock."""
    connection = connect(folder / "x.db")
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.close()


@contextmanager
def no_growth(*, limit: int) -> Iterator[None]:
    """No file of this process grows beyond `limit` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_gathers_while_a_commit_runs_is_one_transaction(tmp_path: Path) -> None:
    async with writing(tmp_path) as writer:
        await asyncio.gather(*(record(writer, str(number)) for number in range(500)))
        assert writer.commits <= 2
    assert names(tmp_path) == [str(number) for number in range(500)]


async def test_a_write_that_is_done_is_seen_by_another_connection(tmp_path: Path) -> None:
    async with writing(tmp_path) as writer:
        for number in range(20):
            await record(writer, str(number))
            assert names(tmp_path)[-1] == str(number)


async def test_one_write_that_cannot_be_done_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    async with writing(tmp_path) as writer:
        await record(writer, "a")
        good, bad, other = record(writer, "b"), writer.submit(insert("a")), record(writer, "c")
        await asyncio.gather(good, other)
        with pytest.raises(StorageError, match="constraint failed"):
            await bad
        assert await record(writer, "a") is True  # on the dead-letter file
        assert writer.unsaved == {"refused": 1}
        assert (tmp_path / "refused").read_bytes() == b"a\n"
    assert names(tmp_path) == ["a", "b", "c"]


async def test_while_the_database_is_locked_writes_are_on_the_spill_file_and_come_back_in_order(tmp_path: Path) -> None:
    async with writing(tmp_path) as writer:
        with locked(tmp_path):
            for number in range(10):
                assert await record(writer, str(number)) is True
            assert writer.waiting == 10
            assert names(tmp_path) == []
        last = record(writer, "last")
        await until(lambda: not writer.waiting)
        assert await last in (None, True)
        assert not writer.unsaved
    assert names(tmp_path) == [*map(str, range(10)), "last"]


async def test_a_short_lock_is_no_trouble_and_refuses_nobody(tmp_path: Path) -> None:
    async with writing(tmp_path) as writer:
        with locked(tmp_path):
            refusable = writer.submit(insert("a"))
            assert await record(writer, "b") is True
            assert writer.last_error is None
            assert not refusable.done()
        await refusable
    assert sorted(names(tmp_path)) == ["a", "b"]


async def test_a_long_lock_is_trouble_until_it_is_over_without_anyone_writing(tmp_path: Path) -> None:
    async with writing(tmp_path) as writer:
        with locked(tmp_path):
            with pytest.raises(UnavailableError):
                await writer.submit(insert("a"))
            assert writer.last_error == "database is locked"
        await until(lambda: writer.last_error is None)
    assert names(tmp_path) == []


async def test_a_full_disk_is_trouble_and_the_reserved_space_takes_the_writes(tmp_path: Path) -> None:
    async with writing(tmp_path, reserve_bytes=2**20) as writer:
        await record(writer, "before")
        with no_growth(limit=(tmp_path / "x.db-wal").stat().st_size):
            # Within the limit the spill file is all there is: every page of the log is new.
            assert await record(writer, "during " + "x" * 4000) is True
            assert writer.last_error is not None
            assert writer.waiting == 1
        await until(lambda: writer.last_error is None)
    assert [name.split(" ")[0] for name in names(tmp_path)] == ["before", "during"]


async def test_without_database_and_spill_the_end_goes_out_after_the_timeout_and_the_write_is_still_tried(
    tmp_path: Path,
) -> None:
    async with writing(tmp_path, commit_timeout_seconds=0.2, reserve_bytes=0) as writer:
        with locked(tmp_path), no_growth(limit=0):
            assert await record(writer, "a") is False
            assert writer.unsaved == {"spill_failed": 1}
            assert writer.last_error is not None
            assert writer.waiting == 1
        await until(lambda: not writer.waiting)
    assert names(tmp_path) == ["a"]


async def test_a_spill_with_room_for_some_takes_those(tmp_path: Path) -> None:
    async with writing(tmp_path, commit_timeout_seconds=2, reserve_bytes=0) as writer:
        with locked(tmp_path), no_growth(limit=2000):
            saved = [record(writer, f"{number} " + "x" * 900) for number in range(4)]
            assert await asyncio.gather(*saved) == [True, True, False, False]
        await until(lambda: not writer.waiting)
    assert [name[0] for name in names(tmp_path)] == ["0", "1", "2", "3"]


async def test_a_write_that_cannot_be_spelled_out_does_not_stop_the_others(tmp_path: Path) -> None:
    def broken() -> bytes:
        raise ValueError("no line for this")

    async with writing(tmp_path) as writer:
        with locked(tmp_path):
            lost: asyncio.Future[Any] = writer.submit(insert("a"), spilled=broken)
            assert await lost is False
            assert await record(writer, "b") is True
        await until(lambda: not writer.waiting)
        assert writer.unsaved == {"spill_failed": 1}
    assert sorted(names(tmp_path)) == ["a", "b"]


async def test_a_full_queue_refuses_by_count_and_by_size(tmp_path: Path) -> None:
    async with writing(tmp_path, queue_limit=2, queue_limit_bytes=100) as writer:
        saved = [record(writer, "a", size=60)]
        with pytest.raises(QueueFullError):
            record(writer, "too large", size=60)
        saved.append(record(writer, "b"))
        with pytest.raises(QueueFullError):
            record(writer, "too many")
        await asyncio.gather(*saved)  # a slow commit is acknowledged from the spill file
        await until(lambda: not writer.queued_bytes)
    assert names(tmp_path) == ["a", "b"]


async def test_closing_spills_all_that_the_database_does_not_take(tmp_path: Path) -> None:
    count = 2500  # more than one batch
    with locked_later(tmp_path) as lock:
        async with writing(tmp_path, reserve_bytes=0) as writer:
            lock()
            saved = [record(writer, str(number)) for number in range(count)]
            refused = writer.submit(insert("refused"))
        assert await asyncio.gather(*saved) == [True] * count
        with pytest.raises(UnavailableError):
            await refused
    assert (tmp_path / "spill").read_bytes().count(b"\n") == count


async def test_closing_during_an_append_does_not_spill_its_writes_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    appending, going_on, append = threading.Event(), threading.Event(), Spill.append

    def slow_append(spill: Spill, lines: list[bytes]) -> None:
        append(spill, lines)
        appending.set()
        going_on.wait(20)

    monkeypatch.setattr(Spill, "append", slow_append)
    with locked_later(tmp_path) as lock:
        async with writing(tmp_path, reserve_bytes=0) as writer:
            lock()
            saved = record(writer, "a")
            await until(appending.is_set)
            asyncio.get_running_loop().call_later(0.3, going_on.set)  # while the writer is closing
        assert await saved is True
    assert (tmp_path / "spill").read_bytes().count(b"\n") == 1


async def test_closing_without_database_and_spill_says_what_is_lost_and_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with locked_later(tmp_path) as lock:
        async with writing(tmp_path, reserve_bytes=0) as writer:
            lock()
            with no_growth(limit=0):
                saved = record(writer, "a")
                await writer.close()
            assert await saved is False
            with pytest.raises(QueueFullError):
                record(writer, "too late")
    assert "1 writes are lost" in caplog.text


@contextmanager
def locked_later(folder: Path) -> Iterator[Callable[[], None]]:
    """What takes the write lock when it is called, and keeps it to the end of the block."""
    held: list[SqliteConnection] = []

    def lock() -> None:
        held.append(connect(folder / "x.db"))
        held[0].execute("BEGIN IMMEDIATE")

    try:
        yield lock
    finally:
        for connection in held:
            connection.close()


@contextmanager
def stalled(writer: Writer) -> Iterator[None]:
    """The database's thread is held, as inside an `fsync` that does not return."""
    going_on = threading.Event()

    def hold(_rows: WriteBatch) -> None:
        going_on.wait(20)

    writer.submit(hold)
    try:
        yield
    finally:
        going_on.set()


async def test_a_stalled_disk_is_bridged_by_the_spill_and_said(tmp_path: Path) -> None:
    async with writing(tmp_path, commit_timeout_seconds=2.0) as writer:
        with stalled(writer):
            assert await record(writer, "a") is True
            assert b"a\n" in (tmp_path / "spill").read_bytes()
            await until(lambda: writer.last_error is not None)
            assert await record(writer, "b") is True
            with pytest.raises(UnavailableError):
                await writer.submit(insert("by hand"))
        await until(lambda: not writer.waiting and not writer.spilled)
        assert writer.last_error is None
        assert not writer.unsaved
    assert names(tmp_path) == ["a", "b"]


async def test_closing_does_not_wait_for_a_stalled_disk(tmp_path: Path) -> None:
    async with writing(tmp_path, commit_timeout_seconds=0.4) as writer:
        with stalled(writer):
            saved = record(writer, "a")
            assert await saved is True
            await writer.close()
            assert (tmp_path / "spill").read_bytes().startswith(b"a\n")


async def test_what_stalls_twice_is_counted_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on = threading.Event()
    monkeypatch.setattr(Spill, "append", lambda _spill, _lines: going_on.wait(20))
    async with writing(tmp_path, commit_timeout_seconds=0.4) as writer:
        with stalled(writer):
            assert await record(writer, "a") is False
            assert writer.unsaved == {"spill_stalled": 1}
            await until(lambda: writer.last_error is not None)
            going_on.set()
            monkeypatch.undo()


async def test_writes_that_are_spilled_during_a_replay_are_not_cleared_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with writing(tmp_path, replays=insert_if_missing) as writer:
        overflow = writer.overflow
        lines = overflow.lines

        async def spilling_meanwhile(start: int, end: int) -> tuple[list[bytes], int]:
            read = await lines(start, end)
            monkeypatch.undo()
            record(writer, "b")
            await overflow.spill_due(everything=True)
            overflow.forget_copies()
            return read

        with locked(tmp_path):
            await record(writer, "a")
            await until(lambda: writer.last_error)  # until then it is tried, and could be stored without the file
            overflow.forget_copies()
            monkeypatch.setattr(overflow, "lines", spilling_meanwhile)
        await until(lambda: not writer.waiting)
    assert names(tmp_path) == ["a", "b"]


async def test_a_read_waits_for_a_write_that_was_spilled_because_its_commit_is_slow(tmp_path: Path) -> None:
    def slow(rows: WriteBatch) -> Any:  # `submit` says whether it was spilled
        time.sleep(1.2)
        insert("slow")(rows)

    async with writing(tmp_path) as writer:
        assert await writer.submit(slow, spilled=lambda: b"slow") is True
        assert writer.spilled
        await writer.flushed()
        assert names(tmp_path) == ["slow"]


async def test_a_read_waits_for_a_spilled_long_write_though_a_later_one_is_stored(tmp_path: Path) -> None:
    may_end = threading.Event()

    def long(rows: WriteBatch) -> Any:
        return insert("long")(rows) if may_end.wait(0.01) else UNFINISHED

    async with writing(tmp_path) as writer:
        assert await writer.submit(long, spilled=lambda: b"long") is True
        later = record(writer, "later")
        reading = asyncio.create_task(writer.flushed())
        await later
        has_read, _ = await asyncio.wait([reading], timeout=0.2)
        may_end.set()
        await reading
        assert (has_read, sorted(names(tmp_path))) == (set(), ["later", "long"])


async def test_a_read_waits_no_longer_than_its_write_is_only_in_the_spill_file(tmp_path: Path) -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    def slow(rows: WriteBatch) -> Any:
        has_begun.set()
        may_end.wait(20)
        insert("slow")(rows)

    async with writing(tmp_path, commit_timeout_seconds=60, replays=insert_if_missing) as writer:
        in_flight = writer.submit(slow, spilled=lambda: b"slow")
        await until(has_begun.is_set)
        await asyncio.gather(in_flight, record(writer, "behind"))
        reading = asyncio.create_task(writer.flushed())
        await asyncio.sleep(0)
        writer.overflow.forget_copies()
        may_end.set()
        async with asyncio.timeout(20):
            await reading
        assert sorted(names(tmp_path)) == ["behind", "slow"]


async def test_files_that_come_back_before_anything_is_spilled_stop_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside, slow = tmp_path / "aside", threading.Event()
    append = Spill.append
    monkeypatch.setattr(Spill, "append", lambda spill, lines: slow.wait(20) and append(spill, lines))

    def store_and_move_away(rows: WriteBatch) -> None:
        insert("a")(rows)
        rows.flush()
        (tmp_path / "x.db").rename(aside)

    async with writing(tmp_path, replays=insert_if_missing) as writer:
        first = writer.submit(store_and_move_away, spilled=lambda: b"a")
        await until(aside.exists)
        by_hand = writer.submit(insert("by hand"))
        await until(lambda: writer.last_error is not None)
        aside.rename(tmp_path / "x.db")
        await until(lambda: not writer.waiting)
        await first
        await record(writer, "b")
        slow.set()
        with suppress(UnavailableError):
            await by_hand
    assert [name for name in names(tmp_path) if name != "by hand"] == ["a", "b"]


@pytest.mark.parametrize("suffix", ("", "-wal"))
async def test_files_that_were_moved_away_are_noticed_and_come_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.db{suffix}"
    async with writing(tmp_path) as writer:
        await record(writer, "before")
        path.rename(tmp_path / "aside")
        assert await record(writer, "during") is True
        assert writer.last_error is not None
        assert writer.spilled
        (tmp_path / "aside").rename(path)
        await until(lambda: not writer.waiting and not writer.spilled)
    assert names(tmp_path) == ["before", "during"]


async def test_what_is_refused_again_and_again_is_said(tmp_path: Path) -> None:
    async with writing(tmp_path) as writer:
        await record(writer, "a")
        for _ in range(3):
            assert await record(writer, "a") is True
        assert "rejects" in (writer.last_error or "")
        assert writer.unsaved == {"refused": 3}


async def test_the_writer_survives_its_own_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with writing(tmp_path) as writer:
        with monkeypatch.context() as patched:
            patched.setattr(writer._queue, "take", lambda _limit: 1 / 0)
            assert await record(writer, "a") is True  # by the spill
        await until(lambda: not writer.waiting)
    assert names(tmp_path) == ["a"]
