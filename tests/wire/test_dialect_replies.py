"""Replies of the other dialects, recorded from a real vLLM and odder ones, folded whole and cut at any place."""

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from proxy.wire.anthropic_reply import MessageReply
from proxy.wire.completions import CompletionReply
from proxy.wire.dialect_reply import DialectReply
from proxy.wire.responses_items import items_of
from proxy.wire.responses_reply import ResponseReply
from proxy.wire.sse import Decoder, Event

RECORDED = Path(__file__).parent.parent / "streams" / "dialects"
STREAMS = sorted(RECORDED.glob("*.sse"))
BODIES = sorted(path for path in RECORDED.glob("*.json") if "_get_404" not in path.stem)


def reply_for(name: str, request: dict[str, Any] | None = None) -> DialectReply:
    if "responses" in name:
        return ResponseReply()
    return MessageReply() if "messages" in name else CompletionReply(request or {})


def folded(reply: DialectReply, stream: bytes, places: list[int] = []) -> DialectReply:  # noqa: B006 - never changed
    decoder = Decoder()
    for start, stop in pairwise([0, *sorted(places), len(stream)]):
        for event in decoder.feed(stream[start:stop]):
            reply.feed(event)
    return reply


def of_events(reply: DialectReply, *events: Any) -> DialectReply:
    for event in events:
        data = event if isinstance(event, bytes) else json.dumps(event).encode()
        reply.feed(Event(data, data))
    return reply


def whole(name: str, request: dict[str, Any] | None = None) -> DialectReply:
    reply = reply_for(name, request)
    reply.take_whole((RECORDED / f"{name}.json").read_bytes())
    return reply


# Recorded ones


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_recorded_stream_folds_the_same_in_any_pieces(path: Path) -> None:
    stream, dice = path.read_bytes(), random.Random(7)
    expected = folded(reply_for(path.stem), stream)
    assert (expected.malformed, expected.is_whole) == (0, True)
    for size in (1, 2, 3, 1024):
        reply = folded(reply_for(path.stem), stream, list(range(size, len(stream), size)))
        assert reply.to_json_dict() == expected.to_json_dict()
    for _ in range(20):
        reply = folded(reply_for(path.stem), stream, dice.choices(range(len(stream)), k=20))
        assert reply.to_json_dict() == expected.to_json_dict()


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_recorded_stream_cut_anywhere_keeps_what_had_come(path: Path) -> None:
    events = Decoder().feed(path.read_bytes())
    texts = []
    for count in range(len(events) + 1):
        reply = of_events(reply_for(path.stem), *(event.data for event in events[:count]))
        assert reply.malformed == 0
        texts.append(str(reply.choices[0].message.get("content") or "") if reply.choices else "")
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert len(set(texts)) > 5


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_recorded_stream_goes_through_the_spill_and_back(path: Path) -> None:
    events = Decoder().feed(path.read_bytes())
    for count in (1, len(events) // 2, len(events)):
        reply = of_events(reply_for(path.stem), *(event.data for event in events[:count]))
        back = reply_for(path.stem)
        back.take_whole(json.dumps(reply.to_json_dict()).encode())
        assert [choice.message for choice in back.choices] == [choice.message for choice in reply.choices]
        assert (back.usage, back.id, back.model) == (reply.usage, reply.id, reply.model)


@pytest.mark.parametrize("path", BODIES, ids=lambda path: path.stem)
def test_recorded_body_is_kept_as_it_is(path: Path) -> None:
    reply = whole(path.stem)
    assert reply.to_json_dict() == json.loads(path.read_bytes())
    assert reply.malformed == 0
    is_error = "err" in path.stem or "store_bg" in path.stem
    assert (reply.error is not None, reply.is_whole, bool(reply.choices)) == (is_error, not is_error, not is_error)


@pytest.mark.parametrize("mode", ("default", "flags"))
def test_recorded_response_says_what_it_cost(mode: str) -> None:
    reply = whole(f"{mode}_responses")
    assert reply.tokens == (37, 12, 49, 0, 0)
    assert reply.finish_reason == "max_output_tokens"
    assert (reply.id or "").startswith("resp_")
    assert isinstance(reply.created, int)


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_recorded_terminal_event_is_the_end_and_no_other(path: Path) -> None:
    events = [event for event in Decoder().feed(path.read_bytes()) if event.data]
    reply = reply_for(path.stem)
    assert [reply.is_end(event) for event in events] == [False] * (len(events) - 1) + [True]


@pytest.mark.parametrize("is_named", (False, True))
@pytest.mark.parametrize(
    ("reply", "word", "events"),
    (
        (
            ResponseReply(),
            "response.completed",
            (
                {"type": "response.output_text.delta", "output_index": 0, "delta": "?"},
                {"output_index": 0, "sequence_number": 1, "type": "response.output_text.done", "text": "?"},
                {"type": "response.output_item.added", "output_index": 0, "item": {"id": "?"}},
                {"id": "?", "type": "response.output_item.added", "output_index": 0, "item": {"role": "?"}},
                {"error": "?"},
            ),
        ),
        (
            MessageReply(),
            "message_stop",
            (
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "?"}},
                {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "?"}},
                {"index": 0, "content_block": {"type": "text", "text": "?"}, "type": "content_block_start"},
            ),
        ),
    ),
)
def test_a_text_that_names_the_terminal_event_is_not_the_end(
    reply: DialectReply, word: str, events: tuple[dict[str, Any], ...], is_named: bool
) -> None:
    for event in events:
        data = json.dumps(event).replace("?", word).encode()
        assert not reply.is_end(Event(data, data, event.get("type", "error").encode() if is_named else b""))


