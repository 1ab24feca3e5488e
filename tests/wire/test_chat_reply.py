"""Replies of a real vLLM, and odder ones, folded to messages."""

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire.chat_reply import Completion, is_terminator
from proxy.wire.json_text import dumps
from proxy.wire.sse import Decoder, Event
from tests.long import examples

STREAMS = Path(__file__).parent.parent / "streams"
ALL_STREAMS = sorted(STREAMS.glob("*.sse"))
ALL_BODIES = sorted(STREAMS.glob("*.json"))


def data_of(name: str) -> list[bytes]:
    return [event.data for event in Decoder().feed((STREAMS / f"{name}.sse").read_bytes())]


def event_of(data: bytes) -> Event:
    return Event(b"data: " + data + b"\n\n", data)


def is_usage_only(data: bytes) -> bool:
    return Completion().is_usage_only(event_of(data))


def has_token(data: bytes) -> bool:
    return folded(data).has_token


def folded(*chunks: bytes | dict[str, Any]) -> Completion:
    completion = Completion()
    for chunk in chunks:
        completion.feed(event_of(chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()))
    return completion


def whole(name: str) -> Completion:
    return Completion.from_body((STREAMS / f"{name}.json").read_bytes())


def chunk_of(delta: object, **choice: object) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, **choice}]}


def message_of(*deltas: object) -> dict[str, Any]:
    completion = folded(*map(chunk_of, deltas))
    assert completion.malformed == 0
    return completion.choices[0].message


def without_nulls(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if value is not None}


# Recorded replies


@pytest.mark.parametrize("path", ALL_STREAMS, ids=lambda path: path.stem)
def test_recorded_stream_folds_the_same_in_any_pieces(path: Path) -> None:
    stream, dice = path.read_bytes(), random.Random(7)
    expected = folded(*data_of(path.stem)).to_json_dict()
    for size in (1, 2, 3, 1024):
        assert folded_bytes(stream, list(range(size, len(stream), size))) == expected
    for _ in range(20):
        assert folded_bytes(stream, dice.choices(range(len(stream)), k=20)) == expected


def folded_bytes(stream: bytes, places: list[int]) -> dict[str, Any]:
    decoder, completion = Decoder(), Completion()
    for start, stop in pairwise([0, *sorted(places), len(stream)]):
        for event in decoder.feed(stream[start:stop]):
            completion.feed(event)
    return completion.to_json_dict()


@pytest.mark.parametrize("path", ALL_STREAMS, ids=lambda path: path.stem)
def test_recorded_stream_folds_to_what_its_chunks_say(path: Path) -> None:
    data = data_of(path.stem)
    completion = folded(*data)
    chunks = [json.loads(event) for event in data if event != b"[DONE]"]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", [])]
    assert (completion.malformed, completion.terminated) == (0, True)
    assert {choice.index for choice in completion.choices} == {choice["index"] for choice in choices}
    for folded_choice in completion.choices:
        own = [choice for choice in choices if choice["index"] == folded_choice.index]
        texts = [choice["delta"].get("content") for choice in own]
        assert folded_choice.message["role"] == "assistant"
        assert folded_choice.message["content"] == "".join(text for text in texts if text)
        assert folded_choice.finish_reason == own[-1]["finish_reason"]


@pytest.mark.parametrize("path", ALL_STREAMS, ids=lambda path: path.stem)
def test_the_short_way_folds_to_the_same_as_the_long_way(path: Path) -> None:
    data = data_of(path.stem)
    spaced = [event.replace(b"{", b"{ ", 1 + number % 2) for number, event in enumerate(data)]
    assert folded(*spaced).to_json_dict() == folded(*data).to_json_dict()


@pytest.mark.parametrize("path", ALL_BODIES, ids=lambda path: path.stem)
def test_recorded_body_is_kept_key_by_key(path: Path) -> None:
    body = json.loads(path.read_bytes())
    completion = Completion.from_body(path.read_bytes())
    assert json.dumps(completion.to_json_dict()) == json.dumps(body)
    assert [json.dumps(choice.message) for choice in completion.choices] == [
        json.dumps(choice["message"]) for choice in body.get("choices", [])
    ]
    assert completion.error == (body if "detail" in body else body.get("error"))
    assert completion.is_whole == ("choices" in body)
    assert completion.malformed == 0


