"""Very long requests: stored in slices, once, whatever comes in between."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.recording.transactions import commit
from proxy.storage.exchange import Exchange, Outcome, SessionRef
from proxy.storage.exchange_store import finish
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