@pytest.mark.parametrize("name", (b"", b"message", b"response.completed"))
def test_a_terminal_event_is_the_end_whatever_its_name_and_the_order_of_its_keys(name: bytes) -> None:
    big = {"id": "r", "output": [{"type": "message", "content": [{"text": "x" * 10_000}]}]}
    for event in ({"type": "response.completed", "response": big}, {"response": big, "type": "response.completed"}):
        data = json.dumps({"sequence_number": 7, **event, "more": [0] * 100}).encode()
        assert ResponseReply().is_end(Event(data, data, name))
    data = b'{"more":"' + b"x" * 10_000 + b'","type" : "message_stop"}'
    assert MessageReply().is_end(Event(data, data, name.replace(b"response.completed", b"message_stop")))


@pytest.mark.parametrize(
    ("name", "is_whole"), (("response.completed", True), ("response.incomplete", True), ("response.failed", False))
)
def test_a_response_without_a_status_ends_as_its_last_event_says(name: str, is_whole: bool) -> None:
    reply = of_events(ResponseReply(), CREATED, {"type": name, "response": {"id": "resp_1", "output": []}})
    assert (reply.is_whole, reply.finish_reason) == (is_whole, name.removeprefix("response."))
    body = ResponseReply()
    body.take_whole(b'{"id":"r","object":"response","output":[]}')
    assert body.is_whole


def test_what_a_response_repeats_of_its_request_is_not_kept() -> None:
    tool = {"type": "function", "name": "f", "parameters": {}}
    request = {"tools": [tool], "temperature": 0.5, "model": "m"}
    response = {"id": "r", "tools": [{**tool, "strict": None}], "temperature": 0.7, "status": "completed", "output": []}
    reply = ResponseReply(request)
    reply.take_whole(json.dumps(response).encode())
    assert reply.envelope == {"id": "r", "temperature": 0.7, "status": "completed"}


def test_echoed_prompt_is_not_stored_again() -> None:
    reply = whole("flags_completion_logprobs_echo", {"prompt": "Hi there", "echo": True})
    assert [choice.message["content"] for choice in reply.choices] == ["'s a"]
    reply = whole("flags_completion_multi", {"prompt": ["One two", "A B"]})
    assert [choice.index for choice in reply.choices] == [0, 1]