@pytest.mark.parametrize(
    ("streamed", "sent"),
    (
        ("default_chat_stream", "default_chat"),
        ("default_chat_stream_usage", "default_chat"),
        ("default_chat_stream_usage_cont", "default_chat"),
        ("default_chat_stream_logprobs", "default_chat_logprobs"),
        ("flags_chat_stream", "flags_chat"),
        ("flags_chat_stream_usage", "flags_chat"),
        ("flags_chat_stream_usage_cont", "flags_chat"),
        ("flags_chat_stream_logprobs", "flags_chat_logprobs"),
        ("flags_chat_stream_n2", "flags_chat_n2"),
    ),
)
def test_stream_and_whole_reply_fold_to_the_same_choices(streamed: str, sent: str) -> None:
    for one, other in zip(folded(*data_of(streamed)).choices, whole(sent).choices, strict=True):
        assert without_nulls(one.message) == without_nulls(other.message)
        assert one.finish_reason == other.finish_reason
        assert one.extra["logprobs"] == other.extra["logprobs"]


@pytest.mark.parametrize("name", ("tool_named", "tool_required"))
def test_streamed_tool_call_folds_to_the_whole_one(name: str) -> None:
    one = folded(*data_of(f"flags_chat_stream_{name}")).choices[0]
    other = whole(f"flags_chat_{name}").choices[0]
    for choice in (one, other):
        assert choice.message["tool_calls"][0].pop("id").startswith("chatcmpl-tool-")
    assert without_nulls(one.message) == without_nulls(other.message)
    assert one.finish_reason == other.finish_reason


def test_stream_has_the_envelope_of_the_whole_reply() -> None:
    completion = folded(*data_of("default_chat_stream_usage"))
    assert completion.envelope == {
        "id": completion.id,
        "object": "chat.completion",
        "created": completion.created,
        "model": "smollm2",
        "prompt_token_ids": None,
        "prompt_text": None,
        "system_fingerprint": "vllm-0.32.0-b34cc52a",
    }
    assert str(completion.id).startswith("chatcmpl-")
    assert completion.usage == {"prompt_tokens": 37, "total_tokens": 49, "completion_tokens": 12}


def test_token_ids_are_put_together() -> None:
    completion = folded(*data_of("default_chat_stream_token_ids"))
    assert len(completion.choices[0].extra["token_ids"]) == 12
    assert len(completion.envelope["prompt_token_ids"]) == 37


def test_continuous_usage_ends_with_the_last() -> None:
    usage = folded(*data_of("default_chat_stream_usage_cont")).usage
    assert usage == {"prompt_tokens": 37, "total_tokens": 49, "completion_tokens": 12}


@pytest.mark.parametrize("name", ("default_enginekill_inflight_stream", "default_sigterm_inflight_stream"))
def test_stream_of_a_killed_engine_is_not_whole_though_it_was_terminated(name: str) -> None:
    completion = folded(*data_of(name))
    assert completion.terminated
    assert not completion.is_whole
    assert isinstance(completion.error, dict)
    assert completion.error["code"] == 500
    assert completion.choices[0].finish_reason is None
    assert completion.choices[0].message["content"]


def test_cut_stream_is_not_whole() -> None:
    completion = folded(*data_of("default_chat_stream")[:-2])
    assert (completion.terminated, completion.is_whole) == (False, False)


def test_stream_with_one_open_choice_is_not_whole() -> None:
    assert not folded(*data_of("default_chat_stream_n2")[:-3]).is_whole
    assert folded(*data_of("default_chat_stream_n2")[:-2]).is_whole


# The rules of folding


def test_content_is_null_until_a_string_comes() -> None:
    call = {"tool_calls": [{"index": 0, "id": "a"}]}
    assert message_of({"role": "assistant", "content": None}, call) == {"role": "assistant", "content": None} | {
        "tool_calls": [{"id": "a"}]
    }
    assert message_of({"content": ""}, {"content": None})["content"] == ""
    assert message_of({"content": None}, {"content": "a"}, {"content": None}, {"content": "b"})["content"] == "ab"
    assert "content" not in message_of({"role": "assistant"})


