"""A stream through the tee: what goes out, and what is recorded, however the bytes come."""

import random
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest

from proxy.recording.one_exchange import Recording
from proxy.recording.recorder import Recorder
from proxy.recording.tee import Tee
from proxy.storage.database import Database
from proxy.storage.exchange import Exchange, SessionRef
from proxy.wire.chat_reply import Completion
from proxy.wire.sse import Decoder
from tests.serving import settings_for

STREAMS = sorted((Path(__file__).parent.parent / "streams").glob("*.sse"))
HEAD = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":'
TAIL = b'},"finish_reason":null}]}\n\n'
# After an ordinary event, each of these looks like another one to a hasty reader.
LOOKALIKES = {
    "another text": b'"b"',
    "an escaped quote": b'"b\\"},\\n\\n\\ud83d\\ude00"',
    "no text": b"",
    "half a text": b'"',
    "null": b"null",
    "blank space before": b' "b"',
    "blank space after": b'"b" ',
    "the end of an event before": b'\n\n"b"',
    "the end of an event after": b'"b"\n\n',
    "a line end before": b'\n"b"',
    "a bare CR": b'\r"b"',
    "a bare CR inside": b'"b\rc"',
    "another event after bare CRs": b'"b"' + TAIL[:-2] + b"\r\r" + HEAD + b'"c"',
    "half an emoji": b'"\\ud83d"',
    "a control character": b'"\1"',
    "another key": b'"b","x":"c"',
    "the begin of a list": b'"b",["c"',
    "the end of a list": b'"b"],"c"',
    "a line end inside": b'"b\nc"',
    "another member": b'"b","refusal":"c"',
    "a broken string": b'"b"c"',
    "bytes that are not UTF-8": b'"\xff"',
    "another event inside": b'"b"' + TAIL + HEAD + b'"c"',
    "a comment inside": b'"b"' + TAIL + b": c\n\n" + HEAD + b'"c"',
    "an end inside": b'"b"' + TAIL + b"data: [DONE]\n\n" + HEAD + b'"c"',
}


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return new_recording(tmp_path)


def new_recording(folder: Path, **changes: Any) -> Recording:
    settings = settings_for(folder, **changes)
    exchange = Exchange(
        user_id="u",
        session=SessionRef("s", "new"),
        endpoint="/v1/chat/completions",
        request_id="r",
        request={"messages": []},
    )
    return Recording(Recorder(Database(settings.database_path), settings), exchange, size=0)


def expected(stream: bytes) -> Completion:
    completion = Completion()
    for event in Decoder().feed(stream):
        if event.data and not completion.terminated:
            completion.feed(event)
    return completion


def assert_recorded(recording: Recording, stream: bytes) -> None:
    reply = expected(stream)
    assert isinstance(recording.reply, Completion)
    assert recording.reply.to_json_dict() == reply.to_json_dict()
    assert (recording.reply.malformed, recording.reply.terminated) == (reply.malformed, reply.terminated)


def write_down(recording: Recording) -> bytes:
    """What the recorder writes down of a stream at one moment."""
    data = recording.live.unwritten()
    recording.live.has_written(data)
    return data


def boundaries(stream: bytes) -> list[int]:
    return list(accumulate(len(event.raw) for event in Decoder().feed(stream)))