# Odder ones

CREATED = {
    "type": "response.created",
    "response": {"id": "resp_1", "model": "m", "output": [], "status": "in_progress"},
}


def added(index: int, item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "response.output_item.added", "output_index": index, "item": item}


def test_a_response_that_was_cut_has_what_its_deltas_said() -> None:
    reply = of_events(
        ResponseReply(),
        CREATED,
        added(0, {"type": "reasoning", "id": "rs", "summary": []}),
        {"type": "response.reasoning_text.delta", "output_index": 0, "content_index": 0, "delta": "h"},
        {"type": "response.reasoning_text.delta", "output_index": 0, "content_index": 0, "delta": "m"},
        added(1, {"type": "message", "id": "msg", "role": "assistant", "content": [], "status": "in_progress"}),
        {
            "type": "response.content_part.added",
            "output_index": 1,
            "content_index": 0,
            "part": {"type": "output_text", "text": "", "annotations": []},
        },
        {"type": "response.output_text.delta", "output_index": 1, "content_index": 0, "delta": "Hello"},
        added(2, {"type": "function_call", "id": "fc", "call_id": "c", "name": "f", "arguments": ""}),
        {"type": "response.function_call_arguments.delta", "output_index": 2, "delta": '{"a"'},
        {"type": "response.an_event_nobody_knows", "output_index": 2, "delta": {"x": 1}},
        {"type": "response.another.delta", "delta": "nowhere"},
    )
    (choice,) = reply.choices
    assert choice.message == {
        "role": "assistant",
        "content": "Hello",
        "reasoning": "hm",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}],
    }
    assert (choice.finish_reason, reply.is_whole, reply.error, reply.malformed) == (None, False, None, 0)


@pytest.mark.parametrize(
    ("name", "status", "error", "is_whole"),
    (
        ("response.completed", "completed", None, True),
        ("response.completed", "incomplete", None, True),
        ("response.incomplete", "incomplete", None, True),
        ("response.failed", "failed", {"code": "server_error", "message": "no"}, False),
        ("response.completed", "in_progress", None, False),
        (
            "response.cancelled",
            "cancelled",
            {"message": "The response was cancelled at upstream.", "type": "cancelled"},
            False,
        ),
        (
            "response.failed",
            "failed",
            {"message": "Upstream says that the response failed.", "type": "failed"},
            False,
        ),
    ),
)
def test_a_response_is_whole_by_its_status_not_by_the_name_of_its_last_event(
    name: str, status: str, error: Any, is_whole: bool
) -> None:
    given = error if error is None or "code" in error else None
    response: dict[str, Any] = {"id": "resp_1", "status": status, "error": given, "output": []}
    reply = of_events(ResponseReply(), CREATED, {"type": name, "response": response})
    assert (reply.is_whole, reply.error) == (is_whole, error)


def test_a_terminal_event_without_output_does_not_take_away_what_came() -> None:
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}
    done = {"type": "response.output_item.done", "output_index": 0, "item": item}
    end = {"type": "response.completed", "response": {"id": "resp_1", "status": "completed", "output": []}}
    reply = of_events(ResponseReply(), CREATED, done, end)
    assert items_of(dict(reply.choices[0].message), getattr(reply.choices[0].message, "wire", None)) == [item]


@pytest.mark.parametrize(
    "event",
    (
        {"type": "error", "code": "server_error", "message": "died", "sequence_number": 3},
        {"type": "error", "error": {"message": "died", "type": "x"}},
        {"error": {"message": "died"}},
    ),
)
def test_an_error_in_the_stream_of_a_response_is_one(event: dict[str, Any]) -> None:
    reply = of_events(ResponseReply(), CREATED, event)
    assert isinstance(reply.error, dict)
    assert reply.error["message"] == "died"
    assert not reply.is_whole


