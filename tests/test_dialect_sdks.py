"""OpenAI's and Anthropic's own clients on Responses and Messages: the same with and without the proxy, read back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from proxy.wire import anthropic_blocks, hash_chain, responses_items
from tests.dialect_upstream import TOOL_CALL, every_dialect
from tests.fake_upstream import FakeUpstream, fake_upstream
from tests.serving import running_proxy, settings_for

TOOL: Any = {"type": "function", "name": "tool", "parameters": {"type": "object", "properties": {}}, "strict": False}
ANTHROPIC_TOOL: Any = {"name": "tool", "input_schema": {"type": "object"}}


@asynccontextmanager
async def both(folder: Path) -> AsyncIterator[tuple[str, str, FakeUpstream]]:
    """The upstream's address, and the address of a proxy before another one that answers the same."""
    async with AsyncExitStack() as stack:
        direct, behind = [await stack.enter_async_context(fake_upstream()) for _ in range(2)]
        for upstream in (direct, behind):
            upstream.on("*", every_dialect())
        url = await stack.enter_async_context(running_proxy(settings_for(folder, upstream_url=behind.url)))
        yield direct.url, url, behind


Asks = Callable[..., Awaitable[list[Any]]]


@asynccontextmanager
async def asking(url: str, *, is_sync: bool) -> AsyncIterator[tuple[Asks, Asks]]:
    """How Responses and Messages are asked: what the SDK gives, in the end the whole reply."""
    import anthropic  # takes seconds: not in every process of the tests

    headers: Any = {"api_key": "any", "max_retries": 0}
    if is_sync:
        with (
            openai.OpenAI(base_url=url + "/v1", **headers) as sdk,
            anthropic.Anthropic(base_url=url, **headers) as claude,
        ):
            yield _in_thread(_respond(sdk)), _in_thread(_say(claude))
        return
    async with (
        openai.AsyncOpenAI(base_url=url + "/v1", **headers) as sdk_,
        anthropic.AsyncAnthropic(base_url=url, **headers) as claude_,
    ):

        async def respond(*, stream: bool, **asked: Any) -> list[Any]:
            given: Any = await sdk_.responses.create(stream=stream, **asked)
            return [event async for event in given] if stream else [given]

        async def say(*, stream: bool, **asked: Any) -> list[Any]:
            if not stream:
                return [await claude_.messages.create(**asked)]
            async with claude_.messages.stream(**asked) as events:
                return [*[event async for event in events], await events.get_final_message()]

        yield respond, say


def _respond(sdk: openai.OpenAI) -> Callable[..., list[Any]]:
    def respond(*, stream: bool, **asked: Any) -> list[Any]:
        given: Any = sdk.responses.create(stream=stream, **asked)
        return list(given) if stream else [given]

    return respond


def _say(claude: Any) -> Callable[..., list[Any]]:
    def say(*, stream: bool, **asked: Any) -> list[Any]:
        if not stream:
            return [claude.messages.create(**asked)]
        with claude.messages.stream(**asked) as events:
            return [*events, events.get_final_message()]

    return say


def _in_thread(ask: Callable[..., list[Any]]) -> Asks:
    """A sync client waits in a thread, beside the loop of the proxy."""
    return partial(asyncio.to_thread, ask)


async def responses_dialogue(url: str, *, stream: bool, is_sync: bool = False) -> list[Any]:
    """A tool dialogue that resends its history; everything the SDK gave."""
    async with asking(url, is_sync=is_sync) as (ask, _):
        history: list[Any] = [{"role": "user", "content": TOOL_CALL}]
        given: list[Any] = []
        for _ in range(3):
            *events, last = await ask(model="m", input=history, tools=[TOOL], stream=stream)
            given += [event.to_dict() for event in events]
            assert last.type == "response.completed" if stream else last.status == "completed"
            response = last.response if stream else last
            given.append(response.to_dict())
            for item in response.output:
                history.append(item.to_dict())
                if item.type == "function_call":
                    history.append({"type": "function_call_output", "call_id": item.call_id, "output": "done"})
            history.append({"role": "user", "content": "and then?"})
        return given