def test_role_is_taken_once() -> None:
    assert message_of({"role": "assistant"}, {"role": "assistant"}, {"role": "user"}) == {"role": "assistant"}


def test_reasoning_comes_before_content() -> None:
    deltas = [
        {"role": "assistant", "content": ""},
        {"reasoning": "a"},
        {"reasoning": "b"},
        {"content": "c"},
        {"content": "d"},
    ]
    assert message_of(*deltas) == {"role": "assistant", "content": "cd", "reasoning": "ab"}


@pytest.mark.parametrize("key", ("reasoning_content", "refusal", "a_key_nobody_knows", "ключ"))
def test_strings_of_any_key_are_appended(key: str) -> None:
    assert message_of({key: "a"}, {key: "b"}, {key: "c"}) == {key: "abc"}


def test_tool_calls_are_merged_by_index_in_its_order() -> None:
    def piece(index: int, **call: object) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, **call}]}

    message = message_of(
        piece(1, id="b", type="function", function={"name": "two", "arguments": ""}),
        piece(0, id="a", type="function", function={"name": "one", "arguments": "{"}),
        piece(1, id="b", type="function", function={"name": "two", "arguments": "[1"}),
        piece(0, id="", function={"name": None, "arguments": "}"}),
        piece(1, function={"arguments": "]"}),
    )
    assert message["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "one", "arguments": "{}"}},
        {"id": "b", "type": "function", "function": {"name": "two", "arguments": "[1]"}},
    ]


def test_tool_calls_without_an_index_are_merged_by_id_or_appended() -> None:
    message = message_of(
        {"tool_calls": [{"id": "a", "function": {"arguments": "1"}}, {"function": {"arguments": "x"}}]},
        {"tool_calls": [{"id": "a", "function": {"arguments": "2"}}, {"function": {"arguments": "y"}}]},
    )
    assert message["tool_calls"] == [
        {"id": "a", "function": {"arguments": "12"}},
        {"function": {"arguments": "xy"}},
    ]


def test_tool_call_with_an_index_is_found_again_by_its_id() -> None:
    message = message_of(
        {"tool_calls": [{"index": 0, "id": "a", "function": {"arguments": "1"}}]},
        {"tool_calls": [{"id": "a", "function": {"arguments": "2"}}]},
    )
    assert message["tool_calls"] == [{"id": "a", "function": {"arguments": "12"}}]


def test_legacy_function_call_is_put_together() -> None:
    calls = [{"name": "f", "arguments": ""}, {"arguments": "{"}, {"name": "f", "arguments": "}"}]
    assert message_of(*({"function_call": call} for call in calls)) == {
        "function_call": {"name": "f", "arguments": "{}"}
    }


def test_audio_is_put_together() -> None:
    pieces = [{"id": "a", "transcript": "x"}, {"data": "AA"}, {"data": "BB", "transcript": "y"}, {"expires_at": 5}]
    assert message_of(*({"audio": piece} for piece in pieces))["audio"] == {
        "id": "a",
        "transcript": "xy",
        "data": "AABB",
        "expires_at": 5,
    }


def test_unknown_values_are_extended_merged_or_replaced() -> None:
    first = {"list": [1], "dict": {"a": "x", "n": 1}, "number": 1, "flag": False, "null": None, "changed": "s"}
    second = {"list": [2], "dict": {"a": "y", "n": None}, "number": 2, "flag": True, "null": None, "changed": {"k": 1}}
    assert message_of(first, second) == {
        "list": [1, 2],
        "dict": {"a": "xy", "n": 1},
        "number": 2,
        "flag": True,
        "null": None,
        "changed": ["s", {"k": 1}],
    }


def test_a_growing_string_may_turn_into_a_list() -> None:
    assert message_of({"content": "a"}, {"content": "b"}, {"content": [{"type": "text"}]}) == {
        "content": [{"type": "text", "text": "ab"}]
    }


def test_logprobs_lists_are_extended_and_states_replaced() -> None:
    completion = folded(
        chunk_of({"content": "a"}, logprobs={"content": [1], "refusal": None}, stop_reason=None),
        chunk_of({"content": "b"}, logprobs=None, stop_reason="x"),
        chunk_of({"content": "c"}, logprobs={"content": [2], "refusal": [3]}, stop_reason="y", finish_reason="stop"),
    )
    assert completion.choices[0].extra == {"logprobs": {"content": [1, 2], "refusal": [3]}, "stop_reason": "y"}
    assert completion.choices[0].finish_reason == "stop"


