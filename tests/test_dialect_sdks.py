"""OpenAI's and Anthropic's own clients on Responses and Messages: the same with and without the proxy, read back."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import ResponseInputItemParam

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


async def responses_dialogue(url: str, *, stream: bool) -> list[Any]:
    """A tool dialogue that resends its history; everything the SDK gave."""
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as sdk:
        history: list[ResponseInputItemParam] = [{"role": "user", "content": TOOL_CALL}]
        given: list[Any] = []
        for _ in range(3):
            if stream:
                stream_ = await sdk.responses.create(model="m", input=history, tools=[TOOL], stream=True)
                events = [event async for event in stream_]
                given += [event.to_dict() for event in events[:-1]]
                assert events[-1].type == "response.completed"
                response = events[-1].response
            else:
                response = await sdk.responses.create(model="m", input=history, tools=[TOOL])
            given.append(response.to_dict())
            for item in response.output:
                history.append(item.to_dict())  # type: ignore[arg-type]
                if item.type == "function_call":
                    history.append({"type": "function_call_output", "call_id": item.call_id, "output": "done"})
            history.append({"role": "user", "content": "and then?"})
        return given


async def messages_dialogue(url: str, *, stream: bool) -> list[Any]:
    import anthropic  # takes seconds: not in every process of the tests

    async with anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as sdk:
        history: list[Any] = [{"role": "user", "content": TOOL_CALL}]
        given: list[Any] = []
        for _ in range(3):
            asked: Any = {"model": "m", "max_tokens": 9, "messages": history, "tools": [ANTHROPIC_TOOL]}
            if stream:
                async with sdk.messages.stream(**asked) as events:
                    given += [event.to_dict() async for event in events]
                    message = await events.get_final_message()
            else:
                message = await sdk.messages.create(**asked)
            given.append(message.to_dict())
            history.append({"role": "assistant", "content": [block.to_dict() for block in message.content]})
            results = [
                {"type": "tool_result", "tool_use_id": block.id, "content": "done"}
                for block in message.content
                if block.type == "tool_use"
            ]
            history.append({"role": "user", "content": [*results, {"type": "text", "text": "and then?"}]})
        return given


@pytest.mark.parametrize("stream", (False, True))
@pytest.mark.parametrize("dialogue", (responses_dialogue, messages_dialogue))
async def test_a_client_cannot_tell_the_proxy_from_its_upstream(tmp_path: Path, dialogue: Any, stream: bool) -> None:
    async with both(tmp_path) as (direct, proxy, _):
        assert await dialogue(proxy, stream=stream) == await dialogue(direct, stream=stream)


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


def test_the_sync_clients_work_the_same(tmp_path: Path) -> None:
    """They are run beside the proxy's loop, in the threads of a pool."""
    import asyncio

    import anthropic

    async def run() -> None:
        async with both(tmp_path) as (_, url, _):
            with openai.OpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as sdk:
                response = await asyncio.to_thread(sdk.responses.create, model="m", input="hi")
                assert response.output_text == "answer 1 to 1 items"
                back = await asyncio.to_thread(sdk.responses.retrieve, response.id)
                assert back.output_text == response.output_text
            with anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as claude:
                asked: Any = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
                message = await asyncio.to_thread(lambda: claude.messages.create(**asked))
                assert message.stop_reason == "end_turn"

    asyncio.run(run())


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
