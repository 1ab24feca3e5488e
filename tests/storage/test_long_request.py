"""Very long requests: stored in slices, once, whatever comes in between."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.recording import spill_codec
from proxy.recording.transactions import commit, replay_lines
from proxy.storage.exchange import Exchange, Outcome, SessionRef
from proxy.storage.exchange_store import begin, finish, finish_begun, recover
from proxy.storage.long_request import LongRequest
from proxy.storage.sqlite_connection import SqliteConnection
from proxy.storage.write_batch import UNFINISHED, WriteBatch
from tests.chats import user
from tests.stored import execute, opened


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[SqliteConnection]:
    with opened(tmp_path / "x.db") as connection:
        yield connection


def exchange_of(count: int, *, external_id: str | None = None) -> Exchange:
    session = SessionRef(f"session-{count}", "header" if external_id else "new", external_id)
    messages = [user(f"m{number}") for number in range(count)]
    return Exchange(
        user_id="u", session=session, endpoint="/v1/chat/completions", request_id="r", request={"messages": messages}
    )


def in_slices(exchange: Exchange, long: LongRequest | None = None) -> Callable[[WriteBatch], Any]:
    return (long or LongRequest(exchange)).before(lambda rows: finish(rows, exchange, Outcome(status="completed")))


def texts(connection: SqliteConnection) -> list[str]:
    return [text for (text,) in connection.execute("SELECT content FROM messages ORDER BY depth, message_no")]


def run_to_the_end(connection: SqliteConnection, work: Callable[[WriteBatch], Any]) -> int:
    steps = 1
    while (result := commit(connection, [work])) == [UNFINISHED]:
        steps += 1
    assert result == [True]
    return steps


def test_slices_store_what_one_transaction_would(connection: SqliteConnection) -> None:
    run_to_the_end(connection, in_slices(exchange_of(2000)))
    assert texts(connection) == [f"m{number}" for number in range(2000)]
    assert connection.execute("SELECT message_count FROM sessions").fetchall() == [(2000,)]
    (leaf,) = connection.execute("SELECT content FROM exchanges JOIN messages ON message_no = leaf_no").fetchone()
    assert leaf == "m1999"


def test_other_writes_are_committed_between_the_slices(connection: SqliteConnection) -> None:
    giant = in_slices(exchange_of(3000))
    connection.execute("CREATE TABLE others (number INTEGER)")
    done = 0
    while True:

        def other(rows: WriteBatch, number: int = done) -> None:
            execute(rows.connection, "INSERT INTO others VALUES (?)", (number,))

        second, first = commit(connection, [other, giant])
        done += 1
        assert second is None  # it was done in the same transaction as the slice
        if first is not UNFINISHED:
            break
    assert connection.execute("SELECT COUNT(*) FROM others").fetchone() == (done,)
    assert len(texts(connection)) == 3000


def test_a_slice_that_was_rolled_back_is_stored_again(connection: SqliteConnection) -> None:
    exchange = exchange_of(1500)
    long = LongRequest(exchange)
    connection.execute("BEGIN IMMEDIATE")
    rows = WriteBatch(connection)
    long.is_stored(rows)
    rows.flush()
    connection.execute("ROLLBACK")
    run_to_the_end(connection, in_slices(exchange, long))
    assert texts(connection) == [f"m{number}" for number in range(1500)]


def test_a_long_history_that_is_resent_is_stored_once(connection: SqliteConnection) -> None:
    for count in (1200, 1300):
        run_to_the_end(connection, in_slices(exchange_of(count, external_id="mine")))
    assert texts(connection) == [f"m{number}" for number in range(1300)]
    assert connection.execute("SELECT COUNT(*) FROM sessions").fetchone() == (1,)


class Looks:
    """A moment that has come after so many looks at the clock: there is one for every 32 messages."""

    def __init__(self, count: int) -> None:
        self._left = count

    def __lt__(self, now: float) -> bool:
        self._left -= 1
        return self._left < 0


COUNT = 2000
HASHED = -(-COUNT // 32)


def store_slice(connection: SqliteConnection, work: Callable[[WriteBatch], Any], *, looks: int) -> None:
    """One transaction, which ends early."""

    def cut(rows: WriteBatch) -> Any:
        rows.long_ends_at = Looks(looks)  # type: ignore[assignment]
        return work(rows)

    assert commit(connection, [cut]) == [UNFINISHED]


def begun(exchange: Exchange, long: LongRequest) -> Callable[[WriteBatch], Any]:
    return long.before(lambda rows: begin(rows, exchange, worker_id="w"))


def ended(exchange: Exchange, long: LongRequest) -> Callable[[WriteBatch], Any]:
    return long.before(lambda rows: finish_begun(rows, exchange, Outcome(status="completed")))


def assert_stored_once(connection: SqliteConnection, *, exchanges: int = 1) -> None:
    assert texts(connection) == [f"m{number}" for number in range(COUNT)]
    assert connection.execute("SELECT message_count FROM sessions").fetchall() == [(COUNT,)]
    assert connection.execute("SELECT status FROM exchanges").fetchall() == [("completed",)] * exchanges


@pytest.mark.parametrize("slices", (0, 1, 3))
def test_a_line_that_is_replayed_between_the_slices_stores_nothing_twice(
    connection: SqliteConnection, slices: int
) -> None:
    exchange = exchange_of(COUNT)
    long = LongRequest(exchange)
    for number in range(slices):
        store_slice(connection, begun(exchange, long), looks=10 + (0 if number else HASHED))
    line = spill_codec.begin_line(exchange, worker_id="w")
    assert replay_lines(connection, [line], spill_codec.replay) == []
    run_to_the_end(connection, ended(exchange, long))
    assert_stored_once(connection)


def test_a_line_whose_replay_was_broken_off_stores_nothing_twice(connection: SqliteConnection) -> None:
    exchange = exchange_of(COUNT)
    long = LongRequest(exchange)
    store_slice(connection, begun(exchange, long), looks=HASHED + 5)
    store_slice(connection, spill_codec.replay(spill_codec.begin_line(exchange, worker_id="w")), looks=HASHED + 20)
    run_to_the_end(connection, ended(exchange, long))
    assert_stored_once(connection)


@pytest.mark.parametrize("slices", (1, 2, 4))
def test_a_process_killed_between_the_slices_is_replaced_by_one_that_goes_on(tmp_path: Path, slices: int) -> None:
    exchange = exchange_of(COUNT)
    long = LongRequest(exchange)
    lines = [
        spill_codec.begin_line(exchange, worker_id="w"),
        spill_codec.finish_line(exchange, Outcome(status="completed")),
    ]
    with opened(tmp_path / "x.db") as killed:
        for number in range(slices):
            store_slice(killed, begun(exchange, long), looks=10 + (0 if number else HASHED))
    with opened(tmp_path / "x.db") as connection:
        for _ in range(2):  # it may be killed as well before the file is removed
            assert replay_lines(connection, lines, spill_codec.replay) == []
            connection.execute("BEGIN")
            recover(WriteBatch(connection), "w")
            connection.execute("COMMIT")
        assert_stored_once(connection)


@pytest.mark.parametrize("looks", (1, 30))
def test_the_same_long_request_sent_again_while_it_is_stored_is_stored_once(
    connection: SqliteConnection, looks: int
) -> None:
    first, second = exchange_of(COUNT, external_id="mine"), exchange_of(COUNT, external_id="mine")
    one, other = in_slices(first), in_slices(second)
    store_slice(connection, one, looks=HASHED + 10)
    store_slice(connection, other, looks=HASHED + looks)
    store_slice(connection, one, looks=5)
    run_to_the_end(connection, other)
    run_to_the_end(connection, one)
    assert_stored_once(connection, exchanges=2)