def test_empty_finish_reason_is_none() -> None:
    completion = folded(chunk_of({"content": "a"}, finish_reason=""))
    assert completion.choices[0].finish_reason is None
    assert not completion.is_whole


def test_choices_are_interleaved_and_sorted() -> None:
    def chunk(*choices: tuple[int, str]) -> dict[str, Any]:
        return {"choices": [{"index": index, "delta": {"content": text}} for index, text in choices]}

    completion = folded(
        chunk((1, "a")), chunk((0, "x")), chunk((1, "b"), (0, "y")), chunk((1, "c")), {"choices": []}, {}
    )
    assert [(choice.index, choice.message["content"]) for choice in completion.choices] == [(0, "xy"), (1, "abc")]


def test_later_chunks_win_over_earlier_but_null_does_not() -> None:
    completion = folded({"id": "a", "x": 1, "y": None}, {"id": "b", "x": None, "usage": {"n": 1}}, {"usage": None})
    assert completion.envelope == {"id": "b", "x": 1, "y": None}
    assert completion.usage == {"n": 1}


def test_the_last_of_two_envelopes_wins_though_the_first_was_learnt() -> None:
    one, two = ({**chunk_of({"content": text}), "created": created} for text, created in (("a", 1), ("b", 2)))
    completion = folded(one, one, two, one)
    assert completion.created == 1
    assert completion.choices[0].message["content"] == "aaba"


def test_text_may_hold_the_bytes_of_a_chunk() -> None:
    texts = [
        '"',
        '"},"finish_reason":"stop"}]}',
        "\\",
        '","delta":{"content":"',
        "\n",
        "é\u2028😀",
        "",
        '"delta":{"content":"',
    ]
    assert message_of(*({"content": text} for text in texts * 2)) == {"content": "".join(texts * 2)}


def test_bytes_between_known_ones_must_be_one_string() -> None:
    first = b'{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}'
    other = b'{"choices":[{"index":0,"delta":{"content":"b","refusal":"c"},"finish_reason":null}]}'
    broken = b'{"choices":[{"index":0,"delta":{"content":"b"c"},"finish_reason":null}]}'
    completion = folded(first, first, other, first, broken, first)
    assert completion.choices[0].message == {"content": "aabaa", "refusal": "c"}
    assert completion.malformed == 1


def test_duplicate_keys_mean_what_json_says() -> None:
    twice = b'{"choices":[{"index":0,"delta":{"content":"a"},"delta":{"content":"b"}}]}'
    assert folded(twice, twice).choices[0].message == {"content": "bb"}


def test_error_in_the_stream_is_kept_as_sent() -> None:
    assert folded({"error": "broken"}).error == "broken"
    assert folded({"error": None}).error is None
    older = {"object": "error", "message": "broken", "code": 400}
    assert folded(older).error == older
    assert Completion.from_body(json.dumps(older).encode()).error == older


def test_whole_reply_in_one_event_is_folded() -> None:
    completion = folded(json.loads((STREAMS / "flags_chat_tool_named.json").read_bytes()))
    assert completion.choices[0].message == whole("flags_chat_tool_named").choices[0].message
    assert completion.is_whole


def test_growing_message_is_a_copy() -> None:
    completion = folded(chunk_of({"content": "a", "tool_calls": [{"index": 0, "x": "1"}]}, token_ids=[1]))
    [before] = completion.choices
    chunk = chunk_of({"content": "b", "tool_calls": [{"index": 0, "x": "2"}]}, token_ids=[2])
    completion.feed(event_of(json.dumps(chunk).encode()))
    assert before.message == {"content": "a", "tool_calls": [{"x": "1"}]}
    assert before.extra == {"token_ids": [1]}


# What no upstream should send


def test_malformed_events_are_counted() -> None:
    completion = folded(b'{"choices":[', b"[1]", b"null", b"x", b'"s"', b"\xff", b'{"a":"\xff"}', b"", b"  ")
    assert completion.malformed == 6  # bytes that are not UTF-8 are replaced, and the rest is kept
    assert completion.choices == []


