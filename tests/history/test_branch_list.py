"""Every branch of a session, without walking one."""

from typing import Any

import pytest

from proxy.errors import NotFoundError
from proxy.history.branch_list import list_branches
from proxy.storage.page import Page
from tests.chats import ALL, Chats, said, system, user
from tests.engines import on_sqlite

MAIN, SUB = system("You are the main agent"), system("You look for files")


def listed(chats: Chats, session_id: str, page: Page = ALL) -> list[dict[str, Any]]:
    answer = list_branches(chats.connection, session_id, user_id=None, page=page)
    found: list[dict[str, Any]] = answer["branches"]
    return found


def shown(chats: Chats, session_id: str) -> list[tuple[Any, ...]]:
    """Each branch as it is read by its id: title, length, where it begins."""
    found = []
    for branch in listed(chats, session_id):
        messages = chats.shown(session_id, through=branch["message_id"])
        assert messages[-1]["message_id"] == branch["message_id"]
        assert messages[0]["message_id"] == branch["root_message_id"]
        assert len(messages) == branch["message_count"]
        assert messages[-1]["created_at"] == branch["updated_at"]
        found.append((branch["title"], messages[-1]["content"]))
    return found


def test_branches_of_several_conversations_newest_first(chats: Chats) -> None:
    main, sub = [MAIN, user("main task")], [SUB, user("look for it")]
    session_id = chats.store(main, said("one"), session="s")
    chats.store(main, said("two"), session="s")
    chats.store(sub, said("found"), session="s")
    chats.store([*main, said("one"), user("more")], said("three"), session="s")
    assert shown(chats, session_id) == [("main task", "three"), ("look for it", "found"), ("main task", "two")]


def test_conversation_that_is_shown_below_another_begins_where_that_does(chats: Chats) -> None:
    for turn in range(4):
        session_id = chats.store([user(f"q{turn}")], said(f"a{turn}"), session="s")
    assert shown(chats, session_id) == [("q0", "a3")]
    chats.store([user("q2"), said("a2"), user("more")], said("so"), session="s")
    assert shown(chats, session_id) == [("q2", "so"), ("q3", "a3"), ("q0", "a1")]


def test_empty_and_refused_sessions_have_branches_too(chats: Chats) -> None:
    assert listed(chats, chats.make()) == []
    session_id = chats.store([system("x"), user("q")])
    assert shown(chats, session_id) == [("q", "q")]
    session_id = chats.store([system("only this")], said("yes"))
    assert [branch["title"] for branch in listed(chats, session_id)] == ["New Conversation"]


def test_pages_of_branches(chats: Chats) -> None:
    for number in range(7):
        session_id = chats.store([user("q")], said(f"a{number}"), session="s")
    whole = listed(chats, session_id)
    assert len(whole) == 7
    for offset in range(9):
        assert listed(chats, session_id, Page(limit=3, offset=offset)) == whole[offset : offset + 3]
    assert list_branches(chats.connection, "s", user_id="u", page=Page(limit=1, offset=9))["total"] == 7


def test_branches_of_another_user_are_not_there(chats: Chats) -> None:
    session_id = chats.store([user("q")], said("a"))
    with pytest.raises(NotFoundError):
        list_branches(chats.connection, session_id, user_id="other", page=ALL)


@on_sqlite
def test_long_session_of_one_branch_is_listed_by_its_end_alone(chats: Chats) -> None:
    session_id = chats.make(*(str(number) for number in range(3000)))
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    chats.connection.set_progress_handler(count, 100)
    (branch,) = listed(chats, session_id)
    chats.connection.set_progress_handler(None, 0)
    assert (branch["title"], branch["message_count"]) == ("0", 3000)
    assert steps < 3000  # the index is read once; a walk from message to message takes ten times as much
