"""Which usage the caller gets who asked for none, though the proxy did."""

import pytest

from proxy.recording.hidden_usage import HiddenUsage
from proxy.wire.chat_reply import Completion
from proxy.wire.sse import Decoder

DONE = "[DONE]"
TEXT = '{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}'
OTHER = '{"choices":[{"index":1,"delta":{"content":"a"},"finish_reason":null}]}'
ENDED = '{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
OURS = '{"choices":[],"usage":{"total_tokens":3}}'
THEIRS = '{"choices":[],"usage":{"total_tokens":2}}'
TIMED = '{"choices":[],"usage":{"total_tokens":3},"timings":{"ms":1}}'
TIMES = '{"choices":[],"timings":{"ms":1}}'
ERROR = '{"error":{"message":"no"}}'

STREAMS = {
    "after the end": ((TEXT, ENDED, OURS, DONE), (TEXT, ENDED, DONE)),
    "without [DONE]": ((TEXT, ENDED, OURS), (TEXT, ENDED)),
    "no choice says that it has ended": ((TEXT, OURS, DONE), (TEXT, DONE)),
    "one of two choices says it": ((TEXT, OTHER, ENDED, OURS, DONE), (TEXT, OTHER, ENDED, DONE)),
    "no choice has ended and no [DONE] comes": ((TEXT, OURS), (TEXT,)),
    "nothing but usage": ((OURS, DONE), (DONE,)),
    "what else it carries": ((TEXT, ENDED, TIMED, DONE), (TEXT, ENDED, TIMES, DONE)),
    "what else it carries, with no end": ((TEXT, TIMED, DONE), (TEXT, TIMES, DONE)),
    "what else it carries, cut": ((TEXT, TIMED), (TEXT, TIMES)),
    "upstream sends one to everyone first": ((THEIRS, TEXT, ENDED, OURS, DONE), (THEIRS, TEXT, ENDED, DONE)),
    "upstream sends one to everyone between": ((TEXT, THEIRS, TEXT, OURS, DONE), (TEXT, THEIRS, TEXT, DONE)),
    "two after the end": ((TEXT, ENDED, THEIRS, THEIRS, DONE), (TEXT, ENDED, THEIRS, DONE)),
    "two with no end": ((TEXT, THEIRS, OURS, DONE), (TEXT, THEIRS, DONE)),
    "something else after it": ((TEXT, ENDED, OURS, '{"x":1}', DONE), (TEXT, ENDED, '{"x":1}', DONE)),
    "choices null": ((TEXT, '{"choices":null,"usage":{"n":1}}', DONE), (TEXT, DONE)),
    "no choices": ((TEXT, ENDED, '{"usage":{"n":1}}', DONE), (TEXT, ENDED, DONE)),
    "in the last chunk of a choice": ((TEXT, ENDED[:-1] + ',"usage":{"n":1}}', DONE),) * 2,
    "in every chunk": ((TEXT[:-1] + ',"usage":{"n":1}}', ENDED[:-1] + ',"usage":{"n":2}}', DONE),) * 2,
    "upstream does not do as asked": ((TEXT, ENDED, DONE),) * 2,
    "usage null": ((TEXT, ENDED, '{"choices":[],"usage":null}', DONE),) * 2,
    "an error": ((TEXT, ERROR, DONE),) * 2,
    "an error after usage": ((TEXT, THEIRS, ERROR, DONE),) * 2,
}


def event(data: str) -> bytes:
    return b"data: " + data.encode() + b"\n\n"


def passed(sent: list[bytes]) -> list[bytes]:
    """What goes out with each event, and at last with the end of the stream."""
    reply = Completion()
    hidden = HiddenUsage(reply)
    out = []
    for each in Decoder().feed(b"".join(sent)):
        if each.data:
            reply.feed(each)
        out.append(hidden.end() + each.raw if reply.is_end(each) else hidden.pass_on(each))
    return [*out, hidden.end()]


@pytest.mark.parametrize(("sent", "expected"), STREAMS.values(), ids=STREAMS)
def test_only_the_usage_that_was_asked_for_is_kept(sent: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert b"".join(passed([event(each) for each in sent])) == b"".join(event(each) for each in expected)


def test_a_comment_passes_while_usage_waits() -> None:
    comment = b": keep-alive\n\n"
    assert passed([event(TEXT), event(OURS), comment, event(DONE)]) == [event(TEXT), b"", comment, event(DONE), b""]


def test_nothing_but_usage_waits() -> None:
    sent = [event(TEXT), event(THEIRS), event(TEXT), event(ENDED)]
    assert passed(sent) == [event(TEXT), b"", event(THEIRS) + event(TEXT), event(ENDED), b""]