FOREIGN_INDEXES: tuple[object, ...] = ("x", [], -1, 2**70, True, 0.5)
FOREIGN_DELTAS: tuple[object, ...] = ("x", [1], 5, {"tool_calls": "x"}, {"tool_calls": [None]})
FOREIGN_CHOICES: tuple[object, ...] = (
    "x",
    5,
    {"0": {}},
    ["x"],
    [None],
    [[]],
    *([{"index": index}] for index in FOREIGN_INDEXES),
    *([{"delta": delta}] for delta in FOREIGN_DELTAS),
    [{"finish_reason": 5}],
)


@pytest.mark.parametrize("choices", FOREIGN_CHOICES)
def test_foreign_shapes_are_counted(choices: object) -> None:
    completion = folded({"id": "a", "choices": choices}, {"id": "b", "choices": choices})
    assert completion.malformed == 2
    assert completion.id == "b"
    assert not completion.is_whole
    completion.to_json_dict()


@pytest.mark.parametrize(
    "delta", ({"tool_calls": "x"}, {"content": 5}, {"role": 5}, {"role": "x"}, {"": ""}, {"\ud800": "x"})
)
@pytest.mark.parametrize("index", (0, -1, 2**40))
def test_odd_deltas_do_not_raise(delta: dict[str, Any], index: int) -> None:
    chunk = {"choices": [{"index": index, "delta": delta}]}
    assert len(folded(chunk, chunk, chunk).choices) == 1


def test_missing_index_is_the_position() -> None:
    completion = folded({"choices": [{"delta": {"content": "a"}}, {"delta": {"content": "b"}}]})
    assert [(choice.index, choice.message["content"]) for choice in completion.choices] == [(0, "a"), (1, "b")]
    assert completion.malformed == 0


@pytest.mark.parametrize(
    "body", (b"", b"x", b"[]", b'{"choices":5}', b'{"choices":[5]}', b'{"choices":[{"message":null}]}')
)
def test_malformed_body_is_counted(body: bytes) -> None:
    completion = Completion.from_body(body)
    assert completion.malformed == 1
    assert not completion.is_whole
    completion.to_json_dict()


def test_duplicate_index_in_a_body_keeps_both_choices() -> None:
    choices = [{"index": 0, "message": {"content": text}, "finish_reason": "stop"} for text in "ab"]
    completion = Completion.from_body(json.dumps({"choices": choices}).encode())
    assert [choice.message["content"] for choice in completion.choices] == ["a", "b"]


def test_integers_past_64_bit_stay_integers() -> None:
    for number in (2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**40):
        message = message_of({"n": number})
        assert message == {"n": number}
        assert isinstance(message["n"], int)


def test_character_in_two_halves_is_one_and_a_lone_surrogate_is_kept() -> None:
    message = message_of({"content": "a"}, {"content": "\ud83d"}, {"content": "\ude00"}, {"content": "b"})
    assert message == {"content": "a\U0001f600b"}
    assert message_of({"content": "a"}, {"content": "\ud83d"}, {"content": "b"}) == {"content": "a\ud83db"}
    assert json.loads(dumps(message)) == {"content": "a😀b"}


def test_nan_and_huge_floats_are_read() -> None:
    chunk = b'{"choices":[{"index":0,"delta":{"content":"a"},"x":NaN,"y":1e999}]}'
    completion = folded(chunk, chunk)
    assert completion.choices[0].message == {"content": "aa"}
    assert completion.malformed == 0


@pytest.mark.parametrize("levels", (300, 1000, 5000, 100_000))
def test_deep_nesting_is_refused(levels: int) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        nested = (opening * levels + "1" + closing * levels).encode()
        data = b'{"choices":[{"index":0,"delta":{"x":' + nested + b"}}]}"
        completion = folded(data, data)
        assert completion.malformed == 2


def test_nesting_that_can_be_written_again_is_kept() -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        nested = opening * 200 + '"s"' + closing * 200
        data = b'{"choices":[{"index":0,"delta":{"x":' + nested.encode() + b"}}]}"
        completion = folded(data, data, data)
        assert completion.malformed == 0
        assert dumps(completion.to_json_dict()).count(opening) >= 200


