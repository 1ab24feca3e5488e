"""The fake upstream does what the tests rely on."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from http.client import HTTPConnection

import httpx
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests import fake_upstream as fake
from tests.fake_upstream import FakeUpstream, fake_upstream

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello there"}]}


@pytest_asyncio.fixture
async def http(upstream: FakeUpstream) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=upstream.url) as http:
        yield http


async def test_chat_model_echoes_with_a_counter_and_keeps_the_connection(
    upstream: FakeUpstream, http: httpx.AsyncClient
) -> None:
    replies = [(await http.post(CHAT, json=HELLO)).json() for _ in range(2)]
    assert [reply["choices"][0]["message"]["content"] for reply in replies] == [
        "echo 1: hello there",
        "echo 2: hello there",
    ]
    assert upstream.connections == 1
    assert upstream.calls[0].json() == HELLO
    assert b"host: " in upstream.calls[0].head.lower()
    assert upstream.calls[0].answered is not None


async def test_sdk_streams_from_it(upstream: FakeUpstream) -> None:
    async with AsyncOpenAI(base_url=f"{upstream.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "a b"}], stream=True, n=2
        )
        texts = ["", ""]
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["echo 1: a b", "echo 1: a b"]


async def test_recorded_stream_comes_back_byte_for_byte(upstream: FakeUpstream, http: httpx.AsyncClient) -> None:
    recorded = fake.event({"a": "é"}) + b": comment\n\n" + fake.DONE
    for split_at in ((), (1, 5, 12, 13)):
        upstream.on(CHAT, fake.replay(recorded, split_at=split_at))
        assert (await http.post(CHAT, json=HELLO)).content == recorded


async def test_death_mid_stream_is_seen_as_fin_or_reset(upstream: FakeUpstream, http: httpx.AsyncClient) -> None:
    upstream.on(CHAT, fake.sse([b"data: 1\n\n", b"data: 2\n\n"], die_after=1))
    with pytest.raises(httpx.RemoteProtocolError):
        await http.post(CHAT, json=HELLO)
    upstream.on(CHAT, fake.sse([b"data: 1\n\n", b"data: 2\n\n"], die_after=1, reset=True))
    with pytest.raises(httpx.ReadError):
        await http.post(CHAT, json=HELLO)


@pytest.mark.parametrize("name", ("garbage", "hang-up", "both-framings", "short"))
async def test_lies_are_told(http: httpx.AsyncClient, name: str) -> None:
    try:
        response = await http.post(CHAT, json=HELLO, headers={"X-Fake": name})
    except httpx.RemoteProtocolError:
        return
    assert {"content-length", "transfer-encoding"} <= set(response.headers)


async def test_keep_alive_connection_closed_without_notice(upstream: FakeUpstream, http: httpx.AsyncClient) -> None:
    for _ in range(2):
        response = await http.post(CHAT, json=HELLO, headers={"X-Fake": "closing"})
        assert "connection" not in response.headers
        await upstream.until(lambda: upstream.calls[-1].answered)
    assert upstream.connections == 2


async def test_caller_who_leaves_is_noticed(upstream: FakeUpstream, http: httpx.AsyncClient) -> None:
    upstream.on(CHAT, fake.until(asyncio.Event(), [b"data: 1\n\n"], []))
    async with http.stream("POST", CHAT, json=HELLO) as response:
        assert await anext(response.aiter_bytes()) == b"data: 1\n\n"
        assert upstream.calls[0].left is None
    await upstream.until(lambda: upstream.calls[0].left)
    assert upstream.calls[0].answered is None


async def test_errors_and_turns(upstream: FakeUpstream, http: httpx.AsyncClient) -> None:
    upstream.on(CHAT, fake.in_turn(fake.vllm_error(503), fake.unauthorized(), fake.chat_model))
    statuses = [(await http.post(CHAT, json=HELLO)).status_code for _ in range(4)]
    assert statuses == [503, 401, 200, 200]
    assert (await http.post(CHAT, content=b"{bad")).status_code == 400


async def test_chunked_request_and_repeated_headers_are_recorded(
    upstream: FakeUpstream, http: httpx.AsyncClient
) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"ab"
        yield b"c"

    headers = [("x-twice", "1"), ("x-twice", "2"), ("x-fake", "mirror")]
    seen = (await http.post("/any?q=1", content=body(), headers=headers)).json()
    assert seen["body"] == "abc"
    assert seen["target"] == "/any?q=1"
    assert [value for name, value in upstream.calls[0].header_list if name == "x-twice"] == ["1", "2"]


async def test_mistake_in_a_behaviour_fails_the_test() -> None:
    async def broken(call: fake.Call, wire: fake.Wire) -> None:
        raise KeyError

    async def ask() -> None:
        async with fake_upstream() as upstream, httpx.AsyncClient() as http:
            upstream.on(CHAT, broken)
            with pytest.raises(httpx.RemoteProtocolError):
                await http.post(upstream.url + CHAT, json=HELLO)

    with pytest.raises(ExceptionGroup):
        await ask()


async def test_own_process_says_ready_and_streams_what_the_header_asks() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fake_upstream", "--port", "0", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    word, port = (await process.stdout.readline()).split()
    assert word == b"ready"
    headers = {"X-Fake": "stream; events=50; rate=1000; size=8"}
    async with httpx.AsyncClient() as http:
        response = await http.post(f"http://127.0.0.1:{int(port)}{CHAT}", json=HELLO, headers=headers)
    assert response.text.count("xxxxxxxx") == 50
    assert response.text.endswith("data: [DONE]\n\n")
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0


async def test_head_has_no_body(upstream: FakeUpstream) -> None:
    def ask() -> tuple[int, str | None]:
        connection = HTTPConnection("127.0.0.1", upstream.port, timeout=10)
        connection.request("HEAD", "/v1/models")
        response = connection.getresponse()
        connection.close()
        return response.status, response.getheader("content-length")

    status, length = await asyncio.to_thread(ask)
    assert status == 200
    assert length not in (None, "0")
