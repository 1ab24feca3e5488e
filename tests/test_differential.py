"""Random requests straight to a model and through the proxy in its default settings: the replies are the same bytes."""

import json
import os
import random
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.proxy_process import ProxyProcess, run_proxy
from tests.raw_http import request
from tests.scripted_upstream import Received, ScriptedUpstream, Step, respond
from tests.test_transparency import (
    CHAT,
    DONE,
    EMBEDDINGS,
    EVENTS,
    ODD_BODIES,
    ODD_HEADERS,
    PLAIN_EVENTS,
    USAGE_EVENT,
    assert_same_response,
    play_both,
    stream_of,
)

# By hand, more of them: STELLARCHAT_TEST_REQUESTS=500 python -m pytest tests/test_differential.py
REQUESTS = int(os.environ.get("STELLARCHAT_TEST_REQUESTS", "60"))
SEED = int(os.environ.get("STELLARCHAT_TEST_SEED", "17"))

STATUSES = {
    b"400 Bad Request": b"",
    b"401 Unauthorized": b"WWW-Authenticate: Bearer\r\n",
    b"404 Not Found": b"",
    b"422 Unprocessable Entity": b"",
    b"429 Too Many Requests": b"Retry-After: 1\r\n",
    b"500 Internal Server Error": b"",
    b"503 Service Unavailable": b"",
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
USAGES = (
    USAGE_EVENT,
    USAGE_EVENT.replace(b'"choices":[],', b'"choices":null,'),
    USAGE_EVENT.replace(b'"choices":[],', b""),
    USAGE_EVENT.replace(b'"id":"c",', b'"id":"c","object":"chat.completion.chunk","service_tier":null,'),
)
ASKS_FOR_USAGE = re.compile(rb'"include_usage"\s*:\s*true')
WORDS = ("Hello", "你好", "👩‍👩‍👧", "a\nb", '"quoted"', "\\", "")


class Asked(NamedTuple):
    kind: str
    data: bytes
    answer: tuple[bytes, ...]
    """The events of a stream, or the one piece of a reply."""
    is_stream: bool = False


class Model:
    """Answers as it is told, and with its usage where a request for a stream asks for that."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    def __call__(self, received: Received) -> Iterator[bytes | Step]:
        events = self._asked.answer
        if not self._asked.is_stream:
            yield from events
            return
        if events[-1:] == (DONE,) and ASKS_FOR_USAGE.search(received.body):
            events = (*events[:-1], USAGES[len(received.body) % len(USAGES)], DONE)
        yield from stream_of(events)(received)


def whole(dice: random.Random, message: dict[str, Any]) -> bytes:
    choices = [{"index": index, "message": message, "finish_reason": "stop"} for index in range(dice.randint(1, 2))]
    usage = dice.choice((None, {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}))
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}
    return respond(json.dumps(body, ensure_ascii=dice.random() < 0.5, indent=dice.choice((None, 1))).encode())


def chunk(delta: dict[str, Any], *, index: int = 0, finish_reason: str | None = None) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def text_stream(dice: random.Random) -> tuple[bytes, ...]:
    count = dice.randint(1, 2)
    texts = [chunk({"content": dice.choice(WORDS)}, index=dice.randrange(count)) for _ in range(dice.randint(0, 20))]
    begin = [chunk({"role": "assistant", "content": ""}, index=index) for index in range(count)]
    return (*begin, *texts, *(chunk({}, index=index, finish_reason="stop") for index in range(count)), DONE)


def call_stream(dice: random.Random) -> tuple[bytes, ...]:
    start = {"index": 0, **CALL, "function": {"name": "look", "arguments": ""}}
    pieces = [{"index": 0, "function": {"arguments": dice.choice(("{", '"at"', "1"))}} for _ in range(5)]
    calls = [chunk({"tool_calls": [piece]}) for piece in (start, *pieces)]
    return (chunk({"role": "assistant"}), *calls, chunk({}, finish_reason="stop"), DONE)


def body_of(dice: random.Random, **fields: Any) -> bytes:
    """A chat, often one that goes on where an earlier one was."""
    turns = [{"role": "user", "content": f"hi {dice.randrange(4)}"}]
    for _ in range(dice.randrange(3)):
        turns += [{"role": "assistant", "content": "Hello"}, {"role": "user", "content": dice.choice(WORDS)}]
    extras: list[dict[str, Any]] = [
        {},
        {"user": "ann"},
        {"session_id": "mine"},
        {"metadata": {"session_id": "yours", "x": "y"}},
        {"temperature": 0.5, "unknown": [None]},
        {"n": 2, "logprobs": True},
    ]
    return json.dumps({"model": "m", "messages": turns} | fields | dice.choice(extras)).encode()


def headers_of(dice: random.Random) -> bytes:
    named = (b"", b"X-Session-Id: a-session\r\n", b"X-Request-Id: from-caller\r\n", b"X-User-Id: ann\r\n")
    return dice.choice(named) + (dice.choice(list(ODD_HEADERS.values())) if dice.random() < 0.3 else b"")


def asked_for(dice: random.Random) -> Asked:
    kind = dice.choice(("chat", "stream", "usage", "tools", "tool stream", "odd stream", "error", "odd body", "other"))
    headers = headers_of(dice)
    text = {"role": "assistant", "content": dice.choice(WORDS)}
    match kind:
        case "chat":
            return Asked(kind, request(CHAT, body_of(dice), headers=headers), (whole(dice, text),))
        case "stream":
            return Asked(kind, request(CHAT, body_of(dice, stream=True), headers=headers), text_stream(dice), True)
        case "usage":
            body = body_of(dice, stream=True, stream_options={"include_usage": dice.random() < 0.7})
            return Asked(kind, request(CHAT, body, headers=headers), text_stream(dice), True)
        case "tools":
            answer = whole(dice, {"role": "assistant", "content": None, "tool_calls": [CALL]})
            return Asked(kind, request(CHAT, body_of(dice, tools=[TOOL]), headers=headers), (answer,))
        case "tool stream":
            body = body_of(dice, tools=[TOOL], stream=True)
            return Asked(kind, request(CHAT, body, headers=headers), call_stream(dice), True)
        case "odd stream":
            events = EVENTS[dice.choice(sorted(EVENTS))]
            return Asked(kind, request(CHAT, body_of(dice, stream=True), headers=headers), events, True)
        case "error":
            status = dice.choice(sorted(STATUSES))
            head = b"Content-Type: application/json\r\n" + STATUSES[status]
            error = respond(dice.choice((b'{"error":{"message":"no"}}', b"no")), status=status, headers=head)
            return Asked(kind, request(CHAT, body_of(dice, stream=dice.random() < 0.5), headers=headers), (error,))
        case "odd body":
            body = ODD_BODIES[dice.choice(sorted(ODD_BODIES))]
            return Asked(kind, request(CHAT, body, headers=headers), (whole(dice, text),))
    target, method = dice.choice(((b"/v1/models", b"GET"), (EMBEDDINGS, b"POST"), (b"/v1/completions", b"POST")))
    body = body_of(dice, prompt="a", input="a") if method == b"POST" else b""
    return Asked(kind, request(target, body, method=method, headers=headers), (respond(b'{"object":"list"}'),))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ScriptedUpstream, ProxyProcess]]:
    upstream = ScriptedUpstream()
    with run_proxy(tmp_path_factory.mktemp("proxy"), upstream_url=upstream.url) as proxy:
        yield upstream, proxy
    upstream.close()


def test_replies_are_the_same_direct_and_through_the_proxy(world: tuple[ScriptedUpstream, ProxyProcess]) -> None:
    upstream, proxy = world
    dice = random.Random(SEED)
    for number in range(REQUESTS):
        asked = asked_for(dice)
        direct, relayed = play_both(upstream, proxy, Model(asked), asked.data)
        try:
            assert_same_response(direct.reply, relayed.reply)
        except AssertionError as exc:
            exc.add_note(f"request {number} ({asked.kind}): {asked.data!r}")
            raise


def test_the_proxy_asks_for_usage_and_keeps_it_to_itself(world: tuple[ScriptedUpstream, ProxyProcess]) -> None:
    upstream, proxy = world
    data = request(CHAT, b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}')
    direct, relayed = play_both(upstream, proxy, Model(Asked("stream", data, PLAIN_EVENTS, is_stream=True)), data)
    assert b"include_usage" not in direct.received[0].body
    assert b"include_usage" in relayed.received[0].body
    assert relayed.reply.body == direct.reply.body == b"".join(PLAIN_EVENTS)