# Properties

texts = st.text(st.characters(codec=None), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(texts, children, max_size=3),
    max_leaves=8,
)
KEYS = "choices index delta message content role tool_calls function arguments id name error usage finish_reason object"
keys = st.sampled_from(KEYS.split())
shaped = st.recursive(
    json_values | st.integers(0, 2),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(keys, children, max_size=4),
    max_leaves=12,
)
odd_choice = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("index", "delta", "message", "finish_reason", "x"), shaped)
)
odd_chunk = st.fixed_dictionaries(
    {},
    optional={
        "choices": st.lists(odd_choice | shaped, max_size=3) | shaped,
        "usage": shaped,
        "error": shaped,
        "x": shaped,
    },
)
odd_deltas = st.dictionaries(keys, shaped, max_size=3).map(chunk_of)


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(odd_chunk | odd_deltas | shaped, max_size=5))
def test_hostile_json_never_raises(values: list[Any]) -> None:
    events = [
        json.dumps(value, ensure_ascii=index % 2 == 1).encode(errors="surrogatepass")
        for index, value in enumerate(values)
    ]
    completion = folded(*events, *events)
    assert isinstance(dumps(completion.to_json_dict()), str)
    assert isinstance(completion.is_whole, bool)
    for event in events:
        body = Completion.from_body(event)
        assert isinstance(dumps(body.to_json_dict()), str)
        assert isinstance(body.is_whole, bool)
        assert not (is_usage_only(event) and has_token(event))


@settings(deadline=None)
@given(
    st.lists(odd_deltas | odd_deltas.map(lambda chunk: {**chunk, "id": "a"}), max_size=3), st.lists(texts, min_size=1)
)
def test_the_short_way_folds_odd_chunks_to_the_same_as_the_long_way(odd: list[Any], contents: list[str]) -> None:
    chunks = [value for text in contents for value in (chunk_of({"content": text}), *odd[:1])] + odd + odd
    events = [json.dumps(chunk, separators=(",", ":")).encode() for chunk in chunks for _ in range(3)]
    short, long = folded(*events), folded(*(b" " * (place % 2) + event for place, event in enumerate(events)))
    assert dumps(short.to_json_dict()) == dumps(long.to_json_dict())
    assert (short.malformed, dumps(short.error)) == (long.malformed, dumps(long.error))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40)))
def test_hostile_bytes_never_raise(events: list[bytes]) -> None:
    assert folded(*events).malformed <= len(events)


names = st.sampled_from(("content", "reasoning", "reasoning_content", "refusal", "x"))
calls = st.lists(st.tuples(texts.filter(bool), texts.filter(bool), texts), max_size=3)
messages = st.tuples(st.dictionaries(names, texts), calls)