async def messages_dialogue(url: str, *, stream: bool, is_sync: bool = False) -> list[Any]:
    async with asking(url, is_sync=is_sync) as (_, ask):
        history: list[Any] = [{"role": "user", "content": TOOL_CALL}]
        given: list[Any] = []
        for _ in range(3):
            *events, message = await ask(
                model="m", max_tokens=9, messages=history, tools=[ANTHROPIC_TOOL], stream=stream
            )
            given += [event.to_dict() for event in events]
            given.append(message.to_dict())
            history.append({"role": "assistant", "content": [block.to_dict() for block in message.content]})
            results = [
                {"type": "tool_result", "tool_use_id": block.id, "content": "done"}
                for block in message.content
                if block.type == "tool_use"
            ]
            history.append({"role": "user", "content": [*results, {"type": "text", "text": "and then?"}]})
        return given


@pytest.mark.parametrize("is_sync", (False, True))
@pytest.mark.parametrize("stream", (False, True))
@pytest.mark.parametrize("dialogue", (responses_dialogue, messages_dialogue))
async def test_a_client_cannot_tell_the_proxy_from_its_upstream(
    tmp_path: Path, dialogue: Any, stream: bool, is_sync: bool
) -> None:
    async with both(tmp_path) as (direct, proxy, behind):
        relayed = await dialogue(proxy, stream=stream, is_sync=is_sync)
        assert relayed == await dialogue(direct, stream=stream, is_sync=is_sync)
        await assert_read_back_through_every_route(proxy, [call.json() for call in behind.calls], relayed)


async def assert_read_back_through_every_route(url: str, requests: list[Any], given: list[Any]) -> None:
    """Each route that shows a chat has what was sent and said, in the shape of that route."""
    last = requests[-1]
    is_response = "input" in last
    replies = [each for each in given if each.get("object") == "response" or each.get("type") == "message"]
    replies = [each for each in replies if each.get("output") or each.get("content")]
    async with (
        httpx.AsyncClient(base_url=url, timeout=30) as http,
        openai.AsyncOpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as sdk,
    ):

        async def read(path: str, **query: Any) -> Any:
            reply = await http.get(path, params={"limit": 100, **query})
            assert reply.status_code == 200, reply.text
            return reply.text if "export" in path else reply.json()

        [session] = (await read("/v1/sessions"))["sessions"]
        route = f"/v1/sessions/{session['session_id']}"
        chat = (await read(f"{route}/messages", format="openai"))["messages"]
        items = (await read(f"{route}/messages", format="responses"))["messages"]
        messages = (await read(f"{route}/messages", format="anthropic"))["messages"]
        expected = [*last["input"], *replies[-1]["output"]] if is_response else last["messages"]
        if is_response:
            assert items == expected
        else:
            assert messages == [*expected, {"role": "assistant", "content": replies[-1]["content"]}]
        assert [message["role"] for message in chat] == [
            "user",
            "assistant",
            "tool",
            "user",
            "assistant",
            "user",
            "assistant",
        ]
        chain = hash_chain.chain("u", chat)
        assert chain == hash_chain.chain("u", responses_items.messages_of(items))
        assert chain == hash_chain.chain("u", anthropic_blocks.messages_of(messages))
        exchanges = (await read(f"{route}/exchanges"))["exchanges"]
        assert {each["completion_id"] for each in exchanges} == {each["id"] for each in replies}
        assert {each["status"] for each in exchanges} == {"completed"}
        [branch] = (await read(f"{route}/branches"))["branches"]
        assert branch["message_count"] == len(chat)
        shown = (await read(f"{route}/messages", branch=branch["message_id"]))["messages"]
        assert [message["message_id"] for message in shown][-1] == branch["message_id"]
        for form in ("jsonl", "openai", "markdown"):
            export = await read(f"{route}/export", format=form)
            assert "and then?" in export
            assert "answer 3" in export
        history = await read("/v1/users/default_user/history")
        assert [len(each["messages"]) for each in history["sessions"]] == [len(chat)]
        assert (await read("/v1/search", q="answer"))["results"]
        stored = [each async for each in sdk.chat.completions.list(limit=1)]
        assert [each.choices[0].message.content for each in stored] == [
            message["content"] for message in chat if message["role"] == "assistant"
        ]
        asked = [each async for each in sdk.chat.completions.messages.list(stored[-1].id, limit=2)]
        assert [message.role for message in asked] == [message["role"] for message in chat[:-1]]
        talk = f"conv_{session['session_id']}"
        listed = [item async for item in sdk.conversations.items.list(talk, order="asc", limit=3)]
        kinds = [item.get("type", "message") for item in items]
        assert [item.type for item in listed] == kinds
        if is_response:
            for each in replies:
                assert (await sdk.responses.retrieve(each["id"])).to_dict()["output"] == each["output"]
            given_items = [
                item async for item in sdk.responses.input_items.list(replies[-1]["id"], order="asc", limit=2)
            ]
            assert [item.type for item in given_items] == [item.get("type", "message") for item in last["input"]]


