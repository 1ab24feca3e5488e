"""The rest of a response's stream: while it comes, after its end, and after everybody has died."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.dialect_upstream import events_text, response_events, response_of
from tests.fake_upstream import FakeUpstream, until, vllm_error
from tests.serving import ServerProcess, running_proxy, settings_for

JSON = dict[str, Any]
RESPONSES = "/v1/responses"
ASKED: JSON = {"model": "m", "input": "hi", "stream": True}
RESPONSE = response_of(1, {"model": "m", "input": "a question that is answered with some events"})
EVENTS = response_events(RESPONSE)
TEXTS = events_text(EVENTS)
HALF = len(EVENTS) // 2


@pytest.fixture
async def http(upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings = settings_for(tmp_path, upstream_url=upstream.url, flush_interval_seconds=0.1)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


def numbers_of(body: str) -> list[int]:
    return [json.loads(line[6:])["sequence_number"] for line in body.splitlines() if line.startswith("data: ")]


async def rest_of(http: httpx.AsyncClient, after: int) -> httpx.Response:
    return await http.get(f"{RESPONSES}/{RESPONSE['id']}", params={"stream": "true", "starting_after": str(after)})


async def ask(http: httpx.AsyncClient, count: int) -> str:
    """Ask, and leave when so many events have come."""
    body = ""
    async with http.stream("POST", RESPONSES, json=ASKED) as reply:
        async for text in reply.aiter_text():
            body += text
            if body.count("\n\n") >= count:
                break
    return body


async def test_an_ended_stream_is_given_again_from_any_event_on(
    http: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    upstream.on(RESPONSES, until(_open_gate(), TEXTS, []))
    whole = (await http.post(RESPONSES, json=ASKED)).content
    assert whole == b"".join(TEXTS)
    again = await http.get(f"{RESPONSES}/{RESPONSE['id']}?stream=true")
    assert again.content == whole
    assert again.headers["content-type"].startswith("text/event-stream")
    for after in (0, HALF, len(EVENTS) - 2, len(EVENTS) - 1):
        assert (await rest_of(http, after)).content == b"".join(TEXTS[after + 1 :])
    assert (await http.get(f"{RESPONSES}/{RESPONSE['id']}?stream=true&starting_after=x")).status_code == 400


async def test_a_stream_in_progress_is_followed_to_its_end(http: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    gate = asyncio.Event()
    upstream.on(RESPONSES, until(gate, TEXTS[:HALF], TEXTS[HALF:]))
    asked = asyncio.create_task(http.post(RESPONSES, json=ASKED))
    await upstream.until(lambda: upstream.calls)
    await asyncio.sleep(0.3)  # some of it is on disk
    following = asyncio.create_task(rest_of(http, 1))
    await asyncio.sleep(0.3)
    gate.set()
    assert (await following).content == b"".join(TEXTS[2:])
    assert (await asked).content == b"".join(TEXTS)


async def test_a_caller_who_lost_its_stream_gets_the_rest_where_it_finishes(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    gate = asyncio.Event()
    upstream.on(RESPONSES, until(gate, TEXTS[:HALF], TEXTS[HALF:]))
    settings = settings_for(tmp_path, upstream_url=upstream.url, on_disconnect="finish")
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as http:
        seen = numbers_of(await ask(http, 3))
        following = asyncio.create_task(rest_of(http, seen[-1]))
        await asyncio.sleep(0.3)
        gate.set()
        assert numbers_of((await following).text) == list(range(seen[-1] + 1, len(EVENTS)))


async def test_a_stream_that_was_cut_is_given_as_far_as_it_came_and_can_be_continued(
    http: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    upstream.on(RESPONSES, until(asyncio.Event(), TEXTS[:HALF], []))
    await ask(http, HALF)
    await upstream.until(lambda: upstream.calls[-1].left)
    rest = await rest_of(http, 1)
    assert numbers_of(rest.text) == list(range(2, HALF + 1))  # the last says that it was cut
    assert json.loads(rest.text.split("data: ")[-1])["type"] == "error"
    shown = (await http.get(f"{RESPONSES}/{RESPONSE['id']}")).json()
    assert (shown["status"], shown["incomplete_details"]) == ("incomplete", {"reason": "interrupted"})
    upstream.on(RESPONSES, vllm_error(400))
    await http.post(RESPONSES, json={"input": "go on", "previous_response_id": RESPONSE["id"]})
    given = upstream.calls[-1].json()["input"]
    assert [item.get("type", "message") for item in given] == ["message", "reasoning", "message", "message"]
    assert not any(item.get("status") in ("incomplete", "in_progress") for item in given)


async def test_a_response_in_progress_is_cancelled(http: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    upstream.on(RESPONSES, until(asyncio.Event(), TEXTS[:HALF], []))
    asked = asyncio.create_task(ask(http, len(EVENTS)))
    await upstream.until(lambda: upstream.calls)
    await asyncio.sleep(0.2)
    shown = await http.post(f"{RESPONSES}/{RESPONSE['id']}/cancel")
    assert (shown.status_code, shown.json()["status"]) == (200, "cancelled")
    await upstream.until(lambda: upstream.calls[0].left)
    with pytest.raises(httpx.RemoteProtocolError):
        await asked
    again = await http.post(f"{RESPONSES}/{RESPONSE['id']}/cancel")
    assert again.json() == shown.json()


async def test_kill_minus_nine_leaves_the_rest_of_the_stream(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.on(RESPONSES, until(asyncio.Event(), TEXTS[:HALF], []))
    server = ServerProcess(tmp_path, upstream.url, STELLARCHAT_FLUSH_INTERVAL_SECONDS="0.1")
    await asyncio.to_thread(server.start)
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
        asked = asyncio.create_task(ask(http, len(EVENTS)))
        async with asyncio.timeout(20):
            while not _is_written(tmp_path / "stellarchat.db"):
                await asyncio.sleep(0.05)
        server.kill()
        with pytest.raises(httpx.HTTPError):
            await asked
    await asyncio.to_thread(server.start)
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            rest = await rest_of(http, 1)
            assert numbers_of(rest.text) == list(range(2, HALF + 1))
            assert rest.content.startswith(b"".join(TEXTS[2:HALF]))
    finally:
        assert await asyncio.to_thread(server.stop) == 0


def _is_written(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as connection:
        pieces = connection.execute("SELECT data FROM exchange_fragments ORDER BY sequence").fetchall()
    return b"".join(piece for (piece,) in pieces) == b"".join(TEXTS[:HALF])


def _open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate
