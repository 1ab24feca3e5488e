"""Replies that differ from vLLM's form, as other servers send them: what the caller gets, and what is recorded."""

import asyncio
import contextlib
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fake_upstream import Behaviour, Call, Wire, fake_upstream, raw
from tests.serving import running_proxy, settings_for

CASES = Path(__file__).parent / "cases"
CHAT = "/v1/chat/completions"
ASKED = {"model": "m", "messages": [{"role": "user", "content": "q"}], "stream": True}
Recorded = tuple[dict[str, Any], dict[str, Any]]


def head(media_type: str = "text/event-stream", status: int = 200, *, coding: str = "") -> bytes:
    lines = [f"HTTP/1.1 {status} OK", f"content-type: {media_type}"]
    lines += [f"content-encoding: {coding}"] if coding else []
    return "\r\n".join([*lines, "connection: close", "", ""]).encode()


def delta(said: Any, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": said, "finish_reason": finish, **more}
    return b"data: " + json.dumps({"id": "c", "model": "m", "choices": [choice]}).encode() + b"\n\n"


def stream(*deltas: Any) -> bytes:
    """A stream of these deltas, ended as it should be."""
    return head() + b"".join(map(delta, deltas)) + delta({}, "stop") + b"data: [DONE]\n\n"


def closing(answer: bytes | Callable[[bytes], bytes]) -> Behaviour:
    async def behaviour(call: Call, wire: Wire) -> None:
        await raw(answer if isinstance(answer, bytes) else answer(call.body))(call, wire)

    return behaviour


@contextlib.asynccontextmanager
async def proxied(folder: Path, behaviour: Behaviour, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        fake_upstream() as upstream,
        running_proxy(settings_for(folder, upstream_url=upstream.url, **changes)) as url,
        httpx.AsyncClient(base_url=url, timeout=20) as client,
    ):
        upstream.on_all(behaviour)
        yield client


async def recorded(client: httpx.AsyncClient, session_id: str) -> Recorded:
    """The reply that is stored, {} for none, and the exchange."""
    async with asyncio.timeout(60):  # what a slow disk takes late is on the spill file when its end is sent
        while True:
            response = await client.get(f"/v1/sessions/{session_id}/exchanges")
            exchanges = response.json().get("exchanges")
            if exchanges and exchanges[-1]["status"] != "in_progress":
                break
            await asyncio.sleep(0.05)
    told = (await client.get(f"/v1/sessions/{session_id}/messages", params={"format": "openai"})).json()["messages"]
    return (told[-1] if told[-1]["role"] == "assistant" else {}), exchanges[-1]


async def asked(folder: Path, answer: bytes | Callable[[bytes], bytes], **changes: Any) -> Recorded:
    async with proxied(folder, closing(answer)) as client:
        async with client.stream("POST", CHAT, json={**ASKED, **changes}, headers={"X-Session-Id": "s"}) as response:
            assert response.headers["x-session-id"]
            with contextlib.suppress(httpx.RemoteProtocolError):  # of a stream that is cut
                async for _ in response.aiter_raw():
                    pass  # as it is: some are labelled with a coding that they are not in
        return await recorded(client, "s")


def called(*calls: tuple[str, str, str]) -> list[dict[str, Any]]:
    return [{"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in calls]


def call(name: str = "f", arguments: str = "", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


def bin_of(name: str) -> bytes:
    [path] = CASES.glob(f"{name}-*.bin")
    return path.read_bytes()


def encoded(coding: str, data: bytes) -> bytes:
    return head(coding=coding) + data


def in_pieces(coder: Any) -> bytes:
    """AB compressed as a server does it that sends each event at once."""
    pieces = [coder.compress(piece) + coder.flush(zlib.Z_SYNC_FLUSH) for piece in NINES]
    return b"".join([*pieces, coder.flush()])


WHOLE = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"a"},"finish_reason":"stop"}]}'
AB = stream({"role": "assistant", "content": "a"}, {"content": "b"}).partition(b"\r\n\r\n")[2]
NINES = [AB[start : start + 9] for start in range(0, len(AB), 9)]
WEATHER = ("c1", "get_weather", '{"city":"A"}'), ("c2", "get_weather", '{"city":"B"}'), ("c3", "get_time", '{"tz":"U"}')
DETAIL = {"type": "reasoning.text", "text": "Let me", "signature": "SIG", "format": "x", "index": 0}
THOUGHT = {"type": "thinking", "thinking": [text("Okay, so")]}

MESSAGES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "01": (bin_of("01"), {"tool_calls": called(*WEATHER)}),
    "01 in pieces": (
        stream(
            {"tool_calls": [call("f", '{"a"', index=0, id="c1")]},
            {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]},
            {"tool_calls": [call("g", "{}", index=0, id="c2")]},
        ),
        {"tool_calls": called(("c1", "f", '{"a":1}'), ("c2", "g", "{}"))},
    ),
    "01 in turns": (
        stream(
            {"tool_calls": [call("f", "{", index=0, id="c1")]},
            {"tool_calls": [call("g", "{", index=0, id="c2")]},
            {"tool_calls": [{"index": 0, "id": "c1", "function": {"arguments": "}"}}]},
            {"tool_calls": [{"index": 0, "id": "c2", "function": {"arguments": "}"}}]},
        ),
        {"tool_calls": called(("c1", "f", "{}"), ("c2", "g", "{}"))},
    ),
    "01 an id for each piece": (
        stream(
            {"tool_calls": [call("f", "", index=0, id="c1")]},
            {"tool_calls": [{"index": 0, "id": "c2", "function": {"arguments": '{"a"'}}]},
            {"tool_calls": [{"index": 0, "id": "c3", "function": {"arguments": ":1}"}}]},
        ),
        {"tool_calls": called(("c1", "f", '{"a":1}'))},
    ),
    "01 id before the name": (
        stream(
            {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"arguments": ""}}]},
            {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]},
            {"tool_calls": [{"index": 0, "id": "c2", "type": "function", "function": {"arguments": ""}}]},
            {"tool_calls": [{"index": 0, "function": {"name": "g", "arguments": "{}"}}]},
        ),
        {"tool_calls": called(("c1", "f", "{}"), ("c2", "g", "{}"))},
    ),
    "02": (bin_of("02"), {"tool_calls": called(("c1", "f", '{"a":1}'), ("c2", "g", '{"b":2}'))}),
    "02 null": (
        stream(
            {"tool_calls": [call("f", index=None, id="c1")]},
            {"tool_calls": [{"index": None, "id": None, "function": {"arguments": "{}"}}]},
        ),
        {"tool_calls": called(("c1", "f", "{}"))},
    ),
    "02 as text": (
        stream(
            {"tool_calls": [call("f", "{}", index="0", id="c1")]},
            {"tool_calls": [call("g", "", index="1", id="c2")]},
            {"tool_calls": [{"index": "1", "function": {"arguments": "{}"}}]},
        ),
        {"tool_calls": called(("c1", "f", "{}"), ("c2", "g", "{}"))},
    ),
    "04": (bin_of("04"), {"tool_calls": called(("c1", "get_weather", "{}"))}),
    "04 repeated": (
        stream(
            {"tool_calls": [call("f", "{", index=0, id="c1")]},
            {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "}"}}]},
        ),
        {"tool_calls": called(("c1", "f", "{}"))},
    ),
    "04 three pieces": (
        stream(
            {"tool_calls": [call("get", "", index=0, id="c1")]},
            {"tool_calls": [{"index": 0, "function": {"name": "_wea"}}]},
            {"tool_calls": [{"index": 0, "function": {"name": "ther", "arguments": "{}"}}]},
        ),
        {"tool_calls": called(("c1", "get_weather", "{}"))},
    ),
    "05": (bin_of("05"), {"content": [THOUGHT, text("Hello")]}),
    "05 back": (
        stream({"content": "a"}, {"content": [text("b")]}, {"content": "c"}),
        {"content": [text("abc")]},
    ),
    "05 image": (
        stream({"content": "look"}, {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, {"content": "!"}),
        {"content": [text("look"), {"type": "image_url", "image_url": {"url": "x"}}, text("!")]},
    ),
    "05 empty list between": (stream({"content": "a"}, {"content": []}, {"content": "b"}), {"content": "ab"}),
    "05 an object": (stream({"content": "a"}, {"content": text("b")}, {"content": "c"}), {"content": [text("abc")]}),
    "05 thinking between": (
        stream({"content": "Hi"}, {"content": [THOUGHT]}, {"content": "x"}, {"content": "y"}),
        {"content": [text("Hi"), THOUGHT, text("xy")]},
    ),
    "07": (bin_of("07"), {"reasoning_details": [DETAIL], "content": "A"}),
    "07 two": (
        stream(
            {"reasoning_details": [{"type": "reasoning.text", "text": "a", "index": 0}]},
            {"reasoning_details": [{"type": "reasoning.encrypted", "data": "E", "index": 1}]},
            {"reasoning_details": [{"type": "reasoning.text", "text": "a", "index": 0}]},
        ),
        {
            "reasoning_details": [
                {"type": "reasoning.text", "text": "aa", "index": 0},
                {"type": "reasoning.encrypted", "data": "E", "index": 1},
            ]
        },
    ),
    "07 thinking blocks": (
        stream(
            {"thinking_blocks": [{"index": 0, "type": "thinking", "thinking": "I "}]},
            {"thinking_blocks": [{"index": 0, "thinking": "see"}]},
            {"thinking_blocks": [{"index": 0, "signature": "S"}]},
        ),
        {"thinking_blocks": [{"index": 0, "type": "thinking", "thinking": "I see", "signature": "S"}]},
    ),
    "07 index null": (
        stream(
            {"reasoning_details": [{"type": "reasoning.text", "text": "Let", "index": None}]},
            {"reasoning_details": [{"type": "reasoning.text", "text": " me", "index": None}]},
            {"reasoning_details": [{"type": "reasoning.text", "signature": "SIG", "index": None}]},
        ),
        {"reasoning_details": [{"type": "reasoning.text", "text": "Let me", "signature": "SIG", "index": None}]},
    ),
    "07 without index, two signed": (
        stream(
            {"thinking_blocks": [{"type": "thinking", "thinking": "a"}]},
            {"thinking_blocks": [{"type": "thinking", "thinking": "b"}]},
            {"thinking_blocks": [{"type": "thinking", "thinking": "", "signature": "S"}]},
            {"thinking_blocks": [{"type": "thinking", "thinking": "c"}]},
            {"thinking_blocks": [{"type": "thinking", "thinking": "", "signature": "T"}]},
        ),
        {
            "thinking_blocks": [
                {"type": "thinking", "thinking": "ab", "signature": "S"},
                {"type": "thinking", "thinking": "c", "signature": "T"},
            ]
        },
    ),
    "08": (bin_of("08"), {"role": "assistant", "content": "ab"}),
    "08 late": (stream({"role": "", "content": "a"}, {"role": "assistant"}), {"role": "assistant", "content": "a"}),
    "08 whole": (
        head("application/json")
        + b'{"choices":[{"index":0,"message":{"role":"","content":"a"},"finish_reason":"stop"}]}',
        {"role": "assistant", "content": "a"},
    ),
    "08 blank": (stream({"role": " ", "content": "a"}), {"role": "assistant", "content": "a"}),
    "08 spelled otherwise": (stream({"role": "Assistant", "content": "a"}), {"role": "assistant", "content": "a"}),
    "09": (bin_of("09"), {"tool_calls": called(("c1", "f", "{}"))}),
    "09 by number": (
        stream({"tool_calls": {"0": call("f", "{}", id="c1"), "1": call("g", "{}", id="c2")}}),
        {"tool_calls": called(("c1", "f", "{}"), ("c2", "g", "{}"))},
    ),
    "09 pieces": (
        stream({"tool_calls": call("f", "{", id="c1")}, {"tool_calls": {"function": {"arguments": "}"}}}),
        {"tool_calls": called(("c1", "f", "{}"))},
    ),
    "09 texts": (
        stream({"tool_calls": ["x"]}, {"tool_calls": [call("f", "{}", id="c1"), "y"]}),
        {"tool_calls": [*called(("c1", "f", "{}")), "x", "y"]},
    ),
    "09 a text": (stream({"tool_calls": "[]"}), {"tool_calls": "[]"}),
    "10": (bin_of("10"), {"content": "Hello"}),
    "10 blanks": (
        stream({"content": "a"}).replace(b"text/event-stream", b" TEXT/Event-stream ; a=b"),
        {"content": "a"},
    ),
    "12": (bin_of("12"), {"content": "Hello"}),
    "12 text": (stream({"content": "a"}).replace(b"text/event-stream", b"text/plain"), {"content": "a"}),
    "12 comment": (
        stream({"content": "a"}).replace(
            b"text/event-stream\r\nconnection: close\r\n\r\n", b"x/y\r\nconnection: close\r\n\r\n: hi\n\n"
        ),
        {"content": "a"},
    ),
    "12 blanks": (head("text/html") + b"  \r\n" + AB, {"content": "ab"}),
    "12 other way round": (head() + WHOLE, {"content": "a"}),
    "12 other way round, in lines": (head() + json.dumps(json.loads(WHOLE), indent=1).encode(), {"content": "a"}),
    "13": (bin_of("13"), {"role": "assistant", "content": "Hello"}),
    "13 deflate": (encoded("deflate", zlib.compress(AB)), {"content": "ab"}),
    "13 bare deflate": (encoded("deflate", in_pieces(zlib.compressobj(wbits=-15))), {"content": "ab"}),
    "13 in pieces": (encoded("gzip", in_pieces(zlib.compressobj(wbits=31))), {"content": "ab"}),
    "13 in members": (encoded("GZip", b"".join(map(gzip.compress, NINES))), {"content": "ab"}),
    "13 without its trailer": (encoded("gzip", gzip.compress(AB)[:-8]), {"content": "ab"}),
    "13 twice": (encoded("deflate, gzip", gzip.compress(zlib.compress(AB))), {"content": "ab"}),
    "13 twice in two fields": (
        encoded("deflate\r\ncontent-encoding: gzip", gzip.compress(zlib.compress(AB))),
        {"content": "ab"},
    ),
    "13 identity beside": (encoded("identity, x-gzip", gzip.compress(AB)), {"content": "ab"}),
    "13 identity": (encoded("identity", AB), {"content": "ab"}),
    "13 no coding": (encoded("utf-8", AB), {"content": "ab"}),
    "13 not encoded at all": (encoded("gzip", AB), {"content": "ab"}),
    "13 not encoded, and no decoder": (encoded("br", AB), {"content": "ab"}),
    "13 gzip called deflate": (encoded("deflate", gzip.compress(AB)), {"content": "ab"}),
    "13 under another media type": (
        encoded("gzip", gzip.compress(AB)).replace(b"text/event-stream", b"application/json"),
        {"content": "ab"},
    ),
    "13 whole": (
        head("application/json", coding="gzip") + gzip.compress(WHOLE),
        {"content": "a"},
    ),
    "20": (bin_of("20"), {"content": "Hello"}),
    "20 one line end": (head() + delta({"content": "a"}) + delta({}, "stop")[:-1], {"content": "a"}),
    "20 no blank": (head() + delta({"content": "a"}, "stop").replace(b"data: ", b"data:")[:-2], {"content": "a"}),
    "21": (bin_of("21"), {"content": "x\ufffd\ufffdy"}),
    "21 whole": (
        head("application/json")
        + b'{"choices":[{"index":0,"message":{"role":"assistant","content":"a\xff"},"finish_reason":"stop"}]}',
        {"content": "a\ufffd"},
    ),
    "21 among others": (
        stream({"content": "a"}, {"content": "b"}, {"content": "?"}, {"content": "c"}).replace(b"?", b"\xe4"),
        {"content": "ab\ufffdc"},
    ),
    "21 half a character as three bytes": (
        stream({"content": "?"}).replace(b"?", b"\xed\xa0\x80"),
        {"content": "\ufffd" * 3},
    ),
    "21 character in two escaped halves": (
        stream({"content": "a?"}, {"content": "!b"}).replace(b"?", b"\\ud83d").replace(b"!", b"\\ude00"),
        {"content": "a\U0001f600b"},
    ),
    "21 control characters": (stream({"content": "a?"}).replace(b"?", b"\t\0"), {"content": "a\t\0"}),
    "21 in arguments": (
        stream({"tool_calls": [call("f", '{"a":"?"}', index=0, id="c1")]}).replace(b"?", b"\xff"),
        {"tool_calls": called(("c1", "f", '{"a":"\ufffd"}'))},
    ),
    "22": (bin_of("22"), {"content": "Hello"}),
    "22 CRLF": (
        head() + (delta({"content": "a"}) + delta({"content": "b"}) + delta({}, "stop")).replace(b"\n\n", b"\r\n"),
        {"content": "ab"},
    ),
    "22 CR": (
        head() + (delta({"content": "a"}) + delta({"content": "b"}) + delta({}, "stop")).replace(b"\n\n", b"\r"),
        {"content": "ab"},
    ),
    "22 some": (
        head() + delta({"content": "a"})[:-1] + delta({"content": "b"}) + delta({}, "stop")[:-1],
        {"content": "ab"},
    ),
    "22 with names and comments": (
        head()
        + b"".join(b": a\nevent: message\n" + each[:-1] for each in (delta({"content": "a"}), delta({}, "stop"))),
        {"content": "a"},
    ),
    "22 in one event": (
        head() + (delta({"content": "a"}) + delta({"content": "b"}, "stop")).replace(b"\n\n", b"\n") + b"\n",
        {"content": "ab"},
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
async def test_reply_is_recorded_as_it_was_meant(tmp_path: Path, name: str) -> None:
    answer, expected = MESSAGES[name]
    message, exchange = await asked(tmp_path, answer)
    assert exchange["status"] == "completed", exchange
    assert {key: message.get(key) for key in expected} == expected


def usage(**counts: Any) -> dict[str, Any]:
    return {"usage": counts}


def chunk(**keys: Any) -> bytes:
    return b"data: " + json.dumps({"id": "c", "choices": [], **keys}).encode() + b"\n\n"


USAGES: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "23": (bin_of("23"), (5, 6, 11)),
    "23 in a delta": (stream({"content": "a", **usage(prompt_tokens=1, completion_tokens=2)}), (1, 2, 3)),
    "23 of a gateway": (
        head() + delta({"content": "a"}, "stop") + chunk(x_groq=usage(prompt_tokens=1, completion_tokens=2)),
        (1, 2, 3),
    ),
    "25": (bin_of("25"), (5, 2, 7)),
    "25 as text": (
        head() + delta({"content": "a"}, "stop") + chunk(**usage(prompt_tokens="5", completion_tokens="2")),
        (5, 2, 7),
    ),
    "25 whole": (
        head("application/json")
        + b'{"choices":[{"index":0,"message":{"role":"assistant","content":"a"},"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":5.0,"completion_tokens":2.0,"total_tokens":7.0}}',
        (5, 2, 7),
    ),
    "23 of any gateway": (
        head() + delta({"content": "a"}, "stop") + chunk(x_ours=usage(prompt_tokens=1, completion_tokens=2)),
        (1, 2, 3),
    ),
    "23 in a message": (
        head("application/json")
        + WHOLE.replace(b'"content"', b'"usage":{"promptTokens":1,"completionTokens":2},"content"'),
        (1, 2, 3),
    ),
    "25 as text with a point": (
        head() + delta({"content": "a"}, "stop") + chunk(usage=[{"prompt_tokens": "5.0", "completion_tokens": "2.00"}]),
        (5, 2, 7),
    ),
    "in two parts, the first with a total": (
        head()
        + chunk(**usage(prompt_tokens=5, completion_tokens=0, total_tokens=5))
        + delta({"content": "a"}, "stop")
        + chunk(**usage(completion_tokens=2)),
        (5, 2, 7),
    ),
    "in two parts": (
        head()
        + chunk(**usage(prompt_tokens=5, completion_tokens=0))
        + delta({"content": "a"}, "stop")
        + chunk(**usage(completion_tokens=2)),
        (5, 2, 7),
    ),
}


@pytest.mark.parametrize("name", USAGES)
async def test_usage_is_found_wherever_it_stands(tmp_path: Path, name: str) -> None:
    answer, expected = USAGES[name]
    _, exchange = await asked(tmp_path, answer)
    assert tuple(exchange[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")) == expected


FAILURES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "15": (bin_of("15"), {"status": 502, "media_type": "text/html", "text": "<html><h1>502 Bad Gateway</h1></html>"}),
    "15 empty": (head("text/plain", 503) + b"", {"status": 503, "text": ""}),
    "15 long": (head("text/plain", 500) + b"x" * 9999, {"status": 500, "text": "x" * 2000}),
    "16": (bin_of("16"), {"status": 200, "media_type": "text/html;charset=UTF-8", "text": "<html>login</html>"}),
    "16 empty": (head("application/json") + b"", {"status": 200, "text": ""}),
    "16 other JSON": (head("application/json") + b'{"ok":true}', {"status": 200, "text": '{"ok":true}'}),
    "16 stream": (head() + b"data: sorry\n\n", {"status": 200, "text": "data: sorry\n\n"}),
    "16 choices of nothing": (head("application/json") + b'{"choices":[{}]}', {"text": '{"choices":[{}]}'}),
    "16 choice without a message": (head("application/json") + b'{"choices":[{"message":null}]}', {"status": 200}),
    "16 HTML as a stream": (head() + b"<html>login</html>", {"text": "<html>login</html>"}),
    "18": (bin_of("18"), {"message": "quota", "type": "insufficient_quota"}),
    "18 text": (head() + b"event: error\ndata: overloaded\n\n", {"message": "overloaded"}),
    "18 field": (head() + b'error: {"message":"quota"}\n\n', {"message": "quota"}),
    "18 nested": (head() + b'event: error\ndata: {"error":{"message":"q"}}\n\n', {"message": "q"}),
    "18 between events": (head() + b'{"error":{"message":"q"}}\n', {"message": "q"}),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_what_is_no_reply_is_failed_and_said(tmp_path: Path, name: str) -> None:
    answer, expected = FAILURES[name]
    message, exchange = await asked(tmp_path, answer)
    assert message == {}
    assert exchange["status"] == "failed"
    assert {key: exchange["error"].get(key) for key in expected} == expected


AFTER_TEXT: dict[str, tuple[bytes, str]] = {
    "18": (b'event: error\ndata: {"message":"boom"}\n\n', "message"),
    "18 field": (b'error: {"message":"boom"}\n\n', "message"),
    "18 no JSON": (b"data: boom\n\n", "text"),
    "18 between events": (b'{"error":{"message":"boom"}}\n\n', "message"),
    "18 in the choice": (delta({}, "error", error={"message": "boom"}) + b"data: [DONE]\n\n", "message"),
}


@pytest.mark.parametrize("name", AFTER_TEXT)
async def test_error_after_text_is_said_and_the_text_is_kept(tmp_path: Path, name: str) -> None:
    answer, key = AFTER_TEXT[name]
    message, exchange = await asked(tmp_path, head() + delta({"content": "a"}) + answer)
    assert (message["content"], exchange["status"]) == ("a", "incomplete")
    assert "boom" in exchange["error"][key]


@pytest.mark.parametrize("left", (0, 1, 2))
async def test_what_upstream_left_unterminated_when_it_died_is_recorded_as_it_is_sent(
    tmp_path: Path, left: int
) -> None:
    events = (delta({"content": "a"}), delta({"content": "b"})[: -left or None])
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events)
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + chunks
    message, exchange = await asked(tmp_path, answer)
    assert (message["content"], exchange["status"]) == ("ab", "incomplete")


@pytest.mark.parametrize("place", ("arguments", "content"))
async def test_event_of_20_megabytes_of_text_is_recorded_whole(tmp_path: Path, place: str) -> None:
    large = "A" * 20_000_000
    said = {"content": large} if place == "content" else {"tool_calls": [call("f", large, index=0, id="c1")]}
    answer = (
        encoded("gzip", gzip.compress(stream(said).partition(b"\r\n\r\n")[2])) if place == "content" else stream(said)
    )
    message, exchange = await asked(tmp_path, answer)
    assert exchange["status"] == "completed"
    kept = message["content"] if place == "content" else message["tool_calls"][0]["function"]["arguments"]
    assert kept == large


async def test_event_that_is_too_large_leaves_the_text_before_it_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.recording.tee._EVENT_BYTES", 100_000)
    answer = stream({"content": "look"}, {"images": ["A" * 200_000]}, {"content": "!"})
    async with proxied(tmp_path, closing(answer)) as client:
        response = await client.post(CHAT, json=ASKED, headers={"X-Session-Id": "s"})
        assert response.content == answer.partition(b"\r\n\r\n")[2]
        message, exchange = await recorded(client, "s")
    assert (message["content"], exchange["status"]) == ("look", "incomplete")
    assert exchange["error"]["type"] == "reply_too_large"


async def test_event_of_40_megabytes_is_recorded_whole(tmp_path: Path) -> None:
    image = "data:image/png;base64," + "A" * 40_000_000
    answer = stream({"content": "look", "images": [{"image_url": {"url": image}}]}, {"content": "!"})
    message, exchange = await asked(tmp_path, answer)
    assert (message.get("content"), exchange["status"], exchange["error"]) == ("look!", "completed", None)
    assert message["images"] == [{"image_url": {"url": image}}]


@pytest.mark.parametrize(
    ("status", "says"), ((422, "no"), (400, "no"), (501, "no"), (403, ""), (406, "no"), (409, "{}"))
)
async def test_upstream_that_refuses_stream_options_is_asked_as_the_caller_asked(
    tmp_path: Path, status: int, says: str
) -> None:
    bodies: list[bytes] = []

    def answer(body: bytes) -> bytes:
        if body:  # and no look at upstream's health
            bodies.append(body)
        return head("text/plain", status) + says.encode() if b"stream_options" in body else stream({"content": "a"})

    async with proxied(tmp_path, closing(answer)) as client:
        for _ in range(2):
            response = await client.post(CHAT, json=ASKED, headers={"X-Session-Id": "s"})
            assert response.status_code == 200
        message, exchange = await recorded(client, "s")
    assert (message["content"], exchange["status"]) == ("a", "completed")
    assert [b"stream_options" in body for body in bodies] == [True, False, False]


@pytest.mark.parametrize("status", (401, 404, 429, 500, 503))
async def test_what_is_refused_for_another_reason_is_asked_once(tmp_path: Path, status: int) -> None:
    bodies: list[bytes] = []

    def answer(body: bytes) -> bytes:
        bodies.extend([body] if body else [])  # and no look at upstream's health
        return head("text/plain", status) + b"no"

    async with proxied(tmp_path, closing(answer)) as client:
        assert (await client.post(CHAT, json=ASKED)).status_code == status
    assert len(bodies) == 1


async def test_upstream_that_refuses_what_the_caller_sent_is_asked_twice_and_answers_for_itself(tmp_path: Path) -> None:
    bodies: list[bytes] = []

    def answer(body: bytes) -> bytes:
        bodies.extend([body] if body else [])
        return head("text/plain", 422) + (b"ours" if b"stream_options" in body else b"theirs")

    async with proxied(tmp_path, closing(answer)) as client:
        for _ in range(2):  # nothing is remembered of a model that would not answer either
            response = await client.post(CHAT, json=ASKED, headers={"X-Session-Id": "s"})
            assert (response.status_code, response.text) == (422, "theirs")
        _, exchange = await recorded(client, "s")
    assert exchange["error"]["text"] == "theirs"
    assert len(bodies) == 4


@pytest.mark.parametrize("given", (0, 1, "yes", [], {}, "false"))
async def test_include_usage_that_is_no_boolean_is_for_upstream_to_judge(tmp_path: Path, given: Any) -> None:
    bodies: list[bytes] = []

    def answer(body: bytes) -> bytes:
        if body:  # and no look at upstream's health
            bodies.append(body)
        return head("application/json", 400) + b'{"error":{"message":"no boolean"}}'

    sent = {**ASKED, "stream_options": {"include_usage": given}}
    async with proxied(tmp_path, closing(answer)) as client:
        assert (await client.post(CHAT, json=sent)).status_code == 400
    assert [json.loads(body) for body in bodies] == [sent]


async def test_timings_beside_our_usage_reach_the_caller(tmp_path: Path) -> None:
    answer = head() + delta({"content": "a"}, "stop") + chunk(**usage(prompt_tokens=1), timings={"ms": 2})
    async with proxied(tmp_path, closing(answer + b"data: [DONE]\n\n")) as client:
        response = await client.post(CHAT, json=ASKED, headers={"X-Session-Id": "s"})
        _, exchange = await recorded(client, "s")
    assert b'"timings":{"ms":2}' in response.content
    assert b"usage" not in response.content
    assert exchange["prompt_tokens"] == 1


ASKED_BYTES = json.dumps(ASKED).encode()
ENCODED_REQUESTS = {
    "gzip": gzip.compress(ASKED_BYTES),
    "deflate": zlib.compress(ASKED_BYTES),
    "x-gzip": gzip.compress(ASKED_BYTES[:9]) + gzip.compress(ASKED_BYTES[9:]),
    "deflate, gzip": gzip.compress(zlib.compress(ASKED_BYTES)),
    "identity, GZIP": gzip.compress(ASKED_BYTES),
    "identity": ASKED_BYTES,
    "br": ASKED_BYTES,  # not encoded at all
}


@pytest.mark.parametrize("coding", ENCODED_REQUESTS)
async def test_compressed_request_is_recorded_and_passes_as_it_is(tmp_path: Path, coding: str) -> None:
    bodies: list[bytes] = []

    def answer(body: bytes) -> bytes:
        if body:  # and no look at upstream's health
            bodies.append(body)
        return stream({"content": "a"})

    sent = ENCODED_REQUESTS[coding]
    headers = {"Content-Type": "application/json", "Content-Encoding": coding, "X-Session-Id": "s"}
    async with proxied(tmp_path, closing(answer)) as client:
        response = await client.post(CHAT, content=sent, headers=headers)
        message, _ = await recorded(client, "s")
    assert (response.headers["x-session-source"], message["content"], bodies) == ("header", "a", [sent])


UNREADABLE = {
    "br": b"\x0b\x02\x80abc\x03",
    "compress": b"\x1f\x9d\x90abc",
    "gzip": gzip.compress(ASKED_BYTES)[:40],
    "gzip, gzip, gzip, gzip, gzip": ASKED_BYTES,
}


@pytest.mark.parametrize("coding", UNREADABLE)
async def test_what_cannot_be_decoded_passes_and_is_said(tmp_path: Path, coding: str) -> None:
    data = UNREADABLE[coding]
    async with proxied(tmp_path, closing(encoded(coding, data))) as client:
        headers = {"Content-Type": "application/json", "Content-Encoding": coding}
        async with client.stream("POST", CHAT, content=data, headers=headers) as response:
            assert b"".join([piece async for piece in response.aiter_raw()]) == data
        async with client.stream("POST", CHAT, json=ASKED, headers={"X-Session-Id": "s"}) as response:
            assert b"".join([piece async for piece in response.aiter_raw()]) == data
        message, exchange = await recorded(client, "s")
    assert (message, exchange["status"]) == ({}, "failed")
    assert exchange["error"]["type"] in ("reply_not_decoded", "upstream_reply")


async def test_zstandard_is_read_where_a_decoder_is_installed(tmp_path: Path) -> None:
    coder = pytest.importorskip("zstandard").ZstdCompressor()
    frames = b"".join(map(coder.compress, NINES))
    message, exchange = await asked(tmp_path, encoded("zstd", frames))
    assert (message["content"], exchange["status"]) == ("ab", "completed")


async def test_compressed_stream_that_is_cut_is_kept_as_far_as_it_came(tmp_path: Path) -> None:
    message, exchange = await asked(tmp_path, encoded("gzip", in_pieces(zlib.compressobj(wbits=31))[:-90]))
    assert (message["content"], exchange["status"]) == ("ab", "incomplete")


def named(name: str, arguments: str) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": called(("c1", name, arguments))}


REWRITTEN: dict[str, tuple[Any, Any]] = {
    "exact": ("Hi", "Hi"),
    "leading newlines trimmed": ("\n\nHi", "Hi"),
    "trailing blanks trimmed": ("Hi \n", "Hi"),
    "without its think block": ("<think>\nhmm\n</think>\n\nHi", "Hi"),
    "with its reasoning as a think block": ({"content": "Hi", "reasoning": "hmm"}, "<think>\nhmm\n</think>\n\nHi"),
    "without two think blocks": ("<think>a</think><think>b</think>Hi", "Hi"),
    "without the end of a block that the template began": ("hmm</think>\n\nHi", "Hi"),
    "CRLF": ("a\nb", "a\r\nb"),
    "LF": ("a\r\nb\r\n", "a\nb"),
    "as a part": ("Hi", [text("Hi")]),
    "without its thinking parts": ([THOUGHT, text("Hi")], "Hi"),
    "keys nobody sent": ("Hi", {"content": "Hi", "refusal": None, "tool_calls": [], "annotations": []}),
    "arguments spaced and sorted otherwise": (
        named("f", '{"b": 1, "a": {"d": 2, "c": []}}'),
        named("f", '{"a":{"c":[],"d":2},"b":1}'),
    ),
    "no arguments": (named("f", ""), named("f", "{}") | {"content": ""}),
    "arguments escaped otherwise": (named("f", '{"a":"\\u00e9"}'), named("f", '{"a":"é"}')),
    "text beside the calls, thinking taken out": (
        named("f", "{}") | {"content": "<think>which?</think>"},
        named("f", "{}"),
    ),
}


def as_reply(said: Any) -> dict[str, Any]:
    return {"role": "assistant", **(said if isinstance(said, dict) else {"content": said})}


async def test_reply_is_known_however_clients_send_it_back(tmp_path: Path) -> None:
    replies: list[dict[str, Any]] = []

    def answer(body: bytes) -> bytes:
        choice = {"index": 0, "message": replies[-1] if replies else {}, "finish_reason": "stop"}
        return head("application/json") + json.dumps({"choices": [choice]}).encode()

    async with proxied(tmp_path, closing(answer)) as client:
        for name, (said, resent) in REWRITTEN.items():
            turns = [{"role": "user", "content": name}]
            replies.append(as_reply(said))
            first = await client.post(CHAT, json={"model": "m", "messages": turns})
            turns += [as_reply(resent), {"role": "user", "content": "more"}]
            second = await client.post(CHAT, json={"model": "m", "messages": turns})
            assert second.headers["x-session-source"] == "stitched", name
            assert second.headers["x-session-id"] == first.headers["x-session-id"], name


NO_IDS: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"metadata": {"thread_id": 17}}, {}),
    ({"metadata": {"session_id": "my chat"}}, {}),
    ({"metadata": {"conversation_id": "c" * 200}}, {}),
    ({"metadata": {"session_id": {"id": "x"}, "thread_id": [], "conversation_id": True}}, {}),
    ({"metadata": {"session_id": "чат"}}, {}),
    ({"metadata": "no object"}, {}),
    ({"metadata": {"user_id": '{"session_id": 5}'}}, {}),
    ({"session_id": None, "metadata": None}, {}),
    ({}, {"x-litellm-trace-id": "t" * 200}),
    ({}, {"x-session-affinity": "a b"}),
    ({}, {"X-OpenWebUI-Chat-Id": "local:a b", "Helicone-Session-Id": "/a path/b"}),
    ({}, {"session-id": "a b", "originator": "codex_exec"}),
]


