"""A commit on PostgreSQL takes two round trips, whatever it stores, and stores the same as on SQLite."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psycopg")

from proxy.ids import uuid7
from proxy.recording.transactions import commit
from proxy.storage import exchange_store
from proxy.storage.exchange import Exchange, SessionRef
from proxy.storage.foreseen import Foreseen
from tests.engines import connected
from tests.postgresql import CountingConnection, database_url
from tests.stored import IMAGE, assistant, choice, exchange, outcome, user

CHATS = 5
Work = Callable[[Any], Any]
Message = dict[str, Any]


@pytest.fixture
def connection() -> Iterator[CountingConnection]:
    with database_url(has_tables=True) as url, closing(connected(url)) as made:
        yield CountingConnection(made.raw)


def finished(asked: Exchange, *texts: str, upstream: str | None = None) -> Work:
    """What the recorder queues at the end of a short chat."""
    end = outcome(*(choice(text, index=index) for index, text in enumerate(texts)))
    end.upstream = upstream
    return Foreseen(partial(exchange_store.finish, exchange=asked, outcome=end), asked, upstream=upstream)


def begun(asked: Exchange) -> Work:
    return Foreseen(lambda rows: exchange_store.begin(rows, asked, worker_id="w"), asked)


def ended(asked: Exchange, text: str) -> Work:
    end = outcome(choice(text))
    return Foreseen(partial(exchange_store.finish_begun, exchange=asked, outcome=end), asked, is_begun=True)


def fragment(asked: Exchange, sequence: int) -> Work:
    return lambda rows: exchange_store.append_fragment(
        rows, asked.origin, exchange_id=asked.exchange_id, sequence=sequence, data=b"data: x\n\n"
    )


def store(connection: Any, works: Sequence[Work]) -> int:
    """Commit them together, or in several commits on a slow machine; the most round trips of one."""
    trips, done = 0, list[Any]()
    while len(done) < len(works):
        before = getattr(connection, "trips", 0)
        done += commit(connection, works[len(done) :])
        trips = max(trips, getattr(connection, "trips", 0) - before)
    assert not [result for result in done if isinstance(result, BaseException)]
    return trips


def conversation(number: int, turns: int) -> list[Message]:
    """A history of so many turns, and the next question."""
    pairs = [[user(f"q{number}.{turn}"), assistant(f"a{number}.{turn}")] for turn in range(turns)]
    return [*(message for pair in pairs for message in pair), user(f"q{number}.{turns}")]


def stored(connection: Any, turns: int = 0, *, first: Sequence[Message] = ()) -> list[str]:
    """The sessions of conversations that are stored so far."""
    sessions = [uuid7() for _ in range(CHATS)]
    for turn in range(turns + 1):
        works = []
        for number, session_id in enumerate(sessions):
            asked = exchange([*first, *conversation(number, turn)], session_id=session_id)
            asked.session = SessionRef(session_id, "stitched" if turn else "new")
            works.append(finished(asked, f"a{number}.{turn}"))
        store(connection, works)
    return sessions


def test_new_chats(connection: CountingConnection) -> None:
    """Of new users, with new parameters, tools and upstreams, images, and several choices."""
    works = [
        finished(
            exchange(
                [user([{"type": "image_url", "image_url": {"url": f"{IMAGE}{number:04}"}}])],
                user_id=f"user{number}",
                temperature=number,
                tools=[{"type": "function", "function": {"name": f"f{number}"}}],
            ),
            "one",
            "two",
            upstream=f"http://vllm{number}",
        )
        for number in range(CHATS)
    ]
    assert store(connection, works) == 2
    assert connection.all("count_everything")


@pytest.mark.parametrize("first", ((), ({"role": "system", "content": "Be brief."},)))
def test_continued_chats(connection: CountingConnection, first: Sequence[Message]) -> None:
    sessions = stored(connection, 1, first=first)
    works = [
        finished(exchange([*first, *conversation(number, 2)], session_id=session_id), "done")
        for number, session_id in enumerate(sessions)
    ]
    assert store(connection, works) == 2


def test_changed_system_messages(connection: CountingConnection) -> None:
    sessions = stored(connection, 1, first=[{"role": "system", "content": "Be brief."}])
    other = {"role": "system", "content": "Be brief. Today is Friday."}
    works = [
        finished(exchange([other, *conversation(number, 2)], session_id=session_id), "done")
        for number, session_id in enumerate(sessions)
    ]
    assert store(connection, works) == 2


def test_another_conversation_of_a_session_goes_on(connection: CountingConnection) -> None:
    sessions = stored(connection, 1)
    other = [user("other"), assistant("yes"), user("and?")]
    store(connection, [finished(exchange(other, session_id=each), "so") for each in sessions])
    other += [assistant("so"), user("again")]
    assert store(connection, [finished(exchange(other, session_id=each), "done") for each in sessions]) == 2


def test_replies_that_were_begun(connection: CountingConnection) -> None:
    sessions = stored(connection, 1)
    asked = [exchange(conversation(number, 2), session_id=each) for number, each in enumerate(sessions)]
    assert store(connection, [begun(each) for each in asked]) == 2
    assert store(connection, [fragment(each, 0) for each in asked]) == 2
    assert store(connection, [ended(each, "done") for each in asked]) == 2
    ids = [each.exchange_id for each in asked]
    assert store(connection, [lambda rows: exchange_store.delete_fragments(rows, ids)]) == 1


def test_long_branches_with_jumps(connection: CountingConnection) -> None:
    sessions = [uuid7() for _ in range(CHATS)]
    works = []
    for number, session_id in enumerate(sessions):
        asked = exchange(conversation(number, 31), session_id=session_id)
        asked.session = SessionRef(session_id, "new")
        works.append(finished(asked, f"a{number}.31"))
    store(connection, works)
    works = [
        finished(exchange(conversation(number, 32), session_id=session_id), "done")
        for number, session_id in enumerate(sessions)
    ]
    assert store(connection, works) == 2
    assert connection.execute("SELECT COUNT(*) FROM message_jumps").fetchone() == (CHATS,)


def test_sessions_named_by_the_client(connection: CountingConnection) -> None:
    works = []
    for number in range(CHATS):
        asked = exchange(conversation(number, 0))
        asked.session = SessionRef(uuid7(), "header", f"mine{number}")
        works.append(finished(asked, "done"))
    assert store(connection, works) == 2


def test_turns_of_one_session_in_a_commit_are_read_again_together(connection: CountingConnection) -> None:
    sessions = stored(connection, 1)
    works = [
        finished(exchange(conversation(number, turn), session_id=session_id), f"a{number}.{turn}")
        for turn in (2, 3)
        for number, session_id in enumerate(sessions)
    ]
    assert store(connection, works) <= 3
    assert connection.execute("SELECT MIN(message_count), MAX(message_count) FROM sessions").fetchone() == (8, 8)


def test_begin_and_end_of_exchanges_in_a_commit_are_read_again_together(connection: CountingConnection) -> None:
    sessions = stored(connection, 1)
    asked = [exchange(conversation(number, 2), session_id=each) for number, each in enumerate(sessions)]
    works = (
        [begun(each) for each in asked] + [fragment(each, 0) for each in asked] + [ended(each, "x") for each in asked]
    )
    assert store(connection, works) <= 3
    assert connection.execute("SELECT MIN(message_count), MAX(message_count) FROM sessions").fetchone() == (6, 6)


def test_numbers_go_on_after_a_commit_that_failed(connection: CountingConnection) -> None:
    def fail(rows: Any) -> None:
        raise ValueError

    asked = [exchange([user(f"q{number}")], user_id=f"u{number}", seed=number) for number in range(3)]
    results = []
    for some in ([finished(asked[0], "a"), fail], [finished(asked[1], "b")]):
        results += commit(connection, some)
    assert [isinstance(result, ValueError) for result in results] in ([False, True, False], [False, False])
    assert store(connection, [finished(asked[2], "c")]) == 2
    users = connection.execute("SELECT user_id FROM users ORDER BY user_no").fetchall()
    assert [user_id for (user_id,) in users] == ["default_user", "u0", "u1", "u2"]


@pytest.mark.parametrize("seed", range(6))
def test_the_same_is_stored_on_both_engines(tmp_path: Path, connection: CountingConnection, seed: int) -> None:
    """Whatever comes together in a commit: turns of one session, an end and its beginning, an old question again."""
    with closing(connected(tmp_path / "chat.db")) as sqlite:
        for works in _commits(random.Random(seed)):
            store(connection, works)
            store(sqlite, works)
        assert _dump(connection) == _dump(sqlite)


def _commits(dice: random.Random) -> Iterator[list[Work]]:
    histories: dict[str, list[Message]] = {}
    open_: list[tuple[str, Exchange]] = []
    for _ in range(25):
        works = []
        for _ in range(dice.randrange(1, 7)):
            kind = dice.choice(("new", "named", "next", "next", "next", "again", "begin", "end", "apart"))
            session_id = dice.choice([*histories, uuid7()])
            history = histories.setdefault(session_id, [])
            if kind == "end" and open_:
                session_id, asked = open_.pop(dice.randrange(len(open_)))
                works.append(ended(asked, "late"))
                histories[session_id] = [*asked.messages, assistant("late")]
                continue
            if kind == "again" and history:
                messages = history[:-1]
            else:
                messages = [*([] if kind == "apart" else history), user(f"q{dice.randrange(4)}")]
            if dice.random() < 0.3:
                messages = [{"role": "system", "content": dice.choice("ab")}, *_chained(messages)]
            asked = exchange(messages, user_id=f"of {session_id}", session_id=session_id, seed=dice.randrange(3))
            if kind == "named":
                asked.user_id = dice.choice("xy")
                asked.session = SessionRef(uuid7(), "header", f"mine{dice.randrange(3)}")
            if kind == "begin":
                works.append(begun(asked))
                open_.append((session_id, asked))
            else:
                text = f"a{dice.randrange(3)}"
                works.append(finished(asked, text, upstream=dice.choice(("http://one", "http://two"))))
                histories[session_id] = [*messages, assistant(text)]
        yield works


def _chained(messages: Sequence[Message]) -> list[Message]:
    return [message for message in messages if message["role"] != "system"]


def _dump(connection: Any) -> list[list[Any]]:
    statements = (
        "SELECT user_no, user_id, session_count, active_session_count FROM users ORDER BY user_no",
        "SELECT session_no, session_id, user_id, external_id, title, leaf_no, message_count, tokens FROM sessions"
        " ORDER BY session_no",
        "SELECT message_no, session_no, parent_no, depth, chain_hash, root_no, exchange_no, role, content, choice,"
        " tokens, status FROM messages ORDER BY message_no",
        "SELECT exchange_no, exchange_id, session_no, user_no, leaf_no, context, status, parameters_no, upstream_no,"
        " worker_id FROM exchanges ORDER BY exchange_no",
        "SELECT parameters_no, digest, tools_no FROM parameters ORDER BY parameters_no",
        "SELECT user_no, requests, incomplete, completion_tokens FROM usage_days ORDER BY user_no, model, endpoint",
    )
    return [[tuple(row) for row in connection.execute(statement).fetchall()] for statement in statements]