START = {"type": "message_start", "message": {"id": "msg_1", "model": "m", "content": [], "usage": {"input_tokens": 5}}}


def test_a_message_of_every_block_is_folded() -> None:
    reply = of_events(
        MessageReply(),
        START,
        {"type": "ping"},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "", "signature": ""},
        },
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "redacted_thinking", "data": "cmVk"}},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "text_delta", "text": "I "}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "text_delta", "text": "look."}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "citations_delta", "citation": {"n": 1}}},
        {
            "type": "content_block_start",
            "index": 3,
            "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}},
        },
        {"type": "content_block_delta", "index": 3, "delta": {"type": "input_json_delta", "partial_json": '{"a":'}},
        {"type": "content_block_delta", "index": 3, "delta": {"type": "input_json_delta", "partial_json": "1}"}},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": {
                "input_tokens": 7,
                "cache_read_input_tokens": 10,
                "cache_creation_input_tokens": 2,
                "output_tokens": 9,
            },
        },
        {"type": "message_stop"},
    )
    assert reply.to_json_dict()["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "cmVk"},
        {"type": "text", "text": "I look.", "citations": [{"n": 1}]},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
    ]
    assert reply.tokens == (19, 9, 28, None, 10)
    assert (reply.finish_reason, reply.is_whole) == ("tool_use", True)


def test_a_message_without_its_stop_is_not_whole() -> None:
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}}
    reply = of_events(MessageReply(), START, end)
    assert (reply.finish_reason, reply.is_whole) == ("end_turn", False)
    reply = of_events(MessageReply(), START, {"type": "error", "error": {"type": "overloaded_error", "message": "no"}})
    assert (reply.error, reply.is_whole) == ({"type": "overloaded_error", "message": "no"}, False)
    reply = of_events(MessageReply(), START, {"type": "error", "message": "no"}, {"type": "message_stop"})
    assert (reply.error, reply.is_whole) == ({"type": "error", "message": "no"}, False)


def test_a_message_whose_content_is_a_string_is_kept() -> None:
    reply = MessageReply()
    reply.take_whole(b'{"id":"m","type":"message","role":"assistant","content":"just text","stop_reason":"end_turn"}')
    assert (reply.choices[0].message["content"], reply.is_whole) == ("just text", True)


def test_a_total_that_is_missing_is_the_sum() -> None:
    reply = ResponseReply()
    reply.take_whole(b'{"status":"completed","output":[],"usage":{"input_tokens":"7","output_tokens":5.0}}')
    assert reply.tokens[:3] == (7, 5, 12)


def test_a_message_that_begins_anew_is_the_second_one() -> None:
    begun = [
        START,
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "once"}},
    ]
    reply = of_events(MessageReply(), *begun, *begun)
    assert reply.choices[0].message["content"] == "once"


def test_a_delta_of_a_kind_that_nobody_knows_is_kept() -> None:
    delta = {"type": "hologram_delta", "beam": [1], "hue": "r"}
    event = {"type": "content_block_delta", "index": 0, "delta": delta}
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "hologram", "hue": ""}}
    [block] = of_events(MessageReply(), START, start, event, event).to_json_dict()["content"]
    assert block == {"type": "hologram", "beam": [1], "hue": "rr"}


def test_the_input_of_a_call_that_was_cut_is_shown_as_it_came() -> None:
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    delta = {"type": "input_json_delta", "partial_json": '{"at": "Par'}
    reply = of_events(
        MessageReply(),
        START,
        {"type": "content_block_start", "index": 0, "content_block": call},
        {"type": "content_block_delta", "index": 0, "delta": delta},
    )
    assert reply.choices[0].message["tool_calls"][0]["function"]["arguments"] == '{"at": "Par'


