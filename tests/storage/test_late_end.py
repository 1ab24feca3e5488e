"""An end that was guessed, since its process seemed gone, gives way to the one that the process reports later."""

from pathlib import Path

import pytest

from proxy.storage import exchange_store
from proxy.storage.exchange import Exchange, Status
from proxy.storage.sqlite_connection import SqliteConnection
from proxy.storage.write_batch import write_batch
from tests.stored import assistant, choice, exchange, opened, outcome, problems_of, user

USAGE = {"prompt_tokens": 5, "completion_tokens": 7}
PIECE = b'data: {"choices":[{"index":0,"delta":{"content":"hal"}}]}\n\n'


def begun(connection: SqliteConnection, event: bytes = b"") -> Exchange:
    asked = exchange([user("q")])
    data = PIECE + (b"data: " + event + b"\n\n" if event else b"")
    with write_batch(connection) as rows:
        exchange_store.begin(rows, asked, worker_id="w")
        exchange_store.append_fragment(rows, asked.origin, exchange_id=asked.exchange_id, sequence=0, data=data)
    return asked


def guessed(connection: SqliteConnection, event: bytes = b"") -> Exchange:
    asked = begun(connection, event)
    with write_batch(connection) as rows:
        assert exchange_store.recover(rows, "w") == 1
    return asked


def newest(connection: SqliteConnection) -> object:
    [(content,)] = connection.execute("SELECT m.content FROM sessions JOIN messages AS m ON m.message_no = leaf_no")
    return content


def told(connection: SqliteConnection) -> list[tuple[object, ...]]:
    return connection.execute(
        "SELECT role, content, COALESCE(status, 'completed') FROM messages ORDER BY message_no"
    ).fetchall()


@pytest.mark.parametrize("times", (1, 2))
def test_the_late_end_takes_the_place_of_the_guessed_one_once(tmp_path: Path, times: int) -> None:
    with opened(tmp_path / "a.db") as connection:
        asked = guessed(connection)
        assert told(connection) == [("user", "q", "completed"), ("assistant", "hal", "incomplete")]
        for _ in range(times):
            with write_batch(connection) as rows:
                assert exchange_store.finish_begun(rows, asked, outcome(choice("half a loaf")))
        assert told(connection) == [("user", "q", "completed"), ("assistant", "half a loaf", "completed")]
        assert connection.execute("SELECT status FROM exchanges").fetchall() == [("completed",)]
        assert connection.execute("SELECT message_count FROM sessions").fetchall() == [(2,)]
        assert connection.execute("SELECT SUM(requests), SUM(incomplete) FROM usage_days").fetchall() == [(1, 0)]


def test_a_guessed_reply_that_the_conversation_went_on_from_stays(tmp_path: Path) -> None:
    with opened(tmp_path / "a.db") as connection:
        asked = guessed(connection)
        more = exchange([user("q"), assistant("hal"), user("go on")], session_id=asked.session.session_id)
        with write_batch(connection) as rows:
            exchange_store.finish(rows, more, outcome(choice("f a loaf")))
            assert exchange_store.finish_begun(rows, asked, outcome(choice("half a loaf")))
        texts = {content for _, content, _ in told(connection)}
        assert texts == {"q", "hal", "go on", "f a loaf", "half a loaf"}
        assert newest(connection) == "f a loaf"


@pytest.mark.parametrize("status", ("completed", "incomplete"))
def test_a_reply_that_stays_is_not_stored_again_by_an_end_with_the_same_text(tmp_path: Path, status: Status) -> None:
    with opened(tmp_path / "a.db") as connection:
        asked = guessed(connection)
        more = exchange([user("q"), assistant("hal"), user("go on")], session_id=asked.session.session_id)
        with write_batch(connection) as rows:
            exchange_store.finish(rows, more, outcome(choice("f a loaf")))
            late = outcome(choice(" hal", finish_reason="stop"), usage=USAGE, status=status)
            assert exchange_store.finish_begun(rows, asked, late)
        assert [row[1:] for row in told(connection)] == [
            ("q", "completed"),
            (" hal", "completed"),
            ("go on", "completed"),
            ("f a loaf", "completed"),
        ]
        assert newest(connection) == "f a loaf"
        assert connection.execute("SELECT tokens, message_count FROM sessions").fetchall() == [(7, 4)]
    assert problems_of(tmp_path / "a.db") == []


def test_usage_of_a_guessed_end_is_replaced_by_that_of_the_late_one(tmp_path: Path) -> None:
    """Also if the guessed one knew tokens, or another model."""
    with opened(tmp_path / "a.db") as connection:
        asked = guessed(connection, b'{"model":"other","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1}}')
        with write_batch(connection) as rows:
            exchange_store.finish_begun(rows, asked, outcome(choice("half a loaf"), usage=USAGE))
        used = connection.execute(
            "SELECT model, requests, incomplete, prompt_tokens, completion_tokens FROM usage_days ORDER BY model"
        ).fetchall()
    assert used == [("m", 1, 0, 5, 7), ("other", 0, 0, 0, 0)]


@pytest.mark.parametrize("is_asked_again", ("before", "after", "never"))
def test_a_late_end_does_not_hide_what_came_after_it(tmp_path: Path, is_asked_again: str) -> None:
    """The caller asks again, elsewhere, before or after the end of the first reply is assumed."""
    with opened(tmp_path / "a.db") as connection:
        asked = begun(connection)
        again = exchange([user("q")], session_id=asked.session.session_id)
        for step in ("before", "after"):
            if is_asked_again == step:
                with write_batch(connection) as rows:
                    exchange_store.finish(rows, again, outcome(choice("a whole loaf")))
            if step == "before":
                with write_batch(connection) as rows:
                    exchange_store.recover(rows, "w")
                assert newest(connection) == ("a whole loaf" if is_asked_again == "before" else "hal")
        with write_batch(connection) as rows:
            exchange_store.finish_begun(rows, asked, outcome(choice("half a loaf")))
        assert newest(connection) == ("half a loaf" if is_asked_again == "never" else "a whole loaf")
    assert problems_of(tmp_path / "a.db") == []