async def test_what_is_no_session_id_is_passed_over(tmp_path: Path) -> None:
    bodies: list[bytes] = []

    def answer(body: bytes) -> bytes:
        bodies.extend([body] if body else [])
        return stream({"content": "a"})

    async with proxied(tmp_path, closing(answer), stream_usage=False) as client:
        for fields, headers in NO_IDS:
            response = await client.post(CHAT, json=ASKED | fields, headers=headers)
            assert (response.status_code, response.headers["x-session-source"]) == (200, "new"), (fields, headers)
    assert [json.loads(body) for body in bodies] == [ASKED | fields for fields, _ in NO_IDS]


NO_MESSAGES = (b'{"model":"m"}', b'{"model":"m","messages":[]}', b'{"model":"m","messages":"none"}', b'{"model":')


@pytest.mark.parametrize("session", ({}, {"X-Session-Id": "s"}))
async def test_request_without_messages_that_is_refused_late_leaves_no_session(
    tmp_path: Path, session: dict[str, str]
) -> None:
    """Replies that take longer than a second are written down while they come, and so is their request."""

    async def refuse(call: Call, wire: Wire) -> None:
        await asyncio.sleep(1.6)
        await closing(head("application/json", 400) + b'{"error":{"message":"no messages"}}')(call, wire)

    async def slowly(body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 9):
            yield body[start : start + 9]
            await asyncio.sleep(0.1)

    async with proxied(tmp_path, refuse) as client:
        headers = {"Content-Type": "application/json", **session}
        answers = await asyncio.gather(*(client.post(CHAT, content=slowly(b), headers=headers) for b in NO_MESSAGES))
        assert [answer.status_code for answer in answers] == [400] * len(NO_MESSAGES)
        assert (await client.get("/v1/sessions")).json()["sessions"] == []


async def test_our_own_502_names_its_session(tmp_path: Path) -> None:
    async with proxied(tmp_path, closing(b"")) as client:
        response = await client.post(CHAT, json=ASKED, headers={"X-Session-Id": "s"})
    assert response.status_code == 502
    assert response.headers["x-session-source"] == "header"
    assert response.headers["x-session-id"]
    assert response.headers["x-request-id"]


async def test_request_of_endless_values_is_refused_in_words_and_not_parsed(tmp_path: Path) -> None:
    bodies: list[bytes] = []

    def answer(body: bytes) -> bytes:
        if body:
            bodies.append(body)
        return stream({"content": "a"})

    sent = b'{"model":"m","stream":true,"stream_options":null,"x":[' + b"0," * 5_500_000 + b'0],"messages":[]}'
    async with proxied(tmp_path, closing(answer)) as client:
        response = await client.post(CHAT, content=sent, headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert "values" in response.json()["error"]["message"]
    assert bodies == []
