"""Exchanges as they are stored: each message once, in the tree it belongs to."""

import json

import pytest

from proxy.recording import spill_codec
from proxy.storage import named, queries
from proxy.storage.exchange import Outcome
from proxy.storage.page import Page
from proxy.storage.write_batch import write_batch
from tests.chats import Chats, said, system, user
from tests.engines import on_sqlite

IMAGE = "data:image/png;base64," + "A" * 5000


def picture(url: str = IMAGE) -> list[dict[str, object]]:
    return [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": url}}]


def test_resent_history_is_stored_once(chats: Chats) -> None:
    messages = []
    for turn in range(20):
        messages.append(user(f"question {turn}"))
        session_id = chats.store(messages, said(f"answer {turn}"))
        messages.append(said(f"answer {turn}"))
    assert (chats.count("sessions"), chats.count("messages"), chats.count("exchanges")) == (1, 40, 20)
    assert chats.ready(session_id) == messages


def test_regenerated_reply_is_a_sibling(chats: Chats) -> None:
    chats.store([user("q")], said("one"), session="s")
    session_id = chats.store([user("q")], said("two"), session="s")
    first, second = chats.shown(session_id), chats.shown(session_id)
    assert [message["content"] for message in second] == ["q", "two"]
    assert [message["siblings"] for message in second] == [1, 2]
    assert first[1]["parent_id"] == second[0]["message_id"]
    assert chats.count("messages") == 3


def test_edited_turn_is_a_branch(chats: Chats) -> None:
    begin = [user("a"), said("b")]
    session_id = chats.store(begin[:1], said("b"))
    chats.store([*begin, user("c")], said("d"))
    old = chats.shown(session_id)
    assert chats.store([*begin, user("c, better")], said("e")) == session_id
    assert chats.texts(session_id) == ["a", "b", "c, better", "e"]
    assert chats.texts(session_id, through=old[2]["message_id"]) == ["a", "b", "c", "d"]
    assert chats.texts(session_id, through=old[0]["message_id"]) == ["a", "b", "c, better", "e"]
    assert chats.count("messages") == 6


def test_each_of_several_choices_is_a_message(chats: Chats) -> None:
    session_id = chats.store([user("q")], said("one"), said("two"))
    shown = chats.shown(session_id)
    assert [message["content"] for message in shown] == ["q", "one"]
    assert shown[1]["siblings"] == 2
    assert shown[1]["tokens"] == 3
    assert chats.store([user("q"), said("two"), user("r")], said("s")) == session_id
    assert chats.texts(session_id) == ["q", "two", "r", "s"]
    assert chats.count("messages") == 5


def test_changed_system_message_does_not_split_a_session(chats: Chats) -> None:
    first = [system("Monday"), user("a")]
    session_id = chats.store(first, said("b"))
    second = [system("Tuesday"), user("a"), said("b"), user("c")]
    assert chats.store(second, said("d")) == session_id
    assert chats.ready(session_id) == [*second, said("d")]
    assert "Tuesday" in chats.texts(session_id)
    assert chats.count("messages") == 6
    third = [*second, said("d"), user("e")]
    assert chats.store(third, said("f")) == session_id
    assert chats.ready(session_id) == [*third, said("f")]
    assert chats.count("messages") == 8


def test_system_messages_come_back_where_the_request_had_them(chats: Chats) -> None:
    request = [system("1"), system("2"), user("a"), said("b"), system("3"), user("c"), system("4")]
    session_id = chats.store(request, said("d"))
    assert chats.ready(session_id) == [*request, said("d")]
    chats.post(session_id, user("by hand"))
    assert chats.ready(session_id) == [*request, said("d"), user("by hand")]


def test_dropped_system_message_is_not_sent_again(chats: Chats) -> None:
    session_id = chats.store([system("x"), user("a")], said("b"))
    chats.store([user("a"), said("b"), user("c")], said("d"))
    assert chats.ready(session_id) == [user("a"), said("b"), user("c"), said("d")]
    assert chats.texts(session_id)[0] == "x"


def test_named_session_takes_the_new_turn_alone(chats: Chats) -> None:
    chats.store([system("x"), user("a")], said("b"), session="s")
    session_id = chats.store([system("x"), user("c")], said("d"), session="s")
    assert chats.ready(session_id) == [system("x"), user("a"), said("b"), user("c"), said("d")]
    assert chats.count("messages") == 5


def test_named_session_knows_a_history_without_its_old_turns(chats: Chats) -> None:
    full = []
    for turn in range(4):
        full.append(user(f"q{turn}"))
        session_id = chats.store(full, said(f"a{turn}"), session="s")
        full.append(said(f"a{turn}"))
    chats.store([*full[4:], user("q4")], said("a4"), session="s")
    assert chats.ready(session_id) == [*full, user("q4"), said("a4")]
    assert chats.count("messages") == 10


def test_two_racing_identical_turns_share_the_question(chats: Chats) -> None:
    session_id = chats.store([user("a")], said("b"))
    turn = [user("a"), said("b"), user("c")]
    one, two = chats.begin(turn), chats.begin(turn)
    assert chats.finish(one, said("first")) == chats.finish(two, said("second")) == session_id
    assert chats.texts(session_id) == ["a", "b", "c", "second"]
    assert chats.shown(session_id)[3]["siblings"] == 2
    assert chats.count("messages") == 5


def test_tool_calls_are_the_same_however_their_arguments_are_spaced(chats: Chats) -> None:
    def call(arguments: str) -> dict[str, object]:
        function = {"name": "f", "arguments": arguments}
        return said(None, tool_calls=[{"id": "c1", "type": "function", "function": function}])

    result = {"role": "tool", "tool_call_id": "c1", "content": "42"}
    session_id = chats.store([user("a")], call('{"x": 1}'))
    assert chats.store([user("a"), call('{"x":1}'), result], said("done")) == session_id
    assert chats.ready(session_id) == [user("a"), call('{"x": 1}'), result, said("done")]
    assert chats.count("messages") == 4


def test_one_text_part_is_the_same_as_its_text(chats: Chats) -> None:
    session_id = chats.store([user("a")], said("b"))
    parts = [{"type": "text", "text": "a"}]
    assert chats.store([user(parts), said("b"), user("c")], said("d")) == session_id
    assert chats.texts(session_id) == ["a", "b", "c", "d"]


def test_image_is_stored_once_and_goes_with_its_last_message(chats: Chats) -> None:
    sessions = [chats.store([user(picture())], said("a cat"), session=name) for name in ("one", "two")]
    chats.store([user(picture()), said("a cat"), user("sure?")], said("yes"), session="one")
    assert (chats.count("blobs"), chats.count("message_blobs")) == (1, 2)
    assert chats.ready(sessions[0])[0] == user(picture())
    for left, session_id in ((1, sessions[0]), (0, sessions[1])):
        with chats.connection.transaction():
            queries.sessions.delete_session(chats.connection, session_id)
        assert chats.count("blobs") == left


def test_reply_keeps_what_upstream_said(chats: Chats) -> None:
    reply = said("x", reasoning="because", refusal=None, odd=[1])
    session_id = chats.store([user("q")], reply)
    assert chats.ready(session_id)[1] == said("x", reasoning="because", odd=[1])
    shown = chats.shown(session_id)[1]
    assert (shown["reasoning"], shown["odd"], shown["finish_reason"]) == ("because", [1], "stop")
    assert "refusal" not in shown


def test_what_says_nothing_is_not_stored_with_each_reply(chats: Chats) -> None:
    reply = said("x", refusal=None, tool_calls=[], audio=None)
    session_id = chats.store([{**user("q"), "name": None}], reply)
    assert chats.ready(session_id) == [user("q"), said("x")]
    assert chats.connection.execute("SELECT DISTINCT extra FROM messages").fetchall() == [(None,)]
    assert chats.connection.execute("SELECT completion FROM exchanges").fetchall() == [(None,)]


def test_tools_that_come_with_every_turn_are_stored_once(chats: Chats) -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 2000}}]
    session_ids = []
    for number in range(3):
        exchange = chats.begin([user(f"q{number}")])
        exchange.request["tools"] = tools
        session_ids.append(chats.finish(exchange, said("a")))
        (row,) = queries.exchanges.list_exchanges(chats.connection, session_id=session_ids[-1], page=Page(limit=9))
        assert json.loads(row.parameters) == {"model": "m", "tools": tools}
    for session_id, left in zip(session_ids, (1, 1, 0), strict=True):
        with chats.connection.transaction():
            queries.sessions.delete_session(chats.connection, session_id)
        assert chats.count("parameters") == left


