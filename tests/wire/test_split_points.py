"""Replies of every dialect, recorded and made of everything a model can say, split at each place of their bytes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.recording.one_exchange import Recording
from proxy.recording.recorder import Recorder
from proxy.recording.tee import Tee
from proxy.storage.database import Database
from proxy.storage.exchange import Exchange, SessionRef
from proxy.wire.anthropic_blocks import to_messages
from proxy.wire.anthropic_reply import MessageReply
from proxy.wire.dialect import JSON, wire_of
from proxy.wire.dialect_reply import DialectReply
from proxy.wire.endpoint import Reply
from proxy.wire.responses_items import items_of
from proxy.wire.responses_reply import ResponseReply
from tests.dialect_upstream import chat_events, chat_of, events_text, message_events, response_events
from tests.fake_upstream import dumps
from tests.long import some_of
from tests.serving import settings_for
from tests.wire.corpus import BLOCKS, OUTPUT
from tests.wire.test_dialect_replies import of_events

STREAMS = Path(__file__).parent.parent / "streams"
PATHS = {"responses": "/v1/responses", "messages": "/v1/messages", "completion": "/v1/completions"}
RESPONSE: JSON = {"id": "resp_1", "object": "response", "model": "m", "status": "completed", "output": OUTPUT}
RESPONSE |= {"usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}}
MESSAGE: JSON = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": BLOCKS}
MESSAGE |= {"stop_reason": "tool_use", "stop_sequence": None, "usage": {"input_tokens": 3, "output_tokens": 4}}


def completion_text() -> bytes:
    """Two choices by turns, with what each token weighed."""
    chunks = []
    for number, index in enumerate((0, 1, 1, 0, 0, 1)):
        logprobs = {"tokens": [str(number)], "token_logprobs": [-0.5], "top_logprobs": [{"a": -1}], "text_offset": [1]}
        choice = {"index": index, "text": f"[DONE] {number}\U0001f600", "logprobs": logprobs, "finish_reason": None}
        chunks.append({"id": "cmpl-1", "model": "m", "choices": [choice]})
    ends: list[JSON] = [{"index": index, "text": "", "finish_reason": "length"} for index in (1, 0)]
    chunks += [{"id": "cmpl-1", "model": "m", "choices": [end]} for end in ends]
    return b"".join(b"data: " + dumps(each) + b"\n\n" for each in chunks) + b"data: [DONE]\n\n"


def chat_text() -> bytes:
    request = {"messages": [{"role": "user", "content": "call the tool"}], "stream_options": {"include_usage": True}}
    return b"".join(chat_events(chat_of(1, request), request))


def replies() -> Iterator[tuple[str, str, bytes]]:
    """Name, endpoint and bytes of each stream."""
    yield "every item", "/v1/responses", b"".join(events_text(response_events(RESPONSE)))
    yield "every block", "/v1/messages", b"".join(events_text(message_events(MESSAGE)))
    yield (
        "blocks without names",
        "/v1/messages",
        b"".join(b"data: " + dumps(event) + b"\r\n\r\n" for event in message_events(MESSAGE)),
    )
    yield "two choices", "/v1/completions", completion_text()
    yield "a tool call", "/v1/chat/completions", chat_text()
    for path in sorted((STREAMS / "dialects").glob("*.sse")):
        yield path.stem, PATHS[path.stem.split("_")[1]], path.read_bytes()
    for path in sorted(STREAMS.glob("*.sse")):
        yield path.stem, "/v1/chat/completions", path.read_bytes()


REPLIES = {name: (path, stream) for name, path, stream in replies()}


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    settings = settings_for(tmp_path)
    return Recorder(Database(settings.database_path), settings)


def folded(recorder: Recorder, path: str, pieces: list[bytes]) -> tuple[bytes, Any]:
    """What the caller gets of a stream that comes in these pieces, and what is recorded of it."""
    exchange = Exchange(user_id="u", session=SessionRef("s", "new"), endpoint=path, request_id="r", request={})
    recording = Recording(recorder, exchange, size=0)
    tee = Tee(recording, hides_usage=False)
    sent = b"".join([tee.feed(piece) for piece in pieces])
    tee.finish()
    recorder._live[recording.live.turn].discard(recording.live)
    return sent + tee.rest(), told(recording.reply)


def told(reply: Reply) -> Any:
    choices = [
        (each.index, each.message, wire_of(each.message), each.finish_reason, each.extra) for each in reply.choices
    ]
    ended = (reply.is_whole, reply.error, reply.usage, reply.tokens, reply.id, reply.model, reply.envelope)
    return json.dumps([choices, ended, reply.to_json_dict()], sort_keys=True)


def test_a_stream_is_the_same_split_at_each_place(recorder: Recorder) -> None:
    for name, (path, stream) in REPLIES.items():
        whole = folded(recorder, path, [stream])
        assert whole[0] == stream, name
        for place in some_of(range(1, len(stream)), every=1999):
            assert folded(recorder, path, [stream[:place], stream[place:]]) == whole, (name, place)


def test_a_stream_is_the_same_byte_by_byte(recorder: Recorder) -> None:
    for name in some_of(REPLIES, every=3):
        path, stream = REPLIES[name]
        pieces = [bytes([byte]) for byte in stream]
        assert folded(recorder, path, pieces) == folded(recorder, path, [stream]), name


def test_a_stream_that_ends_at_each_place_goes_out_whole_and_raises_nothing(recorder: Recorder) -> None:
    for name, (path, stream) in REPLIES.items():
        for place in some_of(range(1, len(stream)), every=1999):
            assert folded(recorder, path, [stream[:place]])[0] == stream[:place], (name, place)


# What a model can say is folded as it is sent whole


def said(reply: DialectReply) -> Any:
    """The reply's message as it is stored, in its own dialect."""
    [choice] = reply.choices
    if isinstance(reply, ResponseReply):
        return items_of(dict(choice.message), wire_of(choice.message))
    return to_messages([(dict(choice.message), wire_of(choice.message))])[0]["content"]


