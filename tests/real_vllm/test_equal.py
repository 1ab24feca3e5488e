"""A real vLLM with and without the proxy: the same bytes, and the same results of the official SDKs, everywhere."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.serving import ServerProcess, server_process

VLLM = os.environ.get("STELLARCHAT_LIVE_URL", "")
if not VLLM:
    pytest.skip("STELLARCHAT_LIVE_URL names no vLLM", allow_module_level=True)

JSON = dict[str, Any]
SCHEMA: JSON = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris"]}},
    "required": ["city"],
    "additionalProperties": False,
}
PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
_SAID: JSON = {"role": "user", "content": "The weather in Paris?"}
_FUNCTION: JSON = {"name": "weather", "parameters": SCHEMA, "strict": True}
TOOLS: dict[str, JSON] = {
    "chat": {"tools": [{"type": "function", "function": _FUNCTION}], "tool_choice": "required"},
    "responses": {"tools": [{"type": "function", **_FUNCTION}], "tool_choice": "required"},
    "messages": {
        "tools": [{"name": "weather", "input_schema": SCHEMA, "strict": True}],
        "tool_choice": {"type": "any"},
    },
}
# What differs from one request to the next: ids, and the time. Where a stream's usage is asked for, vLLM moves
# `system_fingerprint` from the last chunk to the usage chunk, which is kept from the caller (docs/how-it-works.md).
_OWN = re.compile(rb'"(?:chatcmpl|resp|msg|rs|fc|call|toolu|cmpl)[-_][\w-]+"|(?<="created":)\d+|(?<="created_at":)\d+')
_MOVED = re.compile(rb',"system_fingerprint":"[^"]*"')
_OWN_KEYS = frozenset(
    {"system_fingerprint", "id", "item_id", "call_id", "response_id", "created", "created_at", "completed_at"}
)
_OURS = frozenset({"x-session-id", "x-session-source", "x-request-id", "x-stellarchat-upstream"})
_DIFFERENT = frozenset({"date", "server", "content-length", "connection"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder: Path = tmp_path_factory.mktemp("proxy")
    with server_process(folder, VLLM) as process:
        yield process


@pytest.fixture(scope="module")
def model() -> str:
    return str(httpx.get(f"{VLLM}/v1/models").json()["data"][0]["id"])


def body_for(endpoint: str, model: str, *, stream: bool, tools: bool) -> JSON:
    said: JSON = {"input": [_SAID]} if endpoint == "responses" else {"messages": [_SAID]}
    limit = {"max_output_tokens" if endpoint == "responses" else "max_tokens": 120 if tools else 16}
    more = TOOLS[endpoint] if tools else {}
    return {"model": model, "temperature": 0, "stream": stream, **said, **limit, **more}


@pytest.mark.parametrize("tools", (False, True))
@pytest.mark.parametrize("stream", (False, True))
@pytest.mark.parametrize("endpoint", PATHS)
def test_bytes_and_headers_are_vllm_s(
    server: ServerProcess, model: str, endpoint: str, stream: bool, tools: bool
) -> None:
    body = body_for(endpoint, model, stream=stream, tools=tools)
    httpx.post(VLLM + PATHS[endpoint], json=body, timeout=120)  # both of the others find their prompt in the cache
    direct, relayed = (httpx.post(url + PATHS[endpoint], json=body, timeout=120) for url in (VLLM, server.url))
    assert relayed.status_code == direct.status_code == 200, relayed.text
    given, sent = (_OWN.sub(b"*", each.content) for each in (relayed, direct))
    assert given == (_MOVED.sub(b"", sent) if endpoint == "chat" and stream else sent)
    of_relayed, of_direct = ({*each.headers.items()} for each in (relayed, direct))
    assert {name for name, _ in of_relayed ^ of_direct} - _DIFFERENT <= _OURS
    if tools:
        assert b"weather" in relayed.content


@pytest.mark.parametrize("endpoint", PATHS)
def test_a_streamed_tool_loop_is_one_session(server: ServerProcess, model: str, endpoint: str) -> None:
    body = body_for(endpoint, model, stream=True, tools=True)
    called = httpx.post(server.url + PATHS[endpoint], json=body, timeout=120)
    events = [json.loads(line[6:]) for line in called.text.splitlines() if line.startswith("data: {")]
    history = body.pop("input", None) or body.pop("messages")
    history = [*history, *_answered(endpoint, events)]
    key = "input" if endpoint == "responses" else "messages"
    del body["tool_choice"]
    after = httpx.post(server.url + PATHS[endpoint], json={**body, key: history}, timeout=120)
    assert after.status_code == 200, after.text
    assert after.headers["x-session-id"] == called.headers["x-session-id"]
    said = httpx.get(f"{server.url}/v1/sessions/{after.headers['x-session-id']}/messages").json()["messages"]
    assert [each["role"] for each in said] == ["user", "assistant", "tool", "assistant"]
    assert said[1]["tool_calls"][0]["function"]["name"] == "weather"
    assert json.loads(said[1]["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris"}


def _answered(endpoint: str, events: list[JSON]) -> list[JSON]:
    """The reply's call and its result, as a client of the endpoint sends them back."""
    if endpoint == "responses":
        calls = [item for item in events[-1]["response"]["output"] if item["type"] == "function_call"]
        return [*calls, {"type": "function_call_output", "call_id": calls[0]["call_id"], "output": "sun"}]
    if endpoint == "chat":
        deltas = [
            call for event in events for choice in event["choices"] for call in choice["delta"].get("tool_calls", ())
        ]
        function = {"name": "weather", "arguments": "".join(each["function"].get("arguments") or "" for each in deltas)}
        call = {"id": deltas[0]["id"], "type": "function", "function": function}
        message = {"role": "assistant", "tool_calls": [call]}
        return [message, {"role": "tool", "tool_call_id": deltas[0]["id"], "content": "sun"}]
    begun = next(event["content_block"] for event in events if event.get("content_block", {}).get("type") == "tool_use")
    given = "".join(
        event["delta"].get("partial_json", "") for event in events if event["type"] == "content_block_delta"
    )
    block = {**begun, "input": json.loads(given)}
    result = {"type": "tool_result", "tool_use_id": begun["id"], "content": "sun"}
    return [{"role": "assistant", "content": [block]}, {"role": "user", "content": [result]}]


