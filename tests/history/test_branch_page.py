"""One page of a long branch costs a page, and is the one that a walk over the whole branch gives."""

import random
from typing import Any

import pytest

from proxy.history import branches
from proxy.ids import uuid7
from proxy.storage import queries, removal
from proxy.storage.named import SQL
from proxy.storage.page import Page
from proxy.storage.queries.messages import MessageNode
from tests.chats import Chats, user
from tests.chats import listed as listed_page
from tests.engines import on_sqlite

LENGTH = 200


def numbers_on(chats: Chats, session_id: str) -> list[int]:
    session = queries.sessions.get_session(chats.connection, session_id)
    assert session is not None
    assert session.leaf_no is not None
    return [step.message_no for step in queries.messages.list_path(chats.connection, session.leaf_no)][::-1]


def listed(chats: Chats, session_id: str, **options: Any) -> list[str]:
    order = options.pop("order", "asc")
    page = listed_page(chats.connection, session_id, user_id=None, page=Page(**options), order=order)
    return [message["message_id"] for message in page["messages"]]


def ids_of(chats: Chats, session_id: str) -> list[str]:
    found = []
    for number in numbers_on(chats, session_id):
        message = queries.messages.get_message(chats.connection, number)
        assert message is not None
        found.append(message.message_id)
    return found


def assert_pages_are_right(chats: Chats, session_id: str) -> None:
    ids = ids_of(chats, session_id)
    dice = random.Random(1)
    for _ in range(12):
        offset, limit = dice.randrange(len(ids) + 5), dice.randrange(1, 90)
        for order, ordered in (("asc", ids), ("desc", ids[::-1])):
            assert listed(chats, session_id, order=order, offset=offset, limit=limit) == ordered[offset:][:limit]
            after = dice.randrange(len(ids))
            rest = listed(chats, session_id, order=order, after=ordered[after], offset=offset, limit=limit)
            assert rest == ordered[after + 1 :][offset:][:limit]


def walk_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the whole of a branch is not walked."""

    def refuse(*_: Any) -> list[Any]:
        raise AssertionError("the whole branch is walked")

    monkeypatch.setattr(branches, "_path_to", refuse)


def test_every_page_is_right_on_a_long_branch(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id = chats.make(*map(str, range(LENGTH)))
    walk_nowhere(monkeypatch)
    assert_pages_are_right(chats, session_id)


def test_every_page_is_right_on_branches_that_fork(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [user(str(number)) for number in range(LENGTH)]
    session_id = chats.store(asked, session="one")
    chats.store([*asked[:70], *(user(f"b{number}") for number in range(150))], session="one")
    chats.store([*asked[:140], user("c")], session="one")
    walk_nowhere(monkeypatch)
    assert_pages_are_right(chats, session_id)


@on_sqlite
def test_pages_are_right_after_messages_in_the_middle_were_deleted(
    chats: Chats, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = chats.make(*map(str, range(LENGTH)))
    numbers = numbers_on(chats, session_id)
    with chats.connection.transaction():
        for position in (0, 64, 100, 128, 129, 190):
            removal.remove_message(chats.connection, numbers[position], session_id=session_id)
    for number in range(100):
        chats.post(session_id, user(f"more {number}"))
    walk_nowhere(monkeypatch)
    assert_pages_are_right(chats, session_id)


def test_the_page_after_a_deleted_message_goes_on_where_it_stood(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id = chats.make(*map(str, range(LENGTH)))
    ids, numbers = ids_of(chats, session_id), numbers_on(chats, session_id)
    with chats.connection.transaction():
        removal.remove_message(chats.connection, numbers[150], session_id=session_id)
    walk_nowhere(monkeypatch)
    assert listed(chats, session_id, after=ids[150], limit=3) == ids[151:154]
    assert listed(chats, session_id, after=ids[150], limit=3, order="desc") == ids[147:150][::-1]
    assert listed(chats, session_id, after=uuid7(), limit=3) == []


@on_sqlite
def test_a_page_at_the_root_of_a_very_long_branch_takes_few_steps(chats: Chats) -> None:
    length = 4_500
    session_id = chats.store([user(str(number)) for number in range(length)], session="long")
    session = queries.sessions.get_session(chats.connection, session_id)
    assert session is not None
    assert session.leaf_no is not None
    ways = dict(chats.connection.execute("SELECT message_no, above_no FROM message_jumps").fetchall())
    number, steps = session.leaf_no, 0
    while (node := node_of(chats, number)).parent_no is not None:
        number, steps = ways.get(number, node.parent_no), steps + 1
    assert steps < 300
    assert listed(chats, session_id, limit=1) == ids_of(chats, session_id)[:1]


def node_of(chats: Chats, number: int) -> MessageNode:
    node = queries.messages.get_node(chats.connection, number)
    assert node is not None
    return node


def test_depths_that_cannot_be_right_are_passed_by(chats: Chats) -> None:
    session_id = chats.make(*map(str, range(10)))
    chats.connection.execute("UPDATE messages SET depth = depth + 7")
    assert listed(chats, session_id, limit=5) == ids_of(chats, session_id)[:5]


@on_sqlite
def test_the_ways_of_an_older_database_are_made_by_the_migration(chats: Chats) -> None:
    asked = [user(str(number)) for number in range(LENGTH)]
    chats.store(asked, session="one")
    chats.store([*asked[:70], *(user(f"b{number}") for number in range(150))], session="one")
    made = chats.connection.execute("SELECT * FROM message_jumps ORDER BY 1").fetchall()
    assert len(made) == 5
    chats.connection.execute("DELETE FROM message_jumps")
    migration = (SQL / "sqlite" / "migrations" / "0015_durable.sql").read_text()
    chats.connection.execute(migration[migration.index("INSERT") :])
    assert chats.connection.execute("SELECT * FROM message_jumps ORDER BY 1").fetchall() == made
