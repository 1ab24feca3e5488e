"""What was sent in a dialect is what is read back in it, through the columns of a message and without a word lost."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire import anthropic, anthropic_blocks, hash_chain, json_text, responses, responses_items
from proxy.wire.dialect import WireMessage
from proxy.wire.residue import difference, restored
from tests.long import examples
from tests.wire.corpus import ITEMS, MESSAGES, SYSTEM, item_lists, message_lists


def exactly(value: Any) -> str:
    """Tells 1 from 1.0 and true."""
    return json.dumps(value, sort_keys=True)


def stored(message: WireMessage) -> tuple[dict[str, Any], Any]:
    """A message as it comes back from the database: its wire is JSON text there."""
    wire = None if message.wire is None else json_text.loads(json_text.dumps(message.wire))
    return json_text.loads(json_text.dumps(dict(message))), wire


def items_read_back(items: Any) -> list[Any]:
    rows = map(stored, responses_items.messages_of(items))
    return [item for message, wire in rows for item in responses_items.items_of(message, wire)]


def messages_read_back(messages: Any) -> list[Any]:
    return anthropic_blocks.to_messages(map(stored, anthropic_blocks.messages_of(messages)))


# What was sent is what is read back


def test_items_of_every_type_are_read_back_as_sent() -> None:
    assert exactly(items_read_back(ITEMS)) == exactly(ITEMS)


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: str(item)[:40])
def test_each_item_alone_is_read_back_as_sent(item: Any) -> None:
    assert exactly(items_read_back([item])) == exactly([item])


@settings(max_examples=examples(400), deadline=None)
@given(item_lists)
def test_any_items_are_read_back_as_sent(items: list[Any]) -> None:
    assert exactly(items_read_back(items)) == exactly(items)


def test_messages_of_every_kind_are_read_back_as_sent() -> None:
    assert_request_is_read_back({"system": SYSTEM, "messages": MESSAGES})


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: str(message)[:40])
def test_each_message_alone_is_read_back_as_sent(message: Any) -> None:
    assert_request_is_read_back({"messages": [message]})


@pytest.mark.parametrize("system", ("one text", [], SYSTEM[1:2], [SYSTEM[0], *SYSTEM], ["odd", 3, {"type": "image"}]))
def test_system_is_read_back_as_sent(system: Any) -> None:
    assert_request_is_read_back({"system": system, "messages": []})


@settings(max_examples=examples(400), deadline=None)
@given(message_lists)
def test_any_messages_are_read_back_as_sent(messages: list[Any]) -> None:
    assert_request_is_read_back({"messages": messages})


def assert_request_is_read_back(request: dict[str, Any]) -> None:
    said = anthropic.conversation_of(request)
    rows = [stored(message) for message in said.messages]
    back = anthropic.request_of(rows, json_text.loads(json_text.dumps(said.wire)))
    assert exactly(back["messages"]) == exactly(request["messages"])
    assert exactly(back.get("system", [])) == exactly(request.get("system", []))


def test_a_value_and_its_difference_are_all_there_is() -> None:
    base = {"type": "a", "list": [{"type": "x", "v": 1}, {"type": "y", "v": 2}], "gone": 1}
    value = {"type": "a", "list": [{"type": "y", "v": 2}, {"type": "x", "v": 1.0}, "new"], "=": None}
    patch = difference(base, value)
    assert exactly(restored(base, patch)) == exactly(value)
    assert patch == {
        "~": {"list": {"[]": [1, [0, {"~": {"v": {"=": 1.0}}}], {"=": "new"}]}, "=": {"=": None}},
        "-": ["gone"],
    }


@settings(max_examples=examples(400), deadline=None)
@given(st.data())
def test_any_difference_gives_the_value_back(data: st.DataObject) -> None:
    base, value = data.draw(item_lists), data.draw(item_lists)
    patch = json.loads(json.dumps(difference(base, value)))
    assert exactly(restored(base, patch)) == exactly(value)


@pytest.mark.parametrize("patch", ({"[]": [9]}, {"[]": 3}, {"~": 3}, "odd", {"[]": [{}]}, 5, {"-": 3}))
def test_a_damaged_difference_changes_nothing(patch: Any) -> None:
    assert restored({"a": [1]}, patch) == {"a": [1]}
    assert restored([1], patch) == [1]


def test_a_long_list_is_compared_place_by_place() -> None:
    base = [{"type": "text", "text": str(number)} for number in range(100)]
    assert difference(base, base[1:]) is not None
    assert restored(base, difference(base, base[1:])) == base[1:]


# The same conversation in each dialect has the same chain

CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "weather in Paris?"},
    {
        "role": "assistant",
        "content": "I look.",
        "reasoning": "hm",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "w", "arguments": '{"at":"Paris"}'}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "sun"},
    {"role": "assistant", "content": "It is sunny today, and tomorrow too."},
    {"role": "user", "content": "and tomorrow?"},
]
INPUT: list[dict[str, Any]] = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "weather in Paris?"}]},
    {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "message", "role": "assistant", "id": "m", "content": [{"type": "output_text", "text": "I look."}]},
    {"type": "function_call", "id": "f", "call_id": "c1", "name": "w", "arguments": '{ "at": "Paris" }'},
    {"type": "function_call_output", "call_id": "c1", "output": "sun"},
    {"role": "assistant", "content": "It is sunny today, and tomorrow too."},
    {"role": "user", "content": "and tomorrow?"},
]
ANTHROPIC: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "weather in Paris?", "cache_control": {"type": "ephemeral"}}],
    },
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "c1", "name": "w", "input": {"at": "Paris"}},
        ],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "sun", "is_error": False}]},
    {"role": "assistant", "content": "It is sunny today, and tomorrow too."},
    {"role": "user", "content": "and tomorrow?"},
]


def test_the_same_tool_dialogue_has_the_same_chain_in_every_dialect() -> None:
    expected = hash_chain.chain("ann", CHAT)
    said = responses.conversation_of({"instructions": "Be kind.", "input": INPUT})
    assert hash_chain.chain("ann", said.messages) == expected
    said = anthropic.conversation_of({"system": "Be kind.", "messages": ANTHROPIC})
    assert hash_chain.chain("ann", said.messages) == expected


def test_what_came_as_chat_reads_back_in_the_other_dialects() -> None:
    items = [item for message in CHAT for item in responses_items.items_of(message)]
    assert hash_chain.chain("ann", responses_items.messages_of(items)) == hash_chain.chain("ann", CHAT)
    messages = anthropic_blocks.to_messages((message, None) for message in CHAT)
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant", "user"]
    assert hash_chain.chain("ann", anthropic_blocks.messages_of(messages)) == hash_chain.chain("ann", CHAT)


def test_what_came_in_one_dialect_reads_back_in_the_other() -> None:
    rows = [stored(message) for message in responses_items.messages_of(INPUT)]
    messages = anthropic_blocks.to_messages(rows)
    assert hash_chain.chain("ann", anthropic_blocks.messages_of(messages)) == hash_chain.chain("ann", CHAT)
    rows = [stored(message) for message in anthropic_blocks.messages_of(ANTHROPIC)]
    items = [item for message, wire in rows for item in responses_items.items_of(message, wire)]
    assert hash_chain.chain("ann", responses_items.messages_of(items)) == hash_chain.chain("ann", CHAT)


def test_what_changes_with_every_turn_is_no_part_of_the_conversation() -> None:
    first = anthropic.conversation_of({"system": SYSTEM, "messages": ANTHROPIC})
    billing = {"type": "text", "text": "x-anthropic-billing-header: cch=other"}
    second = anthropic.conversation_of({"system": [billing, *SYSTEM[1:]], "messages": ANTHROPIC})
    assert first.messages == second.messages
    assert first.wire is not None
    assert second.wire is not None
    assert first.wire["billing"] != second.wire["billing"]
    assert first.parameters == second.parameters == {}


def test_a_plain_conversation_leaves_hardly_any_residue() -> None:
    said = responses.conversation_of({"input": [INPUT[5], INPUT[6], INPUT[0]]})
    assert [message.wire for message in said.messages] == [
        {"responses": {"form": "text", "patch": {"[]": [[0, {"-": ["type"]}]]}}},
        None,
        {"responses": {"form": "parts", "patch": {"[]": [[0, {"~": {"type": {"=": "message"}}}]]}}},
    ]
    anthropic_said = anthropic.conversation_of({"messages": [{"role": "user", "content": "hi"}, ANTHROPIC[2]]})
    assert anthropic_said.messages[0].wire is None
