"""Replies that cannot be recorded wholly: the caller gets all of them, and the exchange says what is missing."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.recording import sending, tee
from proxy.storage import session_lookup
from proxy.storage.errors import StorageError
from tests.engines import on_both_engines
from tests.fake_upstream import FakeUpstream, chat_chunk, chat_completion, event, sse, whole_json
from tests.recording.test_recorder import CHAT, HELLO, WORLD, eventually, rows
from tests.serving import running_proxy, settings_for

pytestmark = on_both_engines

ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
STREAM = b"".join([*HELLO, *WORLD])


async def ask(url: str, body: dict[str, Any] = ASKED, *, session: str = "s", **fields: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url) as client:
        headers = {"X-Session-Id": session} if session else {}
        return await client.post(CHAT, json={**body, **fields}, headers=headers)


async def endings(folder: Path) -> list[tuple[str, str | None]]:
    """The status of each exchange that has ended, and the type of its error."""
    await eventually(lambda: not rows(folder, "SELECT 1 FROM exchanges WHERE status = 'in_progress'"))
    found = rows(folder, "SELECT status, error FROM exchanges ORDER BY exchange_no")
    return [(status, error and json.loads(error)["type"]) for status, error in found]


@pytest.mark.parametrize("stream", (True, False))
@pytest.mark.parametrize("durability", ("strict", "relaxed"))
async def test_a_reply_passes_though_the_queue_is_full(
    tmp_path: Path, upstream: FakeUpstream, caplog: pytest.LogCaptureFixture, *, stream: bool, durability: str
) -> None:
    whole = chat_completion(1, [{"role": "assistant", "content": "Hello"}])
    upstream.on(CHAT, sse([STREAM]) if stream else whole_json(whole))
    settings = settings_for(tmp_path, upstream_url=upstream.url, queue_limit_bytes=10, durability=durability)
    async with running_proxy(settings) as url:
        for _ in range(3):
            reply = await ask(url, stream=stream)
            assert reply.status_code == 200
            assert reply.content == STREAM if stream else reply.json() == whole
    assert caplog.messages.count("the write queue is full: an exchange is not saved") == 3
    assert rows(tmp_path, "SELECT 1 FROM exchanges") == []


@pytest.mark.parametrize("session", ("named", ""))
async def test_a_chat_goes_on_though_its_session_cannot_be_looked_up(
    tmp_path: Path, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, session: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise StorageError("the index is damaged")

    monkeypatch.setattr(session_lookup, "find_named", broken)
    monkeypatch.setattr(session_lookup, "list_stitched", broken)
    upstream.on(CHAT, sse([STREAM]))
    said = [*ASKED["messages"], {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "and?"}]
    async with running_proxy(settings_for(tmp_path, upstream_url=upstream.url)) as url:
        reply = await ask(url, session=session, messages=said, stream=True)
    assert (reply.status_code, reply.content) == (200, STREAM)
    assert await endings(tmp_path) == [("completed", None)]


LARGE = event(chat_chunk(1, {"content": "x" * 4000}))


@pytest.mark.parametrize(
    ("pieces", "end"),
    (
        ([*HELLO, LARGE[:3000], LARGE[3000:], *WORLD], ("incomplete", "reply_too_large")),
        ([LARGE[:3000], LARGE[3000:], *WORLD], ("failed", "reply_too_large")),
        ([*HELLO, *WORLD, *[b": late\n\n" * 100] * 4], ("completed", None)),
    ),
    ids=("an event", "the first event", "what follows the end"),
)
async def test_a_stream_with_too_much_in_one_piece_passes_and_says_so(
    tmp_path: Path,
    upstream: FakeUpstream,
    monkeypatch: pytest.MonkeyPatch,
    pieces: list[bytes],
    end: tuple[str, str | None],
) -> None:
    monkeypatch.setattr(tee, "_EVENT_BYTES", 2000)
    upstream.on(CHAT, sse(pieces, delay=0.3))
    async with running_proxy(settings_for(tmp_path, upstream_url=upstream.url)) as url:
        reply = await ask(url, stream=True)
    assert reply.content == b"".join(pieces)
    assert await endings(tmp_path) == [end]


@pytest.mark.parametrize("status", (200, 500))
async def test_a_whole_reply_that_is_too_large_passes_and_says_so(
    tmp_path: Path, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(sending, "_WHOLE_BYTES", 1000)
    whole = chat_completion(1, [{"role": "assistant", "content": "x" * 500_000}])
    upstream.on(CHAT, whole_json(whole, status=status))
    async with running_proxy(settings_for(tmp_path, upstream_url=upstream.url)) as url:
        reply = await ask(url)
    assert (reply.status_code, reply.json()) == (status, whole)
    assert await endings(tmp_path) == [("failed", "reply_too_large")]


async def test_a_stream_of_many_small_events_passes_and_says_that_it_is_not_kept_whole(
    tmp_path: Path, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tee, "_STREAM_BYTES", 20000)
    pieces = [*HELLO, *[event(chat_chunk(1, {"content": "x"})) + b": c\n\n"] * 500, *WORLD]
    upstream.on(CHAT, sse(pieces))
    async with running_proxy(settings_for(tmp_path, upstream_url=upstream.url)) as url:
        reply = await ask(url, stream=True)
    assert reply.content == b"".join(pieces)
    assert await endings(tmp_path) == [("incomplete", "reply_too_large")]
