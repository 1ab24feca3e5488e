"""A page of a branch in each format costs a page, and is the one that a walk over the whole branch gives."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from proxy.errors import InvalidRequestError
from proxy.history import branches, conversations, dialects, sent_branch
from proxy.history.positions import Listed, Order, Positions
from proxy.storage import queries, removal
from proxy.storage.page import Page
from tests.chats import ALL, Chats, listed_ready, said, system, user
from tests.engines import on_sqlite
from tests.history.test_branch_page import ids_of, numbers_on, walk_nowhere

LENGTH = 150
Lister = Callable[..., Any]


def _openai(chats: Chats, session_id: str, **asked: Any) -> Any:
    return listed_ready(chats.connection, session_id, user_id=None, **asked)


def _responses(chats: Chats, session_id: str, **asked: Any) -> Any:
    return dialects.list_messages(chats.connection, session_id, user_id=None, dialect="responses", **asked)


def _anthropic(chats: Chats, session_id: str, **asked: Any) -> Any:
    return dialects.list_messages(chats.connection, session_id, user_id=None, dialect="anthropic", **asked)


def _items(chats: Chats, session_id: str, **asked: Any) -> Any:
    return conversations.list_items(chats.connection, session_id, user_id=None, **asked)


FORMS = (_openai, _responses, _anthropic)


def turns(count: int) -> list[dict[str, Any]]:
    return [said(str(number)) if number % 2 else user(str(number)) for number in range(count)]


def plain(chats: Chats) -> str:
    return chats.store(turns(LENGTH), said("end"), session="one")


def with_system_messages(chats: Chats) -> str:
    asked = turns(LENGTH)
    return chats.store([system("a"), *asked[:40], system("b"), *asked[40:], system("c")], said("end"), session="one")


def with_changed_system_messages(chats: Chats) -> str:
    asked = turns(LENGTH)
    chats.store([system("a"), *asked[:41]], said("41"), session="one")
    chats.store([system("b"), *asked[:20], system("c"), *asked[20:101]], said("101"), session="one")
    return chats.store([system("d"), system("a"), *asked[:149]], said("end"), session="one")


def trimmed(chats: Chats) -> str:
    asked = turns(LENGTH)
    chats.store([system("a"), *asked[:101]], said("101"), session="one")
    return chats.store([system("b"), *asked[60:121]], said("121"), session="one")


def forked(chats: Chats) -> str:
    asked = turns(LENGTH)
    chats.store([system("a"), *asked[:101]], said("101"), session="one")
    chats.store([system("b"), *asked[:50], user("else"), *asked[51:91]], said("x"), session="one")
    return chats.store([system("c"), *asked[:121]], said("y"), session="one")


def posted_below(chats: Chats) -> str:
    session_id = with_changed_system_messages(chats)
    for number in range(40):
        chats.post(session_id, system(f"p{number}") if number % 9 == 0 else user(f"p{number}"))
    return session_id


def only_posted(chats: Chats) -> str:
    session_id = chats.make(*map(str, range(LENGTH)))
    chats.post(session_id, system("s"))
    return session_id


def with_deleted_messages(chats: Chats) -> str:
    session_id = posted_below(chats)
    numbers = numbers_on(chats, session_id)
    with chats.connection.transaction():
        for place in (0, 30, 64, 100, 128, 160):
            removal.remove_message(chats.connection, numbers[place], session_id=session_id)
    return session_id


SHAPES = (
    plain,
    with_system_messages,
    with_changed_system_messages,
    trimmed,
    forked,
    posted_below,
    only_posted,
    with_deleted_messages,
)


# Every shape on SQLite; on PostgreSQL, which is asked the same queries, one that has something of all of them.
on_each_shape = pytest.mark.parametrize(
    ("chats", "shape"),
    (*(("sqlite", shape) for shape in SHAPES), ("postgresql", with_deleted_messages)),
    indirect=["chats"],
)


@on_each_shape
def test_a_branch_by_position_is_the_one_that_a_walk_gives(
    chats: Chats, monkeypatch: pytest.MonkeyPatch, shape: Callable[[Chats], str]
) -> None:
    session = branches.find_session(chats.connection, shape(chats), user_id=None)
    path = branches.get_branch(chats.connection, session)
    sent, stored = branches.as_sent(chats.connection, path), [step.message_no for step in path]
    assert session.leaf_no is not None
    walk_nowhere(monkeypatch)
    assert_is_found(sent_branch.find_sent(chats.connection, session, session.leaf_no), sent)
    assert_is_found(sent_branch.find_branch(chats.connection, session.leaf_no), stored)


def assert_is_found(found: Positions | None, numbers: list[int]) -> None:
    listed, dice = Listed(numbers), random.Random(1)
    assert found is not None
    assert (found.total, list(found.read(0, len(numbers)))) == (len(numbers), numbers)
    for _ in range(30):
        start = dice.randrange(len(numbers))
        stop = min(start + dice.randrange(1, 60), len(numbers))
        assert list(found.read(start, stop)) == numbers[start:stop]
    for number in [0, *dice.sample(range(1, max(numbers) + 2), 30), *dice.sample(numbers, 10)]:
        assert found.places_of(number) == listed.places_of(number)
        assert found.count_through(number) == listed.count_through(number)


def answer(lister: Lister, chats: Chats, session_id: str, **asked: Any) -> Any:
    try:
        return lister(chats, session_id, **asked)
    except InvalidRequestError as exc:
        return str(exc)


def questions(ids: list[str]) -> list[dict[str, Any]]:
    dice = random.Random(1)
    pages = [Page(limit=dice.randrange(1, 12), offset=dice.randrange(len(ids) + 5)) for _ in range(2)]
    pages += [Page(limit=dice.randrange(1, 12), after=dice.choice(ids)) for _ in range(2)]
    pages += [Page(limit=7), Page(limit=7, after=ids[0]), Page(limit=2, after="no such message")]
    orders: tuple[Order, ...] = ("asc", "desc")
    return [{"page": page, "order": order} for page in pages for order in orders]


def test_a_page_of_each_format_is_the_one_that_a_walk_gives(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id = with_changed_system_messages(chats)
    asked = questions(ids_of(chats, session_id))
    with monkeypatch.context() as walking:
        walking.setattr(sent_branch, "find_sent", lambda *_: None)
        walked = [answer(form, chats, session_id, **each) for form in FORMS for each in asked]
    walk_nowhere(monkeypatch)
    assert [answer(form, chats, session_id, **each) for form in FORMS for each in asked] == walked


def test_items_page_by_page_are_those_of_one_walk(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id = with_deleted_messages(chats)
    orders: tuple[Order, ...] = ("asc", "desc")
    with monkeypatch.context() as walking:
        walking.setattr(sent_branch, "find_branch", lambda *_: None)
        whole = [_items(chats, session_id, page=ALL, order=order)["data"] for order in orders]
    walk_nowhere(monkeypatch)
    assert [page_by_page(chats, session_id, order=order) for order in orders] == whole


def page_by_page(chats: Chats, session_id: str, *, order: Order) -> list[Any]:
    found: list[Any] = []
    after, goes_on = None, True
    while goes_on:
        page = _items(chats, session_id, page=Page(limit=53, after=after), order=order)
        found += page["data"]
        after, goes_on = page["last_id"], page["has_more"]
    return found


@on_sqlite
@pytest.mark.parametrize("form", (*FORMS, _items))
def test_only_the_messages_of_the_page_are_read(chats: Chats, monkeypatch: pytest.MonkeyPatch, form: Lister) -> None:
    session_id = with_changed_system_messages(chats)
    loaded: list[int] = []
    stepped: list[int] = []
    get_message, list_path = queries.messages.get_message, queries.messages.list_path

    def noting_message(connection: Any, number: int) -> Any:
        loaded.append(number)
        return get_message(connection, number)

    def noting_path(*args: Any, **options: Any) -> Any:
        stepped.append(len(found := list_path(*args, **options)))
        return found

    monkeypatch.setattr(queries.messages, "get_message", noting_message)
    monkeypatch.setattr(queries.messages, "list_path", noting_path)
    after = _items(chats, session_id, page=Page(limit=60), order="asc")["last_id"] if form is _items else None
    loaded.clear()
    stepped.clear()
    page = Page(limit=5, after=after) if form is _items else Page(limit=5, offset=60)
    form(chats, session_id, page=page, order="asc")
    assert 0 < len(set(loaded)) <= 8
    assert sum(stepped) < 40


@on_sqlite
def test_wrong_depths_and_many_system_messages_are_walked(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id = with_changed_system_messages(chats)
    whole = [form(chats, session_id, page=ALL, order="asc") for form in (*FORMS, _items)]
    monkeypatch.setattr(sent_branch, "_SYSTEM_MESSAGES_MAX", 1)
    assert [form(chats, session_id, page=ALL, order="asc") for form in (*FORMS, _items)] == whole
    monkeypatch.undo()
    for depth in ("depth + 7", "-1"):
        chats.connection.execute(f"UPDATE messages SET depth = {depth}")
        assert [form(chats, session_id, page=ALL, order="asc") for form in (*FORMS, _items)] == whole


@on_sqlite
def test_a_branch_through_the_root_is_not_searched_in_a_session_of_one(
    chats: Chats, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = plain(chats)
    root = ids_of(chats, session_id)[0]
    expected = _openai(chats, session_id, page=ALL)

    def refuse(*_: Any, **__: Any) -> int:
        raise AssertionError("the branch is walked down")

    with monkeypatch.context() as patch:
        patch.setattr(queries.messages, "newest_leaf_below", refuse)
        assert _openai(chats, session_id, page=ALL, through=root) == expected
    chats.store([*turns(20), user("else")], said("other"), session="one")
    session = branches.find_session(chats.connection, session_id, user_id=None)
    below = queries.messages.newest_leaf_below(
        chats.connection, numbers_on(chats, session_id)[0], session_no=session.session_no
    )
    step = queries.messages.get_message(chats.connection, below)
    assert step is not None
    assert (
        _openai(chats, session_id, page=Page(limit=1, offset=0), through=root, order="desc")["messages"][0]["content"]
        == step.content
    )
