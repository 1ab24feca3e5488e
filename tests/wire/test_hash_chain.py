"""Chain hashes: what clients rewrite does not change them, all else does."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire import hash_chain
from tests.chats import Message, said, system, user


def call(arguments: str, **others: Any) -> Message:
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": function}], **others}


def picture(**others: Any) -> Message:
    return user([{"type": "image_url", "image_url": {"url": "data:x", **others}}])


@pytest.mark.parametrize(
    ("sent", "resent"),
    (
        (user("a"), user([{"type": "text", "text": "a"}])),
        (user("a"), user([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}])),
        (said("a"), said([{"type": "output_text", "text": "a", "annotations": []}])),
        (said("a"), said("a", refusal=None, tool_calls=[], audio=None)),
        (said("a", reasoning="b"), said("a")),
        (said("a", reasoning_content="b"), said("a", unknown=1)),
        (said("a"), said("a", name="bot")),
        (call("{}", content=None), call("{}", content="")),
        (call("{}", content=None), call("{}")),
        (call('{"x": 1, "y": [2]}'), call('{"x":1,"y":[2]}')),
        (said("Hi"), said("\n\nHi")),
        (said("Hi"), said("Hi \t\n")),
        (said("a\nb"), said("a\r\nb")),
        (said("Hi"), said("<think>\nhmm\n</think>\n\nHi")),
        (said("Hi"), said("\n<think></think>Hi")),
        (said("Hi"), said("hmm\n</think>\n\nHi")),  # the template had opened the block
        (said("Hi"), said([{"type": "text", "text": "<think>hmm</think>\r\n\r\nHi\r\n"}])),
        (call("{}", content=None), call("{}", content="<think>which tool?</think>\n\n")),
        (said("Hi"), said("<think>a</think>\n<think>b</think>\n\nHi")),
        (said("Hi"), said("<think></think>" * 1_000 + "Hi")),
        (said("Hi"), said([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Hi"}])),
        (call('{"x": 1, "y": {"b": 2, "a": []}}'), call('{"y":{"a":[],"b":2},"x":1}')),
        (call(""), call("{}")),
        (picture(), picture(detail="auto")),
        (picture(), picture(detail=None)),
    ),
)
def test_what_clients_rewrite_changes_nothing(sent: Message, resent: Message) -> None:
    assert hash_chain.canonical(sent) == hash_chain.canonical(resent)


@pytest.mark.parametrize(
    ("one", "other"),
    (
        (user("a"), user("a ")),
        (user("a"), said("a")),
        (user("a\nb"), user("a\r\nb")),
        (said("a b"), said("a  b")),
        (said("a\n\nb"), said("a\nb")),
        (said("a <think>x</think>b"), said("b")),
        (said("<think>cut"), said("")),
        (said("Hi"), said("<think></think>" * 1_000_000 + "Hi")),  # in quadratic time: hours
        (user("a"), {**user("a"), "name": "bob"}),
        (user("ab"), user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])),
        (user("a"), user([["a"]])),
        (said("a"), said("a", refusal="no")),
        (call('{"x":1}'), call('{"x":2}')),
        (call('{"x":1}'), call('"{\\"x\\":1}"')),
        (call("not JSON"), call("not  JSON")),
        (call("{}"), said("")),
        (picture(), picture(detail="low")),
        (picture(), user([{"type": "image_url", "image_url": {"url": "data:y"}}])),
        ({"role": "tool", "tool_call_id": "1", "content": "a"}, {"role": "tool", "tool_call_id": "2", "content": "a"}),
    ),
)
def test_what_is_said_changes_the_hash(one: Message, other: Message) -> None:
    assert hash_chain.canonical(one) != hash_chain.canonical(other)


@given(st.text(), st.sampled_from(("user", "assistant", "tool", "odd")))
def test_the_short_way_gives_what_the_long_one_gives(text: str, role: str) -> None:
    message = {"role": role, "content": text}
    assert hash_chain.canonical(message) == hash_chain.canonical({**message, "refusal": None})


def test_hashes_of_schema_8_are_known_where_they_are_others() -> None:
    plain, trimmed = [user(" a "), said("b"), user("c")], [user(" a "), said("b\n"), user("c")]
    assert hash_chain.exact_chain("u", plain) is None
    exact = hash_chain.exact_chain("u", trimmed)
    assert exact is not None
    assert exact[0] == hash_chain.chain("u", trimmed)[0]
    assert not set(exact[1:]) & set(hash_chain.chain("u", trimmed))
    assert exact != hash_chain.exact_chain("u", [user(" a "), said("b\n\n"), user("c")])


def test_system_messages_are_not_part_of_the_chain() -> None:
    history = [user("a"), said("b")]
    with_system = [system("x"), history[0], {"role": "developer", "content": "y"}, history[1]]
    assert hash_chain.chain("u", history) == hash_chain.chain("u", with_system)


def test_chain_holds_all_above_and_the_user() -> None:
    one = hash_chain.chain("u", [user("a"), said("b"), user("c")])
    other = hash_chain.chain("u", [user("x"), said("b"), user("c")])
    assert len(set(one) | set(other)) == 6
    assert not set(one) & set(hash_chain.chain("v", [user("a"), said("b"), user("c")]))
    assert hash_chain.own_hash(user("a")) not in one


@pytest.mark.parametrize(
    "message",
    ({"role": "user"}, user(None), user(5), user([None, 1, {}]), user("\ud800"), {"role": "x", "tool_calls": 3}),
)
def test_odd_messages_have_a_hash_too(message: Message) -> None:
    assert len(hash_chain.chain("\udcff", [message])[0]) == 16