def own_removed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: own_removed(each) for key, each in value.items() if key not in _OWN_KEYS}
    return [own_removed(each) for each in value] if isinstance(value, list) else value


def sync_results(url: str, model: str, endpoint: str, *, stream: bool) -> Any:
    import anthropic  # takes seconds: not in every process of the tests

    body = {**body_for(endpoint, model, stream=stream, tools=True)}
    if endpoint == "messages":
        body["extra_body"] = {"temperature": body.pop("temperature")}
        with anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as claude:
            given = claude.messages.create(**body)
            return [each.to_dict() for each in given] if stream else given.to_dict()
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as sdk:
        create: Any = sdk.responses.create if endpoint == "responses" else sdk.chat.completions.create
        given = create(**body)
        return [each.to_dict() for each in given] if stream else given.to_dict()


async def async_results(url: str, model: str, endpoint: str, *, stream: bool) -> Any:
    import anthropic

    body = {**body_for(endpoint, model, stream=stream, tools=True)}
    if endpoint == "messages":
        body["extra_body"] = {"temperature": body.pop("temperature")}
        async with anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as claude:
            given = await claude.messages.create(**body)
            return [each.to_dict() async for each in given] if stream else given.to_dict()
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as sdk:
        create: Any = sdk.responses.create if endpoint == "responses" else sdk.chat.completions.create
        given = await create(**body)
        return [each.to_dict() async for each in given] if stream else given.to_dict()


@pytest.mark.parametrize("stream", (False, True))
@pytest.mark.parametrize("endpoint", PATHS)
def test_the_sync_sdks_give_the_same(server: ServerProcess, model: str, endpoint: str, stream: bool) -> None:
    direct, relayed = (sync_results(url, model, endpoint, stream=stream) for url in (VLLM, server.url))
    assert own_removed(relayed) == own_removed(direct)


@pytest.mark.parametrize("stream", (False, True))
@pytest.mark.parametrize("endpoint", PATHS)
async def test_the_async_sdks_give_the_same(server: ServerProcess, model: str, endpoint: str, stream: bool) -> None:
    direct = await async_results(VLLM, model, endpoint, stream=stream)
    assert own_removed(await async_results(server.url, model, endpoint, stream=stream)) == own_removed(direct)
