"""Programs that people chat with, as they are: each resends its history, sends no id, and gets one session."""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import openai
import pytest

from tests.chats import Message, said, user
from tests.world import World, open_world

Say = Callable[[str], Awaitable[str]]

# Both conversations of a client begin alike; the model answers alike.
WORDS = (("hi", "tell me of cats", "and then?"), ("hi", "tell me of dogs", "and then?"))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield await open_world(stack, tmp_path)


async def assert_each_is_a_session(world: World, first: Say, second: Say, *, turns: int = 3) -> None:
    """Hold both conversations in turn, and read them back."""
    said_in = [words[:turns] for words in WORDS]
    for one, two in zip(*said_in, strict=True):
        assert await first(one) == f"you said {one}"
        assert await second(two) == f"you said {two}"
    expected = [[m for word in words for m in (user(word), said(f"you said {word}"))] for words in said_in]
    session_ids = [row[0] for row in world.rows("SELECT session_id FROM sessions ORDER BY session_id")]
    read = [await world.read(session_id, "default_user") for session_id in session_ids]
    assert sorted(map(contents, read)) == sorted(map(contents, expected))
    assert world.count("messages") == 4 * turns
    assert world.rows("SELECT DISTINCT message_count FROM sessions") == [(2 * turns,)]


def contents(messages: list[Message]) -> list[tuple[str, str]]:
    """Who said what."""
    return [(message["role"], message["content"]) for message in messages]


async def run(*command: str, folder: Path, **environment: str) -> str:
    """What a program prints."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode().strip()


@pytest.mark.parametrize("stream", (False, True))
async def test_openai_sdk(world: World, stream: bool) -> None:
    async with openai.AsyncOpenAI(base_url=f"{world.client.base_url}/v1", api_key="none") as client:

        def conversation() -> Say:
            history: list[Message] = []

            async def say(text: str) -> str:
                history.append(user(text))
                if stream:
                    async with client.chat.completions.stream(model="m", messages=history) as events:  # type: ignore[arg-type]
                        completion = await events.get_final_completion()
                        message = completion.choices[0].message
                else:
                    whole = await client.chat.completions.create(model="m", messages=history)  # type: ignore[arg-type]
                    message = whole.choices[0].message  # type: ignore[assignment]
                # As the SDK's users do: the message goes back with every key, the empty ones too.
                history.append(message.model_dump())
                return message.content or ""

            return say

        await assert_each_is_a_session(world, conversation(), conversation())


async def test_langchain(world: World) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(model="m", base_url=f"{world.client.base_url}/v1", api_key="none", max_retries=0)

    def conversation() -> Say:
        history: list[object] = []

        async def say(text: str) -> str:
            history.append(("user", text))
            reply = await model.ainvoke(history)
            history.append(reply)
            return str(reply.content)

        return say

    try:
        await assert_each_is_a_session(world, conversation(), conversation())
    finally:
        await model.root_async_client.close()


async def test_llm_command(world: World, tmp_path: Path) -> None:
    pytest.importorskip("llm")

    def conversation(name: str) -> Say:
        folder = tmp_path / name
        folder.mkdir()
        models = f"- model_id: m\n  model_name: m\n  api_base: {world.client.base_url}/v1\n"
        (folder / "extra-openai-models.yaml").write_text(models)
        goes_on: list[str] = []

        async def say(text: str) -> str:
            reply = await run(
                sys.executable,
                *("-m", "llm", "-m", "m", "--key", "none", *goes_on, text),
                folder=folder,
                LLM_USER_PATH=str(folder),
            )
            goes_on[:] = ["-c"]
            return reply

        return say

    # The command takes two seconds of processor time to start.
    await assert_each_is_a_session(world, conversation("one"), conversation("two"), turns=2)


CURL = """
messages="$(cat history)${1:?}"
reply="$(curl -sS "$URL" -H 'content-type: application/json' -d "{\\"model\\":\\"m\\",\\"messages\\":[$messages]}")"
content="$(printf %s "$reply" | sed 's/.*"content":"\\([^"]*\\)".*/\\1/')"
printf '%s,{"role":"assistant","content":"%s"},' "$messages" "$content" >history
printf %s "$content"
"""


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_curl_in_a_loop(world: World, tmp_path: Path) -> None:
    def conversation(name: str) -> Say:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "history").write_text("")

        async def say(text: str) -> str:
            message = f'{{"role":"user","content":"{text}"}}'
            url = f"{world.client.base_url}/v1/chat/completions"
            return await run("sh", "-euc", CURL, "sh", message, folder=folder, URL=url)

        return say

    await assert_each_is_a_session(world, conversation("one"), conversation("two"))
