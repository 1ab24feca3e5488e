"""WriteBatch of one transaction: many with one statement, and read where they are asked for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.ids import uuid7
from proxy.storage import exchange_store, queries
from proxy.storage.exchange import SessionRef
from proxy.storage.page import Page
from proxy.storage.sqlite_connection import SqliteConnection
from proxy.storage.write_batch import write_batch
from tests.stored import assistant, choice, exchange, opened, outcome, user


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[SqliteConnection]:
    with opened(tmp_path / "chat.db") as connection:
        yield connection


def texts(connection: SqliteConnection) -> list[str]:
    return [text for (text,) in connection.execute("SELECT content FROM messages ORDER BY message_no")]


def traced(connection: SqliteConnection, keyword: str) -> list[str]:
    """The statements with a word in them that are run from now on."""
    statements: list[str] = []

    def note(statement: str) -> None:
        if keyword in statement:
            statements.append(statement)

    connection.set_trace_callback(note)
    return statements


@pytest.mark.parametrize("count", (1, 2, 3, 63, 64, 65, 200))
def test_chats_that_end_together_are_stored_with_few_statements(connection: SqliteConnection, count: int) -> None:
    inserts = traced(connection, "INSERT INTO messages")
    with write_batch(connection) as rows:
        for number in range(count):
            exchange_store.finish(rows, exchange([user(f"q{number}")]), outcome(choice(f"a{number}")))
    assert len(inserts) <= 2 * count // 64 + 6
    assert texts(connection) == [text for number in range(count) for text in (f"q{number}", f"a{number}")]
    assert connection.execute("SELECT session_count FROM users WHERE user_id = 'ann'").fetchone() == (count,)
    sessions = connection.execute("SELECT message_count, leaf_no FROM sessions ORDER BY session_no").fetchall()
    assert sessions == [(2, 2 * (number + 1)) for number in range(count)]


@pytest.mark.parametrize("turns", (1, 2, 5))
def test_a_resent_history_is_placed_with_one_query(connection: SqliteConnection, turns: int) -> None:
    session_id, messages = uuid7(), [user("q")]
    for turn in range(turns):
        asked = exchange(messages, session_id=session_id)
        with write_batch(connection) as rows:
            exchange_store.finish(rows, asked, outcome(choice(f"a{turn}")))
        messages = [*messages, assistant(f"a{turn}"), user(f"q{turn}")]
    queries_of_messages = traced(connection, "FROM messages")
    with write_batch(connection) as rows:
        exchange_store.finish(rows, exchange(messages, session_id=session_id), outcome(choice("done")))
    assert len(queries_of_messages) == 1
    depths = connection.execute("SELECT depth, parent_no FROM messages ORDER BY message_no").fetchall()
    assert depths == [(depth, depth or None) for depth in range(2 * turns + 2)]


def test_a_chat_that_goes_on_in_the_same_transaction_finds_what_it_goes_on_from(
    connection: SqliteConnection,
) -> None:
    session_id = uuid7()
    first, second = exchange([user("q")]), exchange([user("q"), assistant("a"), user("more")], session_id=session_id)
    first.session = SessionRef(session_id, "new")
    with write_batch(connection) as rows:
        exchange_store.finish(rows, first, outcome(choice("a")))
        exchange_store.finish(rows, second, outcome(choice("done")))
    assert texts(connection) == ["q", "a", "more", "done"]
    session = queries.sessions.get_session(connection, session_id)
    assert session is not None
    assert (session.message_count, session.leaf_no) == (4, 4)


def test_an_exchange_begun_continued_and_ended_in_one_transaction_is_whole(connection: SqliteConnection) -> None:
    asked = exchange([user("q")])
    with write_batch(connection) as rows:
        exchange_store.begin(rows, asked, worker_id="w")
        exchange_store.append_fragment(
            rows, asked.origin, exchange_id=asked.exchange_id, sequence=0, data=b"data: x\n\n"
        )
        exchange_store.finish_begun(rows, asked, outcome(choice("a")))
        exchange_store.finish_begun(rows, asked, outcome(choice("again")))
    assert texts(connection) == ["q", "a"]
    assert connection.execute("SELECT status, worker_id FROM exchanges").fetchall() == [("completed", None)]
    with write_batch(connection) as rows:
        exchange_store.delete_fragments(rows, [asked.exchange_id])
    assert connection.execute("SELECT COUNT(*) FROM exchange_fragments").fetchone() == (0,)


def test_only_ended_exchanges_lose_their_pieces(connection: SqliteConnection) -> None:
    ended, going = exchange([user("q")]), exchange([user("another")])
    with write_batch(connection) as rows:
        for each in (ended, going):
            exchange_store.begin(rows, each, worker_id="w")
            exchange_store.append_fragment(
                rows, each.origin, exchange_id=each.exchange_id, sequence=0, data=each.exchange_id.encode()
            )
        exchange_store.finish_begun(rows, ended, outcome(choice("a")))
        exchange_store.delete_fragments(rows, [ended.exchange_id, going.exchange_id])
    left = connection.execute("SELECT data FROM exchange_fragments").fetchall()
    assert left == [(going.exchange_id.encode(),)]


def test_many_ends_at_once_each_get_their_own_outcome(connection: SqliteConnection) -> None:
    asked = [exchange([user(f"q{number}")]) for number in range(70)]
    with write_batch(connection) as rows:
        for each in asked:
            exchange_store.begin(rows, each, worker_id="w")
    with write_batch(connection) as rows:
        for number, each in enumerate(asked):
            exchange_store.finish_begun(rows, each, outcome(choice(f"a{number}", finish_reason=f"r{number}")))
    found = connection.execute(
        """SELECT m.content, e.finish_reason FROM exchanges AS e JOIN messages AS m USING (exchange_no)
           WHERE m.role = 'assistant' ORDER BY e.exchange_no"""
    )
    assert found.fetchall() == [(f"a{number}", f"r{number}") for number in range(70)]


def test_numbers_given_out_by_another_are_not_given_out_again(connection: SqliteConnection) -> None:
    with write_batch(connection) as rows:
        exchange_store.finish(rows, exchange([user("one")]), outcome(choice("1")))
        own = rows.connection
        session = queries.sessions.list_sessions(own, user_id="ann", page=Page(limit=1))[0]
        exchange_store.append_message(own, session, user("by hand"))
        exchange_store.finish(rows, exchange([user("two")]), outcome(choice("2")))
    assert texts(connection) == ["one", "1", "by hand", "two", "2"]


def test_a_number_is_never_used_twice(connection: SqliteConnection) -> None:
    for text in ("one", "two"):
        with write_batch(connection) as rows:
            exchange_store.finish(rows, exchange([user(text)]), outcome(choice("a")))
        connection.execute("DELETE FROM sessions")
    with write_batch(connection) as rows:
        exchange_store.finish(rows, exchange([user("three")]), outcome(choice("a")))
    assert connection.execute("SELECT message_no FROM messages").fetchall() == [(5,), (6,)]
    assert connection.execute("SELECT exchange_no FROM exchanges").fetchall() == [(3,)]


def test_large_messages_do_not_wait_for_each_other(connection: SqliteConnection) -> None:
    inserts = traced(connection, "INSERT INTO messages")
    with write_batch(connection) as rows:
        for _ in range(4):
            exchange_store.finish(rows, exchange([user("x" * 3 * 2**20)]), outcome(choice("a")))
    assert len(inserts) > 2
    assert connection.execute("SELECT SUM(message_count) FROM sessions").fetchone() == (8,)


def test_what_a_failed_transaction_had_gathered_is_not_stored(connection: SqliteConnection) -> None:
    def fail() -> None:
        with write_batch(connection) as rows:
            exchange_store.finish(rows, exchange([user("q")]), outcome(choice("a")))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert texts(connection) == []
