"""Event streams cut at every byte."""

import random
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire.sse import Decoder, Event

STREAMS = sorted((Path(__file__).parent.parent / "streams").glob("*.sse"))


def decoded(*pieces: bytes) -> tuple[list[Event], bytes]:
    decoder = Decoder()
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return events, decoder.rest


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    return [stream[start:stop] for start, stop in pairwise([0, *sorted(places), len(stream)])]


def data_of(*pieces: bytes) -> list[bytes]:
    """What a browser would dispatch: events without data are not."""
    return [event.data for event in decoded(*pieces)[0] if event.data]


def assert_same_at_every_cut(stream: bytes) -> None:
    expected = decoded(stream)
    assert b"".join(event.raw for event in expected[0]) + expected[1] == stream
    for place in range(len(stream) + 1):
        assert decoded(stream[:place], stream[place:]) == expected
    assert decoded(*(stream[place : place + 1] for place in range(len(stream)))) == expected


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_recorded_stream_decodes_the_same_at_every_split_point(path: Path) -> None:
    stream = path.read_bytes()
    events, rest = decoded(stream)
    assert rest == b""
    assert [event.data for event in events] == [line[6:] for line in stream.split(b"\n") if line]
    assert_same_at_every_cut(stream)


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_recorded_stream_decodes_the_same_in_random_pieces(path: Path) -> None:
    stream, dice = path.read_bytes(), random.Random(7)
    expected = decoded(stream)
    for _ in range(50):
        places = dice.choices(range(len(stream)), k=dice.randint(1, 40))
        assert decoded(*cut(stream, places)) == expected


@pytest.mark.parametrize("end", (b"\n", b"\r\n", b"\r"), ids=("lf", "crlf", "cr"))
@pytest.mark.parametrize("path", STREAMS[:3], ids=lambda path: path.stem)
def test_recorded_stream_means_the_same_with_every_line_end(path: Path, end: bytes) -> None:
    stream = path.read_bytes()
    assert data_of(stream.replace(b"\n", end)) == data_of(stream)
    assert_same_at_every_cut(stream[:700].replace(b"\n", end))


def test_blank_lines_of_every_kind_decode_the_same_at_every_split_point() -> None:
    for lines in product((b"\n", b"\r", b"\r\n", b"data: x"), repeat=4):
        assert_same_at_every_cut(b"".join(lines))


@pytest.mark.parametrize("end", (b"\n", b"\r", b"\r\n"), ids=("lf", "cr", "crlf"))
def test_each_of_many_blank_lines_is_an_event(end: bytes) -> None:
    assert decoded(end * 100 + b"x") == ([Event(end, b"")] * 100, b"x")


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            (b"\n", b"\r", b"\r\n", b"data", b":", b" ", b"data: x", b"\xef\xbb\xbf", b"id: 1", b"\xff\x00")
        )
    ).map(b"".join)
)
def test_any_bytes_decode_the_same_at_every_split_point(stream: bytes) -> None:
    assert_same_at_every_cut(stream)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from((b"\n", b"\r", b"data: x", b"data:y", b": c", b"data", b"id: 1")), max_size=12).map(
        b"".join
    )
)
def test_data_is_what_the_specification_dispatches(stream: bytes) -> None:
    # The comment line settles whether a CR at the end was half a CRLF.
    assert data_of(stream + b":\n") == plainly_dispatched(stream + b":\n")


def plainly_dispatched(stream: bytes) -> list[bytes]:
    """The specification's algorithm, line by line, on the whole input."""
    dispatched: list[bytes] = []
    values: list[bytes] = []
    for line in stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]:
        if not line and values:
            dispatched.append(b"\n".join(values))
            values = []
        elif line == b"data" or line.startswith(b"data:"):
            values.append(line[5:].removeprefix(b" "))
    return [data for data in dispatched if data]


def test_one_event_in_one_chunk_is_not_copied() -> None:
    chunk = b'data: {"a":1}\n\n'
    [event] = Decoder().feed(chunk)
    assert event.raw is chunk
    assert event.data == b'{"a":1}'


def test_several_events_and_the_start_of_one_in_one_chunk() -> None:
    assert decoded(b"data: a\n\ndata: b\n\ndata: c") == (
        [Event(b"data: a\n\n", b"a"), Event(b"data: b\n\n", b"b")],
        b"data: c",
    )


