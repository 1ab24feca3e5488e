"""What is stored of a stream is what the accumulator of OpenAI's Python SDK gives, or more."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from tests.long import examples
from tests.wire.test_chat_reply import STREAMS, chunk_of, data_of, folded

JSON = dict[str, Any]
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
RECORDED = sorted(path.stem for path in STREAMS.glob("*chat*.sse"))


def sdk_snapshot(chunks: list[JSON]) -> Any:
    """What the SDK has accumulated after the last chunk."""
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.construct(**chunk))
    return state.current_completion_snapshot


def seen_by_sdk(chunks: list[JSON]) -> JSON:
    snapshot = sdk_snapshot(chunks)
    return {
        "choices": [
            {
                "role": choice.message.role,
                "content": choice.message.content,
                "refusal": choice.message.refusal,
                "tool_calls": [
                    {"id": call.id, "function": {"name": call.function.name, "arguments": call.function.arguments}}
                    for call in choice.message.tool_calls or []
                ],
                "finish_reason": choice.finish_reason,
                "logprobs": choice.logprobs and choice.logprobs.to_dict(),
            }
            for choice in snapshot.choices
        ],
        "usage": snapshot.usage and snapshot.usage.to_dict(),
    }


def seen_by_us(chunks: list[JSON]) -> JSON:
    completion = folded(*chunks)
    assert completion.malformed == 0
    choices = [
        {**choice.message, "finish_reason": choice.finish_reason, "logprobs": choice.extra.get("logprobs")}
        for choice in completion.choices
    ]
    return {"choices": choices, "usage": completion.usage}


def assert_holds(ours: object, theirs: object, place: str = "reply") -> None:
    """All that the SDK gives is in what we store; a key where it gives nothing is free."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict), place
        for key, value in theirs.items():
            if value is not None and value != []:
                assert_holds(ours.get(key), value, f"{place}.{key}")
    elif isinstance(theirs, list):
        assert isinstance(ours, list), place
        assert len(ours) == len(theirs), place
        for number, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            assert_holds(our, their, f"{place}[{number}]")
    else:
        assert ours == theirs, place


def assert_same(chunks: list[JSON]) -> None:
    assert_holds(seen_by_us(chunks), seen_by_sdk(chunks))


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_stream(name: str) -> None:
    chunks = [json.loads(data) for data in data_of(name) if data != b"[DONE]"]
    assert_same([chunk for chunk in chunks if "choices" in chunk])


def call(index: int, *, name: str | None = None, arguments: str | None = None, **keys: Any) -> JSON:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"index": index, "function": function, **keys}


def begun(index: int, name: str = "look", arguments: str | None = "") -> JSON:
    return call(index, name=name, arguments=arguments, id=f"call_{index}", type="function")


def token(text: str) -> JSON:
    return {"token": text, "logprob": -0.5, "bytes": list(text.encode()), "top_logprobs": []}