@pytest.mark.parametrize("stream", (False, True))
async def test_a_response_is_read_back_with_the_sdk(tmp_path: Path, stream: bool) -> None:
    async with both(tmp_path) as (_, url, upstream):
        given = await responses_dialogue(url, stream=stream)
        calls = [call.json()["input"] for call in upstream.calls]
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as sdk:
            sent = [each for each in given if each.get("object") == "response"]
            for each, asked in zip(sent, calls, strict=True):
                back = await sdk.responses.retrieve(each["id"])
                assert back.to_dict()["output"] == each["output"]
                assert back.usage is not None
                assert back.usage.to_dict() == each["usage"]
                items = [item async for item in sdk.responses.input_items.list(each["id"], order="asc", limit=2)]
                assert [item.type for item in items] == [item.get("type", "message") for item in asked]
                newest = (await sdk.responses.input_items.list(each["id"])).data
                assert [item.type for item in newest] == [item.type for item in items[::-1]][:20]
            following = await sdk.responses.create(model="m", input="more", previous_response_id=sent[-1]["id"])
            assert upstream.calls[-1].json()["input"][:-1] == [*calls[-1], *sent[-1]["output"]]
            await sdk.responses.delete(following.id)
            assert (await sdk.responses.cancel(sent[-1]["id"])).id == sent[-1]["id"]


async def test_a_stream_is_resumed_with_the_sdk(tmp_path: Path) -> None:
    async with (
        both(tmp_path) as (_, url, _),
        openai.AsyncOpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as sdk,
    ):
        events = [event async for event in await sdk.responses.create(model="m", input="hi", stream=True)]
        response_id = events[0].response.id  # type: ignore[union-attr]
        rest = await sdk.responses.retrieve(response_id, stream=True, starting_after=3)
        assert [event.to_dict() async for event in rest] == [event.to_dict() for event in events[4:]]


async def test_errors_of_upstream_and_of_our_own_are_the_sdks_own(tmp_path: Path) -> None:
    import anthropic

    async with running_proxy(settings_for(tmp_path)) as url:
        async with anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as claude:
            with pytest.raises(anthropic.InternalServerError, match="Upstream") as raised:
                await claude.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}])
            request_id = raised.value.response.headers["x-request-id"]
            assert isinstance(raised.value.body, dict)
            assert (raised.value.body["type"], raised.value.body["request_id"]) == ("error", request_id)
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as sdk:
            with pytest.raises(openai.InternalServerError, match="Upstream"):
                await sdk.responses.create(model="m", input="hi")


async def test_the_demo_speaks_every_dialect(tmp_path: Path) -> None:
    import anthropic

    async with running_proxy(settings_for(tmp_path, demo=True)) as url:
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as sdk:
            first = await sdk.responses.create(model="demo", input="hi")
            assert first.output_text.startswith("You said: hi")
            more: Any = {"input": [{"role": "user", "content": "more"}], "previous_response_id": first.id}
            events = [event async for event in await sdk.responses.create(model="demo", stream=True, **more)]
            assert events[-1].type == "response.completed"
            assert "turn 2" in events[-1].response.output_text
        async with anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as claude:
            asked: Any = {"model": "demo", "max_tokens": 99, "messages": [{"role": "user", "content": "hi"}]}
            message = await claude.messages.create(**asked)
            async with claude.messages.stream(**asked) as stream:
                assert (await stream.get_final_text()).startswith("You said: hi")
            assert message.stop_reason == "end_turn"
