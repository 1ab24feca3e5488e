"""A request that names something of ours gets its history, and no byte of it changes beside that."""

import json
from typing import Any

import pytest

from proxy.wire.responses_state import conversation_id_of, for_engine, previous_id_of, references_of, spliced

HISTORY: list[Any] = [
    {"role": "user", "content": "hi"},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": ""},
]
HISTORY_TEXT = b'{"role":"user","content":"hi"},{"type":"function_call","call_id":"c","name":"f","arguments":""}'


@pytest.mark.parametrize(
    ("given", "expected"),
    (
        (b'"in\\u0041 put"', b"[" + HISTORY_TEXT + b',{"role":"user","content":"in\\u0041 put"}]'),
        (
            b'[ {"role":"user","content":"x", "n":1.50} ]',
            b"[" + HISTORY_TEXT + b',{"role":"user","content":"x", "n":1.50}]',
        ),
        (b"[]", b"[" + HISTORY_TEXT + b"]"),
        (b"null", b"[" + HISTORY_TEXT + b"]"),
    ),
)
def test_history_comes_before_the_input_and_nothing_else_changes(given: bytes, expected: bytes) -> None:
    body = b'{"model" : "m", "input": ' + given + b' ,"previous_response_id":"resp_1", "seed": 1.50, "a":{"input":[1]}}'
    changed, request = spliced(body, json.loads(body), history=HISTORY, items={}, is_known=True)
    assert changed == b'{"model" : "m","seed": 1.50,"a":{"input":[1]},"input":' + expected + b"}"
    assert request["previous_response_id"] == "resp_1"
    assert json.loads(changed)["input"] == request["input"]


def test_a_request_without_input_gets_the_history() -> None:
    body = b'{"conversation":{"id":"conv_1"}}'
    changed, _ = spliced(body, json.loads(body), history=HISTORY, items={}, is_known=True)
    assert changed == b'{"input":[' + HISTORY_TEXT + b"]}"


def test_an_input_that_is_no_list_is_left_to_upstream() -> None:
    body = b'{"input":7,"previous_response_id":"r"}'
    assert spliced(body, json.loads(body), history=HISTORY, items={}, is_known=True)[0] == body


def test_references_are_replaced_where_they_are_ours() -> None:
    request = {
        "input": [{"type": "item_reference", "id": "msg_1"}, {"id": "rs_2"}, {"type": "item_reference", "id": "x"}]
    }
    body = json.dumps(request).encode()
    assert references_of(request) == ["msg_1", "rs_2", "x"]
    items: dict[str, Any] = {
        "msg_1": {"role": "assistant", "content": "said"},
        "rs_2": {"type": "reasoning", "id": "rs_2"},
    }
    changed, _ = spliced(body, request, history=[], items=items, is_known=False)
    assert json.loads(changed)["input"] == [items["msg_1"], items["rs_2"], request["input"][2]]


def test_a_utf_16_body_gets_its_history_too() -> None:
    request = {"input": "hi", "previous_response_id": "r"}
    changed, _ = spliced(json.dumps(request).encode("utf-16"), request, history=HISTORY, items={}, is_known=True)
    assert json.loads(changed) == {"input": [*HISTORY, {"role": "user", "content": "hi"}]}


def test_a_stored_item_is_one_that_an_engine_takes() -> None:
    thought = {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "x", "status": "incomplete"}
    assert for_engine(thought) == {"type": "reasoning", "id": "rs", "summary": [], "status": "completed"}
    said = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "a", "annotations": []}],
    }
    assert for_engine(said)["content"] == "a"
    assert for_engine(said | {"id": "msg"})["content"] == said["content"]


def test_a_key_of_another_type_names_nothing() -> None:
    assert previous_id_of({"previous_response_id": 7}) is None
    assert conversation_id_of({"conversation": {"id": 7}}) is None
    assert conversation_id_of({"conversation": {"id": "conv_1"}}) == conversation_id_of({"conversation": "conv_1"})
    assert references_of({"input": "text"}) == references_of({"input": [7, {"type": "item_reference", "id": 7}]}) == []