def pieces_of(stream: bytes, cuts: set[int]) -> list[bytes]:
    return [stream[start:end] for start, end in pairwise(sorted({0, *cuts, len(stream)}))]


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
@pytest.mark.parametrize("durability", ("strict", "relaxed"))
def test_recorded_stream_passes_unchanged_in_any_pieces(tmp_path: Path, path: Path, durability: str) -> None:
    stream, dice = path.read_bytes(), random.Random(11)
    ends = boundaries(stream)
    for extra in (set[int](), *({dice.randrange(1, len(stream)) for _ in range(3)} for _ in range(20))):
        recording = new_recording(tmp_path, durability=durability)
        tee = Tee(recording, hides_usage=False)
        pieces = pieces_of(stream, {*ends, *extra} - set(dice.sample(ends, len(ends) // 4) if extra else ()))
        out, written = [], []
        for piece in pieces:
            out.append(tee.feed(piece))
            if dice.random() < 0.1:
                written.append(write_down(recording))
        assert b"".join(out) + tee.rest() == stream
        assert_recorded(recording, stream)
        assert_recorded(recording, b"".join(written) + write_down(recording))


@pytest.mark.parametrize("middle", LOOKALIKES.values(), ids=LOOKALIKES)
@pytest.mark.parametrize("hides_usage", (False, True))
@pytest.mark.parametrize("written_after", range(8))
def test_event_like_the_last_one_is_that_only_where_it_is(
    recording: Recording, middle: bytes, hides_usage: bool, written_after: int
) -> None:
    first, odd = HEAD + b'"a"' + TAIL, HEAD + middle + TAIL
    tee = Tee(recording, hides_usage=hides_usage)
    out, written = [], []
    for place, piece in enumerate((first, first, odd, first, odd[:-1], odd[-1:], first, first)):
        out.append(tee.feed(piece))
        if place == written_after:
            written.append(write_down(recording))
    stream = first + first + odd + first + odd + first + first
    assert b"".join(out) + tee.rest() == stream
    assert_recorded(recording, stream)
    assert_recorded(recording, b"".join(written) + write_down(recording))


def test_texts_that_are_a_list_only_together_are_none(recording: Recording) -> None:
    tee = Tee(recording, hides_usage=False)
    texts = (b'"a"', b'"a"', b'"b",["c"', b'"d"', b'"e"],"f"', b'"a"')
    stream = b"".join(map(tee.feed, (HEAD + text + TAIL for text in texts)))
    assert_recorded(recording, write_down(recording))
    assert_recorded(recording, stream)


def test_ordinary_events_are_written_down_as_one(recording: Recording) -> None:
    tee = Tee(recording, hides_usage=False)
    texts = [HEAD + f'"{number} 😀 \\n"'.encode() + TAIL for number in range(100)]
    assert b"".join(map(tee.feed, texts)) == b"".join(texts)
    written = write_down(recording)
    assert len(Decoder().feed(written)) == 2  # the first, which the others are like, and all the others
    assert_recorded(recording, written)
    assert write_down(recording) == b""


def test_event_of_several_lines_is_not_taken_for_one(recording: Recording) -> None:
    several = b'data: {"choices":[{"index":0,\ndata: "delta":{"content":"a"}}]}\n\n'
    one = several.replace(b"\ndata: ", b"\n")
    tee = Tee(recording, hides_usage=False)
    assert b"".join(map(tee.feed, (several, several, one, several))) == several * 2 + one + several
    assert_recorded(recording, several * 2 + one + several)


def test_rest_of_an_event_is_not_taken_for_one(recording: Recording) -> None:
    event = HEAD + b'"a"' + TAIL
    tee = Tee(recording, hides_usage=False)
    stream = event + event + b"x" + event + event
    assert b"".join(map(tee.feed, (event, event, b"x", event, event))) == stream
    assert_recorded(recording, stream)


def test_first_token_is_noticed_in_a_stream_of_likes(recording: Recording) -> None:
    empty, event = HEAD + b'""' + TAIL, HEAD + b'"a"' + TAIL
    tee = Tee(recording, hides_usage=False)
    seen = []
    for piece in (empty, empty, event, event):
        tee.feed(piece)
        seen.append(recording.has_token)
    assert seen == [False, False, True, True]
    assert_recorded(recording, empty * 2 + event * 2)


@pytest.mark.parametrize(
    "usage",
    (
        b'{"id":"c","choices":[],"usage":{"total_tokens":3}}',
        b'{"id":"c","choices" : [ ],"usage":{"total_tokens":3}}',
        b'{"service_tier":[{"choices":[{"index":0}]}],"choices":[],"usage":{"total_tokens":3}}',
    ),
)
def test_usage_that_nobody_asked_for_is_kept_back_from_among_ordinary_events(
    recording: Recording, usage: bytes
) -> None:
    event, hidden = HEAD + b'"a"' + TAIL, b"data: " + usage + b"\n\n"
    end = event.replace(b"null", b'"stop"')
    tee = Tee(recording, hides_usage=True)
    out = b"".join(map(tee.feed, (event, event, hidden, event, end, hidden, event, hidden)))
    # What comes before the end of every choice, or a second time, upstream sends to everyone.
    assert out == event * 2 + hidden + event + end + event + hidden
    assert_recorded(recording, event * 2 + hidden + event + end + hidden + event + hidden)
    assert recording.reply.usage == {"total_tokens": 3}


def test_what_waits_is_looked_into_where_the_events_are_of_two_kinds_by_turns(recording: Recording) -> None:
    one, other = HEAD + b'"a"' + TAIL, HEAD.replace(b'"index":0', b'"index":1') + b'"b"' + TAIL
    tee = Tee(recording, hides_usage=False)
    for number in range(40):
        assert tee.feed(one) + tee.feed(other) == one + other
        if number % 9 == 0:
            write_down(recording)
    assert not recording.reply.is_ordinary
    assert recording.reply.batched == []
    assert_recorded(recording, (one + other) * 40)