@st.composite
def pieces_of(draw: st.DrawFn, text: str) -> list[str]:
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [text[start:stop] for start, stop in pairwise([0, *places, len(text)])]


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[dict[str, Any]], bytes]:
    """Whole messages, and the stream that an upstream might make of them."""
    expected: list[dict[str, Any]] = []
    queues: list[list[dict[str, Any]]] = []
    for index, (strings, tool_calls) in enumerate(draw(st.lists(messages, min_size=1, max_size=3))):
        message: dict[str, Any] = {"role": "assistant", **strings}
        deltas: list[dict[str, Any]] = [{"role": "assistant"}]
        deltas += [{key: piece} for key, text in strings.items() for piece in draw(pieces_of(text))]
        for number, (call_id, name, arguments) in enumerate(tool_calls):
            function = {"name": name, "arguments": arguments}
            message.setdefault("tool_calls", []).append({"id": call_id, "type": "function", "function": function})
            opening = {"index": number, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
            fragments = [{"index": number, "function": {"arguments": piece}} for piece in draw(pieces_of(arguments))]
            deltas += [{"tool_calls": [piece]} for piece in [opening, *fragments]]
        choices = [{"index": index, "delta": delta, "finish_reason": None} for delta in deltas]
        queues.append([*choices, {"index": index, "delta": {}, "finish_reason": "stop"}])
        expected.append(message)
    return expected, b"".join(draw(events_of(queues)))


@st.composite
def events_of(draw: st.DrawFn, queues: list[list[dict[str, Any]]]) -> list[bytes]:
    escaped, end = draw(st.booleans()), draw(st.sampled_from(("\n", "\r\n", "\r")))
    separators = draw(st.sampled_from(((",", ":"), (", ", ": "))))
    events: list[bytes] = []
    while any(queues):
        due = draw(
            st.lists(st.sampled_from([queue for queue in queues if queue]), min_size=1, max_size=2, unique_by=id)
        )
        text = json.dumps({"choices": [queue.pop(0) for queue in due]}, ensure_ascii=escaped, separators=separators)
        text = "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in text)
        events.append(f"data: {text}{end}{end}".encode())
    return [*events, f": bye{end}{end}data: [DONE]{end}{end}".encode()]


@settings(deadline=None)
@given(streams(), st.data())
def test_any_completion_cut_into_deltas_chunks_and_bytes_folds_back(
    made: tuple[list[dict[str, Any]], bytes], data: st.DataObject
) -> None:
    expected, stream = made
    places = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    decoder, completion = Decoder(), Completion()
    for start, stop in pairwise([0, *sorted(places), len(stream)]):
        for event in decoder.feed(stream[start:stop]):
            completion.feed(event)
    assert [choice.message for choice in completion.choices] == expected
    assert (completion.is_whole, completion.terminated, completion.malformed) == (True, True, 0)


# What the tee asks of one event


@pytest.mark.parametrize("data", (b"[DONE]", b" [DONE] ", b"\n[DONE]", b"[DONE] and more"))
def test_terminator_is_known_as_the_sdk_knows_it(data: bytes) -> None:
    assert is_terminator(data)
    assert folded(data).terminated


@pytest.mark.parametrize("data", (b"", b"[]", b'{"a":"[DONE]"}', b"DONE", b"[done]"))
def test_anything_else_is_no_terminator(data: bytes) -> None:
    assert not is_terminator(data)


def test_usage_only_chunk_is_the_one_before_the_last() -> None:
    for name in ("default_chat_stream_usage", "flags_chat_stream_usage", "default_chat_stream_n2"):
        data = data_of(name)
        assert [is_usage_only(event) for event in data] == [event is data[-2] for event in data]
    assert not any(map(is_usage_only, data_of("default_chat_stream")))


@pytest.mark.parametrize(
    ("data", "expected"),
    (
        (b'{ "choices" : [ ] , "usage" : { } }', True),
        (b'{"usage":{},"choices":[]}', True),
        (b'{"choices":[],"usage":null}', False),
        (b'{"choices":[],"usage":{},"error":{"code":500}}', False),
        (b'{"choices":[{"x":{"choices":[]}}],"usage":{}}', False),
        (b'{"choices":[],"usage":{}', False),
        (b'{"choices":[{"delta":{"content":"\\"usage\\" \\"choices\\":[]"}}]}', False),
    ),
)
def test_usage_only_is_told_by_its_meaning(*, data: bytes, expected: bool) -> None:
    assert is_usage_only(data) is expected


def test_first_token_is_the_second_chunk_of_a_stream() -> None:
    for name in ("default_chat_stream", "default_chat_stream_logprobs", "flags_chat_stream_tool_named"):
        assert [has_token(event) for event in data_of(name)[:2]] == [False, True]
    assert not has_token(data_of("default_chat_stream")[-1])


@pytest.mark.parametrize("key", ("content", "reasoning", "reasoning_content", "refusal"))
def test_text_of_any_kind_is_a_token(key: str) -> None:
    assert has_token(json.dumps(chunk_of({key: "a"})).encode())
    assert not has_token(json.dumps(chunk_of({key: ""})).encode())


@pytest.mark.parametrize("data", (b"x", b"[]", b"{}", b'{"choices":5}', b'{"choices":[5,{"delta":5}]}', b"[DONE]"))
def test_anything_else_has_no_token(data: bytes) -> None:
    assert not has_token(data)


def test_several_events_are_fed_at_once() -> None:
    data = data_of("default_chat_stream_n2")
    completion = Completion()
    for each in data:
        completion.feed(event_of(each))
    assert completion.to_json_dict() == folded(*data).to_json_dict()