def test_refused_request_is_kept(chats: Chats) -> None:
    session_id = chats.store([user("q")])
    assert chats.texts(session_id) == ["q"]
    rows = queries.exchanges.list_exchanges(chats.connection, session_id=session_id, page=Page(limit=9))
    assert [row.status for row in rows] == ["failed"]


def test_history_without_a_reply_continues_nothing(chats: Chats) -> None:
    chats.store([user("hi")], said("hello"))
    assert chats.stitched([user("hi")]) is None
    assert chats.stitched([user("hi"), user("there")]) is None


def test_longest_history_wins(chats: Chats) -> None:
    begin = [user("a"), said("b")]
    long = chats.store([*begin, user("c")], said("d"))
    chats.store(begin[:1], said("b"), session="short")
    assert chats.stitched([*begin, user("c"), said("d"), user("e")]) == long


def test_newest_of_equal_histories_wins(chats: Chats) -> None:
    chats.store([user("a")], said("b"), session="old")
    new = chats.store([user("a")], said("b"), session="new")
    assert chats.stitched([user("a"), said("b"), user("c")]) == new


def test_history_that_nothing_follows_yet_wins(chats: Chats) -> None:
    waiting = chats.store([user("a")], said("b"), session="waiting")
    ended = chats.store([user("a")], said("b"), session="went on")
    chats.store([user("a"), said("b"), user("c")], said("d"), session="went on")
    assert chats.stitched([user("a"), said("b"), user("x")]) == waiting != ended