@pytest.mark.parametrize("reply", (ResponseReply(), MessageReply(), CompletionReply({"echo": True, "prompt": 3})))
@pytest.mark.parametrize(
    "data",
    (
        b"",
        b"not JSON",
        b"[1]",
        b"[" * 100_000,
        b'{"type":"response.output_text.delta","output_index":-1,"delta":"x"}',
        b'{"type":"response.output_text.delta","output_index":99999999999,"delta":"x"}',
        b'{"type":"response.output_text.delta","output_index":0,"content_index":99999999,"delta":"x"}',
        b'{"type":"response.output_item.added","output_index":0,"item":7}',
        b'{"type":"response.content_part.added","output_index":0,"content_index":"x","part":{}}',
        b'{"type":"response.output_item.added","output_index":0,"item":{"content":["x",7],"summary":"s","arguments":3}}',
        b'{"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":"x","logprobs":7}',
        b'{"type":"response.output_text.delta","output_index":0,"content_index":1,"delta":"x","logprobs":[7]}',
        b'{"type":"response.output_text.annotation.added","output_index":0,"content_index":1,"annotation":7}',
        b'{"type":"response.reasoning_summary_text.delta","output_index":0,"summary_index":0,"delta":"x"}',
        b'{"type":"response.output_text.done","output_index":0,"text":7}',
        b'{"type":"response.function_call_arguments.delta","output_index":0,"delta":"x"}',
        b'{"type":7,"output_index":0,"delta":"x"}',
        b'{"type":"response.output_text.delta","output_index":[],"item_id":{},"delta":"x"}',
        b'{"type":"response.completed","response":[]}',
        b'{"type":"content_block_delta","index":5,"delta":{"type":"text_delta","text":7}}',
        b'{"type":"content_block_delta","index":5,"delta":{"type":"input_json_delta","partial_json":"{"}}',
        b'{"type":"message_start","message":{"content":"x","usage":[]}}',
        b'{"type":"message_delta","delta":7,"usage":{"output_tokens":"x"}}',
        b'{"choices":[{"text":7},3,{"index":"x","text":"y"}],"usage":3}',
        b'{"choices":7}',
    ),
)
def test_nothing_that_an_upstream_sends_raises(reply: DialectReply, data: bytes) -> None:
    reply.feed(Event(data, data))
    assert reply.choices is not None
    assert isinstance(reply.to_json_dict(), dict)
    assert reply.is_whole is False or reply.is_whole is True


# Batches


def batched(reply: DialectReply, stream: bytes, dice: random.Random) -> DialectReply:
    """As the tee feeds it: events that may wait are only appended, until somebody looks."""
    for event in Decoder().feed(stream):
        if reply.is_ordinary and reply.is_batchable(event.raw):
            reply.batched.append(event.raw)
        else:
            reply.feed(event)
        if dice.random() < 0.1:
            reply.take_batched()
    return reply


def response_delta(text: Any, *, kind: str = "output_text", number: int = 0, **place: Any) -> bytes:
    name = f"response.{kind}.delta"
    event = {"content_index": 0, "delta": text, "output_index": 0, **place, "sequence_number": number, "type": name}
    return f"event: {name}\ndata: {json.dumps(event, separators=(',', ':'))}\n\n".encode()


def message_delta(kind: str, key: str, text: Any, *, index: Any = 0, **more: Any) -> bytes:
    event = {"type": "content_block_delta", "index": index, "delta": {"type": kind, key: text, **more}}
    return f"event: content_block_delta\ndata: {json.dumps(event, separators=(',', ':'))}\n\n".encode()