def test_event_continues_after_the_rest_of_a_chunk() -> None:
    decoder = Decoder()
    decoder.feed(b"data: a\n\ndata: b")
    assert decoder.rest == b"data: b"
    assert decoder.feed(b"c\n\nda") == [Event(b"data: bc\n\n", b"bc")]
    assert decoder.feed(b"ta: d\n") == []
    assert decoder.feed(b"\n") == [Event(b"data: d\n\n", b"d")]
    assert decoder.rest == b""


def test_crlf_across_chunks() -> None:
    assert decoded(b"data: a\r", b"\n\r", b"\ndata: b\r\n\r\n") == (
        [Event(b"data: a\r\n\r\n", b"a"), Event(b"data: b\r\n\r\n", b"b")],
        b"",
    )


def test_bare_cr_event_is_not_held_back_for_the_next_byte() -> None:
    assert decoded(b"data: a\r\r") == ([Event(b"data: a\r\r", b"a")], b"")


def test_lf_after_a_bare_cr_event_is_a_blank_event() -> None:
    assert decoded(b"data: a\r\r", b"\ndata: b\n\n") == decoded(b"data: a\r\r\ndata: b\n\n")
    assert data_of(b"data: a\r\r\ndata: b\n\n") == [b"a", b"b"]


def test_data_lines_are_joined_by_lf() -> None:
    assert data_of(b"data: a\ndata:b\r\ndata\ndata:  c\n\n") == [b"a\nb\n\n c"]


def test_data_without_a_space() -> None:
    assert data_of(b"data:a\n\n") == [b"a"]


def test_comments_are_events_without_data() -> None:
    assert decoded(b": keep-alive\n\ndata: a\n\n")[0] == [Event(b": keep-alive\n\n", b""), Event(b"data: a\n\n", b"a")]


def test_comment_within_an_event_is_left_out_of_its_data() -> None:
    assert data_of(b": x\ndata: a\n: y\ndata: b\n\n") == [b"a\nb"]


def test_stray_blank_lines_are_events_without_data() -> None:
    assert decoded(b"\n\ndata: a\n\n\n")[0] == [
        Event(b"\n", b""),
        Event(b"\n", b""),
        Event(b"data: a\n\n", b"a"),
        Event(b"\n", b""),
    ]


def test_other_fields_are_ignored() -> None:
    assert data_of(b"event: e\nid: 1\nretry: 2\ndatabase: x\nData: y\n data: z\ndata: a\n\n") == [b"a"]


def test_byte_order_mark_is_skipped_at_the_start_only() -> None:
    bom = b"\xef\xbb\xbf"
    stream = bom + b"data: a\n\n" + bom + b"data: b\n\ndata: c\n\n"
    assert data_of(stream) == [b"a", b"c"]
    assert_same_at_every_cut(stream)
    assert_same_at_every_cut(bom + b"\r\ndata: a\r\n\r\n")


def test_line_separators_of_unicode_do_not_end_a_line() -> None:
    text = "a\u2028b\u2029c\x0bd\x0ce\x85f\x1cg".encode()
    assert data_of(b"data: " + text + b"\n\n") == [text]


def test_invalid_utf8_is_left_as_it_is() -> None:
    assert decoded(b"data: \xff\xfe\x80\n\n") == ([Event(b"data: \xff\xfe\x80\n\n", b"\xff\xfe\x80")], b"")


def test_large_event_in_small_pieces() -> None:
    stream = b"data: " + b"x" * 2_000_000 + b"\n\n"
    events, rest = decoded(*(stream[place : place + 1024] for place in range(0, len(stream), 1024)))
    assert [len(event.data) for event in events] == [2_000_000]
    assert rest == b""


def test_unfinished_event_is_not_an_event() -> None:
    assert decoded(b"data: a\n\ndata: b\n") == ([Event(b"data: a\n\n", b"a")], b"data: b\n")


def test_empty_chunk_changes_nothing() -> None:
    assert decoded(b"", b"data: a", b"", b"\n\n", b"") == ([Event(b"data: a\n\n", b"a")], b"")
