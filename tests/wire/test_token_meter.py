"""Tokens counted on the wire: each endpoint's usage, streams that were cut, and texts that look like usage."""

import pytest

from proxy.wire.token_meter import TokenMeter

OPENAI = b'{"id":"x","usage":{"prompt_tokens":5,"total_tokens":12,"completion_tokens":7,"prompt_tokens_details":null}}'
ANTHROPIC = (
    b'event: message_start\ndata: {"message":{"usage":{"input_tokens":5,"output_tokens":1}}}\n\n'
    b'data: {"delta":{"text":"a"}}\n\ndata: {"delta":{"text":"b"}}\n\n'
    b'data: {"type":"message_delta","usage":{"output_tokens":7}}\n\ndata: {"type":"message_stop"}\n\n'
)
RESPONSES = b'data: {"response":{"usage":{"input_tokens":5,"output_tokens":7,"total_tokens":12}}}\n\n'


def total(data: bytes, *, is_stream: bool, size: int = 10_000, has_ended: bool = True, status: int = 200) -> int:
    meter = TokenMeter(request_bytes=40)
    meter.begin(status, is_stream=is_stream)
    for start in range(0, len(data), size):
        meter.feed(data[start : start + size])
    if has_ended:
        meter.end()
    return meter.total


@pytest.mark.parametrize("size", (1, 2, 7, 63, 64, 65, 10_000))
@pytest.mark.parametrize(("data", "is_stream"), ((OPENAI, False), (ANTHROPIC, True), (RESPONSES, True)))
def test_usage_is_found_wherever_the_pieces_end(data: bytes, is_stream: bool, size: int) -> None:
    assert total(data, is_stream=is_stream, size=size) == 12


@pytest.mark.parametrize("size", (1, 3, 10_000))
@pytest.mark.parametrize("end", (b"\n\n", b"\r\n\r\n"))
def test_a_stream_without_usage_counts_its_events(size: int, end: bytes) -> None:
    assert total((b'data: {"delta":{"content":"x"}}' + end) * 9, is_stream=True, size=size, has_ended=False) == 10 + 9


def test_a_cut_stream_counts_what_came_after_its_last_count() -> None:
    start = b'data: {"message":{"usage":{"input_tokens":5,"output_tokens":1}}}\n\n'
    assert total(start + b"data: {}\n\n" * 9, is_stream=True, has_ended=False) == 6 + 8


def test_a_text_that_looks_like_usage_is_none() -> None:
    assert total(rb'{"content":"{\"total_tokens\":999999}","usage":{"total_tokens":3}}', is_stream=False) == 3


def test_a_whole_reply_without_usage_is_free_and_a_cut_one_is_not() -> None:
    assert total(b'{"data":[]}', is_stream=False) == 0
    assert total(b'{"choices":[', is_stream=False, has_ended=False) == 10 + 3
    assert total(OPENAI, is_stream=False, status=500) == 0
    assert TokenMeter(request_bytes=40).total == 0
