"""Replies beyond the recorder's limits: the caller gets every byte, the record says why the rest is missing, and other
chats go on."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.fake_upstream import Behaviour, Call, Wire, chat_chunk, chat_completion, event, fake_upstream, sse
from tests.recording.test_recorder import CHAT, HELLO, WORLD, rows
from tests.serving import running_proxy, settings_for

VALUES = 1_000_000
CHOICES = 1024
DECODED_BYTES = 2**17
LARGE = {"model": "m", "messages": [{"role": "user", "content": "large"}]}
SMALL = {"model": "m", "messages": [{"role": "user", "content": "small"}], "stream": True}
BEGUN = b"".join(HELLO)


class Recorded(NamedTuple):
    status: str
    error: dict[str, Any] | None
    texts: list[str]  # of the reply's choices


async def recorded(folder: Path, pieces: Sequence[bytes], *, stream: bool, coding: str = "") -> Recorded:
    """The record of a reply of these pieces. Its end is sent only after another chat is complete."""
    gate = asyncio.Event()
    media_type = "text/event-stream" if stream else "application/json"
    headers = [("content-type", media_type), *([("content-encoding", coding)] if coding else [])]
    async with fake_upstream() as upstream:
        upstream.on(CHAT, by_message(large=gated(pieces, gate, headers), small=sse([*HELLO, *WORLD])))
        settings = settings_for(folder, upstream_url=upstream.url, body_limit_bytes=DECODED_BYTES)
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
            large = asyncio.create_task(raw_reply(client, {**LARGE, "stream": stream}))
            await upstream.until(lambda: upstream.calls)
            assert (await client.post(CHAT, json=SMALL, headers={"X-Session-Id": "small"})).content.endswith(WORLD[-1])
            gate.set()
            assert await large == b"".join(pieces)
    return ended(folder)


async def raw_reply(client: httpx.AsyncClient, body: dict[str, Any]) -> bytes:
    async with client.stream("POST", CHAT, json=body, headers={"X-Session-Id": "large"}) as reply:
        assert reply.status_code == 200
        return b"".join([piece async for piece in reply.aiter_raw()])


def by_message(**behaviours: Behaviour) -> Behaviour:
    async def answer(call: Call, wire: Wire) -> None:
        await behaviours[call.json()["messages"][0]["content"]](call, wire)

    return answer


def gated(pieces: Sequence[bytes], gate: asyncio.Event, headers: list[tuple[str, str]]) -> Behaviour:
    async def answer(_call: Call, wire: Wire) -> None:
        await wire.head(200, [*headers, ("transfer-encoding", "chunked")])
        for piece in pieces[:-1]:
            await wire.chunk(piece)
        await gate.wait()
        await wire.chunk(pieces[-1])
        await wire.send(b"0\r\n\r\n")

    return answer


def ended(folder: Path) -> Recorded:
    session = "(SELECT session_no FROM messages WHERE content = 'large')"
    [(status, error)] = rows(folder, f"SELECT status, error FROM exchanges WHERE session_no = {session}")
    replies = rows(
        folder,
        f"SELECT content FROM messages WHERE role = 'assistant' AND session_no = {session} ORDER BY message_no",
    )
    return Recorded(status, error and json.loads(error), [content for (content,) in replies])


def values(count: int) -> bytes:
    """A JSON object with this many values, as they are counted: brackets and commas."""
    return b'{"choices":[],"x":[' + b"0," * (count - 4) + b"0]}"


def streamed(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


TOO_MANY_VALUES = {
    "message": "The reply is too large to keep: it has more than 1000000 JSON values in one piece. "
    "The rest of it is not recorded.",
    "type": "reply_too_large",
}
TOO_LARGE_DECODED = {
    "message": "The reply could not be decoded: a compressed body is too large",
    "type": "reply_too_large",
}
TOO_MANY_CHOICES = "The reply has more than 1024 choices. The others are not recorded."


async def test_an_event_with_too_many_values_ends_the_record(tmp_path: Path) -> None:
    reply = await recorded(tmp_path, [*HELLO, streamed(values(VALUES + 1)), *WORLD], stream=True)
    assert reply == ("incomplete", TOO_MANY_VALUES, ["Hel"])


async def test_an_event_with_as_many_values_as_are_kept_is_recorded(tmp_path: Path) -> None:
    reply = await recorded(tmp_path, [*HELLO, streamed(values(VALUES)), *WORLD], stream=True)
    assert reply == ("completed", None, ["Hello"])


async def test_commas_inside_a_string_are_no_values(tmp_path: Path) -> None:
    text = ",[{" * VALUES
    pieces = [*HELLO, event(chat_chunk(1, {"content": text})), *WORLD]
    assert await recorded(tmp_path, pieces, stream=True) == ("completed", None, [f"Hel{text}lo"])


async def test_a_whole_reply_with_too_many_values_is_not_recorded(tmp_path: Path) -> None:
    body = values(VALUES + 1)
    assert await recorded(tmp_path, [body[:99], body[99:]], stream=False) == ("failed", TOO_MANY_VALUES, [])


@pytest.mark.parametrize("has_event_each", (True, False))
async def test_a_stream_of_too_many_choices_keeps_the_first_ones(tmp_path: Path, *, has_event_each: bool) -> None:
    chunks = [chat_chunk(1, {"content": f"c{index}"}, index=index) for index in range(CHOICES + 2)]
    if not has_event_each:
        chunks = [{**chunks[0], "choices": [chunk["choices"][0] for chunk in chunks]}]
    reply = await recorded(tmp_path, [b"".join(map(event, chunks)), WORLD[-1]], stream=True)
    assert reply.error is not None
    assert reply.error["message"] == TOO_MANY_CHOICES
    assert reply.texts == [f"c{index}" for index in range(CHOICES)]


async def test_a_whole_reply_of_too_many_choices_keeps_the_first_ones(tmp_path: Path) -> None:
    messages = [{"role": "assistant", "content": f"c{index}"} for index in range(CHOICES + 2)]
    body = json.dumps(chat_completion(1, messages)).encode()
    reply = await recorded(tmp_path, [body[:99], body[99:]], stream=False)
    assert reply.error is not None
    assert reply.error["message"] == TOO_MANY_CHOICES
    assert reply.texts == [f"c{index}" for index in range(CHOICES)]


BOMB = bytes(4 * DECODED_BYTES)
BOMBS: dict[str, tuple[str, list[bytes]]] = {
    "gzip": ("gzip", [gzip.compress(BEGUN + BOMB)]),
    "gzip of comments": ("gzip", [gzip.compress(BEGUN + b":" * len(BOMB) + b"\n\n")]),
    "gzip of LF": ("gzip", [gzip.compress(BEGUN + b"\n" * len(BOMB))]),
    "gzip of CR": ("gzip", [gzip.compress(BEGUN + b"\r" * len(BOMB))]),
    "gzip of CRLF": ("gzip", [gzip.compress(BEGUN + b"\r\n" * len(BOMB))]),
    "gzip in members": ("gzip", [gzip.compress(BEGUN), *[gzip.compress(bytes(DECODED_BYTES // 2))] * 4]),
    "deflate": ("deflate", [zlib.compress(BEGUN + BOMB)]),
    "gzip of gzip": ("gzip, gzip", [gzip.compress(gzip.compress(BEGUN + BOMB))]),
}


@pytest.mark.parametrize("kind", BOMBS)
async def test_a_compressed_stream_that_decodes_to_too_much_keeps_its_begin(tmp_path: Path, kind: str) -> None:
    coding, pieces = BOMBS[kind]
    reply = await recorded(tmp_path, [*pieces, b"what follows"], stream=True, coding=coding)
    assert reply == ("incomplete", TOO_LARGE_DECODED, ["Hel"])


@pytest.mark.parametrize("kind", ("gzip", "deflate", "gzip of gzip"))
async def test_a_compressed_whole_reply_that_decodes_to_too_much_is_not_recorded(tmp_path: Path, kind: str) -> None:
    coding, pieces = BOMBS[kind]
    reply = await recorded(tmp_path, [*pieces, b"what follows"], stream=False, coding=coding)
    assert reply == ("failed", TOO_LARGE_DECODED, [])