def without_ends(events: list[JSON], *ends: str) -> list[JSON]:
    return [event for event in events if not event["type"].endswith(ends)]


@pytest.mark.parametrize(
    "left_out",
    (
        (),
        ("output_text.done", "part.done"),
        (".done",),
        (".done", ".completed"),
        ("part.added", ".delta", ".completed"),
    ),
)
def test_items_are_those_sent_whole_whatever_events_are_left_out(left_out: tuple[str, ...]) -> None:
    reply = of_events(ResponseReply(), *without_ends(response_events(RESPONSE), *left_out))
    expected = [dict(item) for item in OUTPUT]
    if ".done" in left_out and ".completed" in left_out:  # only the last event of an item says that it is complete
        expected = [{**item, "status": "in_progress"} if "status" in item else item for item in expected]
    assert said(reply) == expected


def test_texts_that_come_only_as_a_whole_are_kept_where_the_reply_is_cut() -> None:
    left_out = (".delta", "part.done", "item.done", ".completed")
    reply = of_events(ResponseReply(), *without_ends(response_events(RESPONSE), *left_out))
    texts = json.dumps(said(reply), ensure_ascii=False)
    for text in ("thinking of", "thinking hard", "It is response.completed.", "I will not", "1 + 1", "rm -f", "日本"):
        assert text in texts


def test_blocks_are_those_sent_whole() -> None:
    assert said(of_events(MessageReply(), *message_events(MESSAGE))) == BLOCKS
    cut = without_ends(message_events(MESSAGE), "_stop", "message_delta")
    assert said(of_events(MessageReply(), *cut)) == BLOCKS


@pytest.mark.parametrize("is_cut", (False, True))
def test_items_and_blocks_that_all_have_one_index_are_told_apart(is_cut: bool) -> None:
    ends = (".completed", ".done") if is_cut else (".completed",)
    numbered = [{**event, "output_index": 0} for event in without_ends(response_events(RESPONSE), *ends)]
    unnumbered = [{key: each for key, each in event.items() if key != "output_index"} for event in numbered]
    for events in (numbered, unnumbered):
        items = said(of_events(ResponseReply(), *events))
        assert [each["id"] for each in items] == [each["id"] for each in OUTPUT]
        assert [each.get("arguments") for each in items] == [each.get("arguments") for each in OUTPUT]
    events = [{**event, "index": 0} if "index" in event else event for event in message_events(MESSAGE)]
    assert said(of_events(MessageReply(), *events)) == BLOCKS


def test_items_that_come_in_another_order_stand_where_their_index_says() -> None:
    events = without_ends(response_events(RESPONSE), ".created", ".completed")
    turned = sorted(events, key=lambda event: -event["output_index"])
    assert said(of_events(ResponseReply(), *turned)) == OUTPUT
    by_turns = sorted(events, key=lambda event: event["sequence_number"] % 7)
    deltas = [event for event in by_turns if event["type"].endswith(".added")]
    assert [item["id"] for item in said(of_events(ResponseReply(), *deltas))] == [item["id"] for item in OUTPUT]


def test_deltas_without_a_start_are_kept() -> None:
    starts = ("_start", "_stop")
    events = [event for event in message_events(MESSAGE) if not event["type"].endswith(starts)]
    kinds = [block["type"] for block in said(of_events(MessageReply(), *events))]
    assert kinds == ["thinking", "text", "text", "tool_use", "tool_use", "tool_use", "text", "tool_use"]
    deltas = without_ends(response_events(RESPONSE), ".added", ".done", ".completed")
    texts = json.dumps(said(of_events(ResponseReply(), *deltas)), ensure_ascii=False)
    assert all(text in texts for text in ("thinking hard", "It is response.completed.", "日本"))