def test_another_users_history_is_never_continued(chats: Chats) -> None:
    chats.store([user("a")], said("b"), user_id="alice")
    assert chats.stitched([user("a"), said("b"), user("c")], user_id="bob") is None


@on_sqlite
@pytest.mark.parametrize("name", ("list_prefix", "find_prefix_in_session"))
def test_history_is_found_by_the_index_of_hashes(chats: Chats, name: str) -> None:
    parameters = {"hashes": b"\0" * 32, "session_no": 1, "limit": 9}
    plan = chats.connection.execute("EXPLAIN QUERY PLAN " + named.QUERIES[name], parameters).fetchall()
    lines = [row[3] for row in plan]
    assert any("USING" in line and "idx_messages_chain_hash (chain_hash=?" in line for line in lines), lines
    # Neither a scan nor a sort: both would look at all conversations that began alike.
    assert not any(line.startswith("SCAN m") or "TEMP B-TREE" in line for line in lines), lines


def test_replayed_exchange_is_stored_once(chats: Chats) -> None:
    exchange = chats.begin([user("q")])
    session_id = chats.finish(exchange, said("a"))
    line = spill_codec.finish_line(exchange, Outcome(status="completed"))
    with write_batch(chats.connection) as rows:
        spill_codec.replay(line)(rows)
    assert chats.texts(session_id) == ["q", "a"]
    assert chats.count("exchanges") == 1


def test_deeply_nested_content_is_stored(chats: Chats) -> None:
    nested: list[object] = []
    for _ in range(700):
        nested = [nested]
    content = [{"type": "odd", "deep": nested}, *picture()]
    session_id = chats.store([user(content)], said("a"))
    assert chats.ready(session_id)[0] == user(content)
    assert chats.count("blobs") == 1