ROLE = chunk_of({"role": "assistant", "content": ""})
ODD: dict[str, list[JSON]] = {
    "no content at all": [chunk_of({"role": "assistant"}), chunk_of({}, finish_reason="stop")],
    "content null, then text, then null": [ROLE, *(chunk_of({"content": text}) for text in (None, "a", None, "b"))],
    "text and refusal by turns": [ROLE, *(chunk_of(delta) for delta in ({"refusal": "no"}, {"content": "a"}) * 2)],
    "equal pieces": [ROLE, *(chunk_of({"content": "ha"}) for _ in range(4))],
    "two pieces of one call in the first delta": [
        chunk_of({"role": "assistant", "tool_calls": [begun(0), call(0, arguments='{"a":1}')]})
    ],
    "two pieces of one call in a later delta": [
        ROLE,
        chunk_of({"tool_calls": [begun(0), call(0, arguments="{"), call(0, arguments="}")]}),
    ],
    "pieces of two calls by turns": [
        ROLE,
        chunk_of({"tool_calls": [begun(0, "a"), begun(1, "b")]}),
        *(chunk_of({"tool_calls": [call(index, arguments="1")]}) for index in (1, 0, 1, 1, 0)),
    ],
    "a name in pieces": [ROLE, chunk_of({"tool_calls": [begun(0)]}), chunk_of({"tool_calls": [call(0, name="_up")]})],
    "a call without arguments": [ROLE, chunk_of({"tool_calls": [begun(0, arguments=None)]})],
    "an id that comes late": [
        ROLE,
        chunk_of({"tool_calls": [call(0, name="look", arguments="", type="function")]}),
        chunk_of({"tool_calls": [call(0, arguments="{}", id="call_late")]}),
    ],
    "two calls without ids": [
        ROLE,
        chunk_of({"tool_calls": [call(0, name="look", arguments="{}", type="function")]}),
        chunk_of({"tool_calls": [call(1, name="look", arguments="{}", type="function")]}),
    ],
    "an empty list of calls": [ROLE, chunk_of({"tool_calls": []}), chunk_of({"content": "a"})],
    "a finish reason before more text": [ROLE, chunk_of({}, finish_reason="length"), chunk_of({"content": "a"})],
    "two finish reasons": [ROLE, chunk_of({}, finish_reason="stop"), chunk_of({}, finish_reason="tool_calls")],
    "a choice that begins late": [
        ROLE,
        chunk_of({"content": "a"}),
        {"choices": [{"index": 1, "delta": {"role": "assistant", "content": "b"}}]},
        {"choices": [{"index": 0, "delta": {"content": "c"}}, {"index": 1, "delta": {"content": "d"}}]},
    ],
    "logprobs that begin late": [
        chunk_of({"role": "assistant"}, logprobs=None),
        *(chunk_of({"content": text}, logprobs={"content": [token(text)], "refusal": None}) for text in "aab"),
        chunk_of({"refusal": "no"}, logprobs={"content": None, "refusal": [token("no")]}),
    ],
    "equal logprobs": [
        ROLE,
        *(chunk_of({"content": "a"}, logprobs={"content": [token("a")]}) for _ in range(3)),
    ],
    "usage in every chunk": [
        ROLE | {"usage": USAGE | {"completion_tokens": 0}},
        chunk_of({"content": "a"}) | {"usage": USAGE},
    ],
    "usage after the end": [ROLE, chunk_of({}, finish_reason="stop"), {"choices": [], "usage": USAGE}],
    "a first chunk without choices": [{"id": "c", "choices": []}, ROLE, chunk_of({"content": "a"})],
}


@pytest.mark.parametrize("chunks", ODD.values(), ids=ODD)
def test_odd_stream(chunks: list[JSON]) -> None:
    assert_same(chunks)


# Random replies. Left out is what the SDK folds wrongly: a role, id or type said twice, and calls out of their order.

_texts = st.text(alphabet='{}[]":\\, a1你😀\n', max_size=6)
_tokens = st.lists(_texts.map(token), max_size=2)


@st.composite
def _deltas(draw: st.DrawFn) -> list[JSON]:
    """One choice's deltas with what stands beside them."""
    parts: list[JSON] = []
    calls = 0
    for kind in draw(st.lists(st.sampled_from(("content", "refusal", "null", "begin", "go on", "name")), max_size=8)):
        text = draw(_texts)
        delta: JSON = {kind: text} if kind in ("content", "refusal") else {"content": None}
        if kind == "begin":
            more = draw(st.lists(_texts, max_size=2))
            pieces = [begun(calls, arguments=text), *(call(calls, arguments=each) for each in more)]
            delta, calls = {"tool_calls": pieces}, calls + 1
        elif kind in ("go on", "name") and calls:
            index = draw(st.integers(0, calls - 1))
            delta = {"tool_calls": [call(index, name="_on") if kind == "name" else call(index, arguments=text)]}
        beside = draw(st.sampled_from(("nothing", "null", "tokens")))
        logprobs = {"content": draw(_tokens), "refusal": None} if beside == "tokens" else None
        parts.append({"delta": delta} | ({} if beside == "nothing" else {"logprobs": logprobs}))
    return [*parts, {"delta": {}, "finish_reason": draw(st.sampled_from(("stop", "length", None)))}]


@st.composite
def _streams(draw: st.DrawFn) -> list[JSON]:
    waiting = draw(st.lists(_deltas(), min_size=1, max_size=3))
    chunks = [
        {"choices": [{"index": index, "delta": {"role": "assistant", "content": ""}}]} for index in range(len(waiting))
    ]
    while any(waiting):
        index = draw(st.sampled_from([index for index, parts in enumerate(waiting) if parts]))
        chunk: JSON = {"choices": [{"index": index, **waiting[index].pop(0)}]}
        chunks.append(chunk | ({"usage": USAGE} if draw(st.booleans()) else {}))
    return [*chunks, {"choices": [], "usage": USAGE}]


@settings(max_examples=examples(150), deadline=None)
@given(_streams())
def test_random_stream(chunks: list[JSON]) -> None:
    assert_same(chunks)
