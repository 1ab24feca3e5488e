"""Against a real vLLM: `STELLARCHAT_LIVE_URL=http://127.0.0.1:8100 pytest tests/test_live.py`. Skipped without it."""

import asyncio
import os
import re
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.serving import running_proxy, settings_for

LIVE_URL = os.environ.get("STELLARCHAT_LIVE_URL", "")
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather in a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]

pytestmark = pytest.mark.skipif(not LIVE_URL, reason="STELLARCHAT_LIVE_URL names no vLLM")


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[str]:
    async with running_proxy(settings_for(tmp_path, upstream_url=LIVE_URL)) as url:
        yield url


@pytest.fixture
async def client(proxy: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{proxy}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
async def model(client: openai.AsyncOpenAI) -> str:
    return (await client.models.list()).data[0].id


async def stored(proxy: str, session_id: str) -> list[dict[str, Any]]:
    """What the session routes say was said."""
    async with httpx.AsyncClient(base_url=proxy) as http:
        response = await http.get(f"/v1/sessions/{session_id}/messages")
    messages: list[dict[str, Any]] = response.raise_for_status().json()["messages"]
    return messages


async def session_of(client: openai.AsyncOpenAI, **arguments: Any) -> tuple[Any, str]:
    """A chat's result, a stream read to its end, and its session."""
    raw = await client.chat.completions.with_raw_response.create(**arguments)
    result = raw.parse()
    if arguments.get("stream"):
        result = [chunk async for chunk in result]
    return result, raw.headers["x-session-id"]


async def running_requests() -> float:
    """How many requests vLLM works on, by its own metrics."""
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"{LIVE_URL}/metrics")).text
    return sum(float(value) for value in re.findall(r"^vllm:num_requests_running\{[^}]*\} (\S+)$", text, re.MULTILINE))


async def test_whole_and_streamed_chats_are_the_same_as_without_the_proxy(
    client: openai.AsyncOpenAI, proxy: str, model: str
) -> None:
    arguments = {"model": model, "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    async with openai.AsyncOpenAI(base_url=f"{LIVE_URL}/v1", api_key="none") as direct:
        expected = (await direct.chat.completions.create(**arguments)).choices[0].message
    whole, first = await session_of(client, **arguments)
    assert whole.choices[0].message == expected
    chunks, second = await session_of(client, **arguments, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.content
    for session_id in (first, second):
        said = [(message["role"], message["content"]) for message in await stored(proxy, session_id)]
        assert said == [("user", QUESTION[0]["content"]), ("assistant", expected.content)]


async def test_turns_are_stitched_without_an_id(client: openai.AsyncOpenAI, proxy: str, model: str) -> None:
    messages = list(QUESTION)
    for turn in ("And of Italy?", "And of Spain?"):
        reply, session_id = await session_of(client, model=model, messages=messages, max_tokens=12)
        messages += [reply.choices[0].message.model_dump(exclude_none=True), {"role": "user", "content": turn}]
    said = [message["content"] for message in await stored(proxy, session_id)]
    assert said == [message["content"] for message in messages[:-1]]


@pytest.mark.parametrize("stream", (False, True))
async def test_a_tool_call_is_stored(client: openai.AsyncOpenAI, proxy: str, model: str, *, stream: bool) -> None:
    _, session_id = await session_of(
        client,
        model=model,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        max_tokens=60,
        temperature=0,
        stream=stream,
    )
    call = (await stored(proxy, session_id))[-1]["tool_calls"][0]
    assert call["function"]["name"] == "get_weather"
    assert call["id"]


async def test_two_choices_are_two_messages(client: openai.AsyncOpenAI, proxy: str, model: str) -> None:
    chunks, session_id = await session_of(
        client, model=model, messages=QUESTION, n=2, max_tokens=8, temperature=0.9, stream=True
    )
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    reply = (await stored(proxy, session_id))[-1]
    assert reply["siblings"] == 2
    assert reply["content"] == texts[0]


async def test_errors_are_the_same_as_without_the_proxy(client: openai.AsyncOpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="nope", messages=QUESTION)
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model=model, messages=QUESTION, temperature=-5)
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "word " * 4000}], stream=True
        )


async def test_vllm_stops_generating_when_the_caller_leaves(proxy: str, model: str, tmp_path: Path) -> None:
    body = {"model": model, "messages": QUESTION, "max_tokens": 1500, "stream": True, "ignore_eos": True}
    async with httpx.AsyncClient(base_url=proxy, timeout=60) as http:
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            session_id = response.headers["x-session-id"]
            pieces = aiter(response.aiter_bytes())
            for _ in range(10):
                await anext(pieces)
            assert await running_requests() == 1
        deadline = time.monotonic() + 10
        while await running_requests() and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        assert await running_requests() == 0
    reply = (await stored(proxy, session_id))[-1]
    assert (reply["role"], reply["status"]) == ("assistant", "incomplete")
    assert reply["content"]
    connection = sqlite3.connect(tmp_path / "stellarchat.db")
    assert connection.execute("SELECT status, finish_reason FROM exchanges").fetchall() == [("incomplete", None)]
    connection.close()