RESPONSE_DELTAS = (
    response_delta("a"),
    response_delta('"type":"response.completed"\n'),
    response_delta("", number=5),
    response_delta(None),
    response_delta({"x": 1}),
    response_delta("b", content_index=1),
    response_delta("c", content_index="x"),
    response_delta("d", output_index=1),
    response_delta("e", output_index=-1),
    response_delta("f", kind="refusal", content_index=2),
    response_delta("g", kind="reasoning_text", output_index=2),
    response_delta("h", kind="reasoning_summary_text", summary_index=1, output_index=2),
    response_delta('{"a', kind="function_call_arguments", output_index=3),
    response_delta("i", kind="a_kind_of_tomorrow"),
    response_delta("j", item={"type": "message", "content": []}),
    response_delta("k").replace(b'"delta"', b'"delta'),
    response_delta("l").replace(b"{", b"{}{"),
    response_delta("l").replace(b"l", b"\xff"),
    response_delta("m").replace(b'"type":"response.output', b'"type":"response.refusal'),
)
MESSAGE_DELTAS = (
    message_delta("text_delta", "text", "a"),
    message_delta("text_delta", "text", '"message_stop"'),
    message_delta("text_delta", "text", ""),
    message_delta("text_delta", "text", None),
    message_delta("text_delta", "text", "b", index=1),
    message_delta("text_delta", "text", "c", index="x"),
    message_delta("text_delta", "text", "d", more="e"),
    message_delta("thinking_delta", "thinking", "f", index=2),
    message_delta("signature_delta", "signature", "g", index=2),
    message_delta("input_json_delta", "partial_json", '{"h', index=3),
    message_delta("citations_delta", "citation", {"x": 1}),
    message_delta("a_kind_of_tomorrow", "text", "i"),
    message_delta("text_delta", "text", "k").replace(b'"delta"', b'"delta'),
    message_delta("text_delta", "text", "l").replace(b'"l"', b'["l"]'),
    message_delta("text_delta", "text", "m").replace(b'"m"', b'"\xff"'),
)


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_a_recorded_stream_folds_the_same_in_batches(path: Path) -> None:
    expected = folded(reply_for(path.stem), path.read_bytes())
    reply = batched(reply_for(path.stem), path.read_bytes(), random.Random(5))
    assert (reply.to_json_dict(), reply.is_whole) == (expected.to_json_dict(), expected.is_whole)


@pytest.mark.parametrize(("name", "deltas"), (("responses", RESPONSE_DELTAS), ("messages", MESSAGE_DELTAS)))
@pytest.mark.parametrize("seed", range(40))
def test_any_deltas_fold_the_same_in_batches(name: str, deltas: tuple[bytes, ...], seed: int) -> None:
    dice = random.Random(seed)
    stream = b"".join(each for one in dice.choices(deltas, k=20) for each in [one] * dice.randint(1, 3))
    expected, reply = folded(reply_for(name), stream), batched(reply_for(name), stream, dice)
    assert reply.to_json_dict() == expected.to_json_dict()
    assert [each.message for each in reply.choices] == [each.message for each in expected.choices]


@pytest.mark.parametrize(("name", "deltas"), (("responses", RESPONSE_DELTAS), ("messages", MESSAGE_DELTAS)))
def test_what_has_waited_is_given_out_as_it_came(name: str, deltas: tuple[bytes, ...]) -> None:
    reply, waited = reply_for(name), deltas[:3] * 2
    reply.feed(Decoder().feed(deltas[0])[0])
    assert reply.is_ordinary
    assert all(map(reply.is_batchable, waited))
    reply.batched += waited
    assert reply.choices
    assert reply.take_batched() == b"".join(waited)
    assert reply.take_batched() == b""


@pytest.mark.parametrize(
    "data",
    (
        b"",
        b"event: ",
        b'event: response.completed\ndata: {"type":"response.completed"}\n\n',
        response_delta("a").replace(b"\n", b"\r\n"),
        response_delta("a") + response_delta("b"),
        response_delta("a")[:-1],
        b": comment\n" + response_delta("a"),
        response_delta("a").replace(b"data: ", b"data: {}\ndata: "),
        b'event: response.output_text.delta\ndata: {"type":"response.completed","response":{}}\n\n',
    ),
)
def test_what_must_be_looked_into_at_once_does_not_wait(data: bytes) -> None:
    assert not ResponseReply().is_batchable(data)
