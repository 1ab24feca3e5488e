"""Branches and pages as they are read, without the routes."""

import time

import pytest

from proxy.errors import InvalidRequestError, NotFoundError
from proxy.history import branches, deleted_cursors, exchange_list, sessions
from proxy.history.positions import Order
from proxy.ids import uuid7
from proxy.storage import queries
from proxy.storage.page import Page
from proxy.wire import json_text
from tests.chats import ALL, Chats, listed, listed_ready, said, system, user


def test_page_of_a_long_branch_loads_only_its_own_messages(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id = chats.make(*(str(number) for number in range(1100)))
    loaded: list[int] = []
    get_message = queries.messages.get_message

    def counting(connection: object, message_no: int) -> queries.messages.Message | None:
        loaded.append(message_no)
        return get_message(chats.connection, message_no)

    monkeypatch.setattr(queries.messages, "get_message", counting)
    page = listed(chats.connection, session_id, user_id=None, page=Page(limit=3, offset=1000))
    assert [message["content"] for message in page["messages"]] == ["1000", "1001", "1002"]
    assert page["total"] == 1100
    assert len(loaded) == 3


def test_session_of_over_thousand_turns_can_be_deleted(chats: Chats) -> None:
    """A cascade from parent to child would recurse beyond SQLite's limit of 1,000."""
    session_id = chats.make(*(str(number) for number in range(1100)))
    with chats.connection.transaction():
        queries.sessions.delete_session(chats.connection, session_id)
    assert chats.count("messages") == 0


def test_user_with_a_session_of_over_thousand_turns_can_be_deleted(chats: Chats) -> None:
    chats.make(*(str(number) for number in range(1100)))
    with chats.connection.transaction():
        assert queries.users.delete_user(chats.connection, "u")
    assert (chats.count("messages"), chats.count("sessions")) == (0, 0)


def test_the_page_after_a_deleted_session_goes_on_where_it_stood(chats: Chats) -> None:
    made = []
    for number in range(6):
        made.append(chats.make(str(number)))
        time.sleep(0.005)  # without a memory the id tells the place, to the millisecond
    listed = branches.list_sessions(chats.connection, user_id="u", page=Page(limit=3), active_only=False)["sessions"]
    gone = listed[-1]["session_id"]
    with chats.connection.transaction():
        sessions.delete_session(chats.connection, gone, user_id="u")
    for forget in (False, True):  # as in another process, or after a restart
        if forget:
            deleted_cursors.sessions._positions.clear()
        page = Page(limit=10, after=gone)
        rest = branches.list_sessions(chats.connection, user_id="u", page=page, active_only=False)["sessions"]
        assert [each["session_id"] for each in rest] == made[2::-1]


def test_what_was_never_an_id_cannot_be_listed_after(chats: Chats) -> None:
    session_id = chats.make("a")
    page = Page(limit=5, after="x")
    with pytest.raises(InvalidRequestError):
        branches.list_sessions(chats.connection, user_id="u", page=page, active_only=False)
    with pytest.raises(InvalidRequestError):
        exchange_list.open_exchanges(chats.connection, session_id, user_id="u", page=page)


def test_the_page_after_a_deleted_message_or_exchange_goes_on_where_it_stood(chats: Chats) -> None:
    session_id = chats.make("a", "b")
    gone = uuid7()
    chats.post(session_id, user("c"))
    page = Page(limit=5, after=gone)
    orders: tuple[tuple[Order, list[str]], ...] = (("asc", ["c"]), ("desc", ["b", "a"]))
    for order, texts in orders:
        shown = listed(chats.connection, session_id, user_id="u", page=page, order=order)
        assert [message["content"] for message in shown["messages"]] == texts


def test_the_page_after_a_deleted_exchange_goes_on_where_it_stood(chats: Chats) -> None:
    session_id = chats.store([user("a")], said("b"))
    gone = uuid7()
    chats.store([user("a"), said("b"), user("c")], said("d"), session=session_id)
    shown, _ = exchange_list.read_piece(chats.connection, session_id, page=Page(limit=5))
    page = Page(limit=5, after=gone)
    exchange_list.open_exchanges(chats.connection, session_id, user_id="u", page=page)
    assert exchange_list.read_piece(chats.connection, session_id, page=page) == (shown[1:], None)


def test_branch_of_an_empty_session_is_empty(chats: Chats) -> None:
    session_id = chats.make()
    assert chats.shown(session_id) == []
    assert chats.ready(session_id) == []


def test_branch_through_a_message_of_another_session_is_refused(chats: Chats) -> None:
    one, other = chats.make("a"), chats.make("b")
    with pytest.raises(InvalidRequestError):
        chats.shown(one, through=chats.shown(other)[0]["message_id"])


def test_page_after_a_message_of_another_branch_is_refused(chats: Chats) -> None:
    chats.store([user("q")], said("one"), session="s")
    session_id = chats.store([user("q")], said("two"), session="s")
    numbers = [row[0] for row in chats.connection.execute("SELECT message_id FROM messages WHERE content = 'one'")]
    with pytest.raises(InvalidRequestError):
        listed(chats.connection, session_id, user_id=None, page=Page(limit=5, after=numbers[0]))


def test_messages_ready_to_send_are_paged_too(chats: Chats) -> None:
    request = [system("x"), user("a"), said("b"), user("c")]
    session_id = chats.store(request, said("d"))
    whole = [*request, said("d")]
    for offset in range(6):
        page = listed_ready(chats.connection, session_id, user_id=None, page=Page(limit=2, offset=offset))
        assert page["messages"] == whole[offset : offset + 2]
        assert page["total"] == 5
    back = listed_ready(chats.connection, session_id, user_id=None, page=ALL, order="desc")
    assert back["messages"] == whole[::-1]


def test_older_branch_is_ready_with_its_own_system_message(chats: Chats) -> None:
    old = [system("old"), user("a")]
    session_id = chats.store(old, said("b"), session="s")
    first = chats.shown(session_id)[-1]["message_id"]
    new = [system("new"), user("a"), said("b")]
    chats.store([*new, user("c")], said("d"), session="s")
    other = [system("other"), user("a"), said("b"), user("e")]
    chats.store(other, said("f"), session="s")
    assert chats.ready(session_id) == [*other, said("f")]
    third = next(row[0] for row in chats.connection.execute("SELECT message_id FROM messages WHERE content = 'd'"))
    assert chats.ready(session_id, through=third) == [*new, user("c"), said("d")]
    assert chats.ready(session_id, through=first) == [*other, said("f")]


def test_session_by_hand_is_ready_as_it_was_posted(chats: Chats) -> None:
    session_id = chats.make()
    for message in (system("x"), user("a"), system("y")):
        chats.post(session_id, message)
    assert chats.ready(session_id) == [system("x"), user("a"), system("y")]


def test_piece_ends_when_it_is_large_and_goes_on_where_it_ended(chats: Chats) -> None:
    session_id = chats.make(*("x" * 400_000 for _ in range(7)))
    _, numbers = branches.open_branch(chats.connection, session_id, user_id=None)
    position, pieces = 0, []
    while position < len(numbers):
        texts, position = branches.read_piece(chats.connection, numbers, start=position)
        pieces.append(len(texts))
    assert pieces == [3, 3, 1]


def test_piece_leaves_out_what_was_deleted_meanwhile(chats: Chats) -> None:
    session_id = chats.make("a", "b")
    _, numbers = branches.open_branch(chats.connection, session_id, user_id=None)
    with chats.connection.transaction():
        queries.sessions.delete_session(chats.connection, session_id)
    assert branches.read_piece(chats.connection, numbers, start=0) == ([], 2)


def test_text_of_a_piece_is_json(chats: Chats) -> None:
    session_id = chats.make()
    chats.post(session_id, user([{"type": "text", "text": "\ud800"}]) | {"seed": 2**80})
    _, numbers = branches.open_branch(chats.connection, session_id, user_id=None)
    texts, _ = branches.read_piece(chats.connection, numbers, start=0)
    message = json_text.loads(texts[0])
    assert (message["content"][0]["text"], message["seed"]) == ("\ud800", 2**80)


def test_session_of_another_user_is_not_found(chats: Chats) -> None:
    session_id = chats.make("a")
    for user_id in ("u", None):
        assert branches.find_session(chats.connection, session_id, user_id=user_id).session_id == session_id
    with pytest.raises(NotFoundError):
        branches.find_session(chats.connection, session_id, user_id="other")
