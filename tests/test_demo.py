"""The demo: chats with it through OpenAI's SDK, and its wire format beside that of a real vLLM."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import APIError, AsyncOpenAI, NotFoundError, OpenAI

from proxy.demo import MODEL, serve_demo
from tests.long import examples

# The demo keeps no state: one server serves all these tests.
pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]

HELLO = {"role": "user", "content": "Hello, 你好 world"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url() -> AsyncIterator[str]:
    async with serve_demo(pause_seconds=0) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url) as http:
        yield http


async def chat(http: httpx.AsyncClient, **body: object) -> Json:
    response = await http.post("/v1/chat/completions", json={"model": MODEL, "messages": [HELLO]} | body)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def chunks(http: httpx.AsyncClient, **body: object) -> list[Json]:
    response = await http.post("/v1/chat/completions", json={"messages": [HELLO], "stream": True} | body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


async def test_sdk_gets_an_echo_that_names_the_demo(client: AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello!"}])
    content = reply.choices[0].message.content
    assert content is not None
    assert content.startswith("You said: Hello!")
    assert "demo" in content
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == len(re.findall(r"\w+|[^\w\s]|\n(?=\n)", content))


async def test_sdk_stream_gives_the_same_text_as_the_whole_reply(client: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    whole = await chat(http)
    stream = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": str(HELLO["content"])}], stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]
    assert {" 你", "好", " world"} <= set(pieces)


async def test_sync_sdk_works_too(url: str) -> None:
    def ask() -> str | None:
        with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            assert [model.id for model in client.models.list()] == [MODEL]
            reply = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])
            return reply.choices[0].message.content

    assert "You said: Hi" in str(await asyncio.to_thread(ask))


async def test_second_turn_is_counted(http: httpx.AsyncClient) -> None:
    messages = [HELLO, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Again"}]
    content = (await chat(http, messages=messages))["choices"][0]["message"]["content"]
    assert content.startswith("You said: Again")
    assert "turn 2" in content


@pytest.mark.parametrize(("choice", "finish_reason"), (("required", "tool_calls"), (NAMED, "stop")))
async def test_forced_tool_is_called_whole_and_streamed(
    http: httpx.AsyncClient, choice: object, finish_reason: str
) -> None:
    whole = await chat(http, tools=[WEATHER], tool_choice=choice)
    [call] = whole["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    deltas = await chunks(http, tools=[WEATHER], tool_choice=choice)
    calls = [c["choices"][0]["delta"]["tool_calls"][0] for c in deltas if "tool_calls" in c["choices"][0]["delta"]]
    assert "".join(call["function"].get("arguments", "") for call in calls) == '{"city": "Paris"}'
    assert len(calls) > 2
    assert deltas[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == finish_reason


async def test_sdk_tool_conversation_ends_with_the_tool_s_answer(client: AsyncOpenAI) -> None:
    tool: Any = WEATHER
    first = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Rain?"}], tools=[tool], tool_choice="required"
    )
    messages: list[Any] = [{"role": "user", "content": "Rain?"}, first.choices[0].message]
    calls = first.choices[0].message.tool_calls
    assert calls is not None
    messages.append({"role": "tool", "tool_call_id": calls[0].id, "content": "sunny"})
    second = await client.chat.completions.create(model=MODEL, messages=messages, tools=[tool])
    assert second.choices[0].message.content == "The tool answered: sunny"


async def test_two_choices_take_turns_in_a_stream(http: httpx.AsyncClient) -> None:
    deltas = await chunks(http, n=2, stream_options={"include_usage": True})
    order = [delta["choices"][0]["index"] for delta in deltas[:-1]]
    assert order[:6] == [0, 1, 0, 1, 0, 1]
    whole = await chat(http, n=2)
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    for index, choice in enumerate(whole["choices"]):
        mine = [delta["choices"][0] for delta in deltas[:-1] if delta["choices"][0]["index"] == index]
        assert "".join(each["delta"].get("content", "") for each in mine) == choice["message"]["content"]
    assert deltas[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


@pytest.mark.parametrize("name", ("max_tokens", "max_completion_tokens"))
async def test_token_limit_ends_with_length(http: httpx.AsyncClient, name: str) -> None:
    whole = await chat(http, **{name: 3})
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["choices"][0]["message"]["content"] == "You said:"
    assert whole["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("stop", ("world", ["nothing", "world"]))
async def test_stop_sequence_ends_the_text_before_it(http: httpx.AsyncClient, stop: object) -> None:
    choice = (await chat(http, stop=stop))["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "world")
    assert choice["message"]["content"] == "You said: Hello, 你好 "


async def test_json_object_and_json_schema_give_json(http: httpx.AsyncClient) -> None:
    free = await chat(http, response_format={"type": "json_object"})
    assert json.loads(free["choices"][0]["message"]["content"])["you_said"] == HELLO["content"]
    schema = {
        "$defs": {"pet": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 2}}}},
        "type": "object",
        "properties": {"pets": {"type": "array", "items": {"$ref": "#/$defs/pet"}}, "old": {"type": "boolean"}},
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    shaped = await chat(http, response_format=wanted)
    assert json.loads(shaped["choices"][0]["message"]["content"]) == {"pets": [{"name": "de"}], "old": False}


async def test_schema_without_an_end_is_answered(http: httpx.AsyncClient) -> None:
    endless = {"properties": {name: {"$ref": "#"} for name in "abcdefgh"}}
    reply = await chat(http, response_format={"type": "json_schema", "json_schema": {"schema": endless}}, max_tokens=9)
    assert reply["choices"][0]["finish_reason"] == "length"


async def test_logprobs_name_every_token(http: httpx.AsyncClient) -> None:
    choice = (await chat(http, logprobs=True, top_logprobs=2))["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(each["token"] for each in content) == choice["message"]["content"]
    assert all(bytes(each["bytes"]).decode() == each["token"] for each in content)
    assert {len(each["top_logprobs"]) for each in content} == {2}


async def test_request_id_becomes_the_completion_s_id(http: httpx.AsyncClient) -> None:
    response = await http.post(
        "/v1/chat/completions", json={"messages": [HELLO]}, headers={"X-Request-Id": "my-req-42"}
    )
    assert response.json()["id"] == "chatcmpl-my-req-42"


async def test_sdk_sees_vllm_s_errors(client: AsyncOpenAI) -> None:
    with pytest.raises(NotFoundError) as unknown:
        await client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "Hi"}], stream=True)
    assert unknown.value.param == "model"
    with pytest.raises(APIError, match="maximum context length"):
        await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello " * 9000}])


@pytest.mark.parametrize(
    "body",
    (
        b"[]",
        b"1",
        b'"x"',
        b"\xff\xfe",
        b"[" * 100_000,
        b"1" * 5000,
        b'{"messages":[1]}',
        b'{"messages":[{}],"tools":1}',
        b'{"messages":[{}],"n":0}',
        b'{"messages":[{}],"n":1000000}',
        b'{"messages":[{}],"max_tokens":0}',
        b'{"messages":[{}],"temperature":-1}',
        b'{"messages":[{}],"stream":"x"}',
        b'{"messages":[{}],"model":7}',
    ),
)
async def test_odd_body_is_a_400(http: httpx.AsyncClient, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    assert (await http.post("/v1/chat/completions", content=body, headers=headers)).status_code == 400


async def test_lone_surrogate_and_odd_parts_are_echoed(http: httpx.AsyncClient) -> None:
    body = b'{"messages":[{"role":"user","content":["\\ud800",{"type":"image_url"},{"type":"text","text":"ok"}]}]}'
    response = await http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert "? [image_url] ok" in response.json()["choices"][0]["message"]["content"]


async def test_caller_who_leaves_does_not_stop_the_next(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as http:
        body = {"messages": [{"role": "user", "content": "word " * 2000}], "stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            assert await anext(response.aiter_bytes())
        assert (await chat(http))["choices"]


async def test_demo_ends_with_its_block_while_a_connection_is_kept_alive() -> None:
    async with httpx.AsyncClient() as http:
        async with serve_demo() as url:
            assert (await http.get(f"{url}/health")).status_code == 200
        with pytest.raises(httpx.ConnectError):
            await http.get(f"{url}/health")


STREAMS = Path(__file__).parent / "streams"
CHOICE = {"max_tokens": 8, "temperature": 0}


def shape(value: object) -> object:
    """A JSON value with its leaves replaced by their types, and lists by the shapes they hold."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(shape(inner), sort_keys=True) for inner in value})
    return "null" if value is None else "number" if isinstance(value, int | float) else type(value).__name__


def recorded_chunks(name: str) -> list[Json]:
    events = (STREAMS / name).read_text().split("\n\n")
    return [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]


@pytest.mark.parametrize(
    ("name", "body"),
    (
        ("default_chat.json", CHOICE),
        ("default_chat_n2.json", {"n": 2}),
        ("default_chat_logprobs.json", CHOICE | {"logprobs": True, "top_logprobs": 2}),
    ),
)
async def test_whole_reply_has_the_shape_of_a_real_vllm_s(http: httpx.AsyncClient, name: str, body: Json) -> None:
    assert shape(await chat(http, **body)) == shape(json.loads((STREAMS / name).read_text()))


@pytest.mark.parametrize(("name", "choice"), (("required", "required"), ("named", NAMED)))
async def test_whole_tool_call_has_the_shape_of_a_real_vllm_s(
    http: httpx.AsyncClient, name: str, choice: object
) -> None:
    real = json.loads((STREAMS / f"flags_chat_tool_{name}.json").read_text())
    mine = await chat(http, tools=[WEATHER], tool_choice=choice)
    assert shape(mine["choices"]) == shape(real["choices"])
    assert mine["choices"][0]["finish_reason"] == real["choices"][0]["finish_reason"]


@pytest.mark.parametrize(
    ("name", "body"),
    (
        ("default_chat_stream.sse", CHOICE),
        ("default_chat_stream_usage.sse", CHOICE | {"stream_options": {"include_usage": True}}),
        (
            "default_chat_stream_usage_cont.sse",
            CHOICE | {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        ),
        ("default_chat_stream_n2.sse", CHOICE | {"n": 2, "stream_options": {"include_usage": True}}),
        ("default_chat_stream_logprobs.sse", CHOICE | {"logprobs": True, "top_logprobs": 2}),
        ("flags_chat_stream_tool_named.sse", {"tools": [WEATHER], "tool_choice": NAMED}),
    ),
)
async def test_every_kind_of_chunk_has_the_shape_of_a_real_vllm_s(
    http: httpx.AsyncClient, name: str, body: Json
) -> None:
    real, mine = recorded_chunks(name), await chunks(http, **body)
    assert shape(mine) == shape(real)
    assert shape(mine[0]) == shape(real[0])
    assert shape(mine[-1]) == shape(real[-1])


@pytest.mark.parametrize(
    ("name", "method", "path", "body"),
    (
        ("err_404", "GET", "/v1/nope", ""),
        ("err_405", "GET", "/v1/chat/completions", ""),
        ("err_badjson", "POST", "/v1/chat/completions", "{bad"),
        ("err_missing_messages", "POST", "/v1/chat/completions", '{"model":"smollm2"}'),
        ("err_type", "POST", "/v1/chat/completions", '{"model":"smollm2","messages":"x"}'),
        ("err_model", "POST", "/v1/chat/completions", '{"model":"nope","messages":[]}'),
        ("err_model_stream", "POST", "/v1/chat/completions", '{"model":"nope","messages":[],"stream":true}'),
        ("err_temp", "POST", "/v1/chat/completions", '{"messages":[],"temperature":0,"temperature":-1}'),
        ("err_max_tokens", "POST", "/v1/chat/completions", '{"messages":[],"max_tokens":1000000}'),
        (
            "err_too_long",
            "POST",
            "/v1/chat/completions",
            '{"messages":[{"role":"user","content":"' + "hello " * 9000 + '"}]}',
        ),
    ),
)
async def test_error_is_word_for_word_a_real_vllm_s(
    http: httpx.AsyncClient, name: str, method: str, path: str, body: str
) -> None:
    real = (STREAMS / f"default_{name}.json").read_text()
    for theirs, ours in (("smollm2", MODEL), ("2048", "8192"), ("2049", "8193")):
        real = real.replace(theirs, ours)
    response = await http.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert response.text == real
    assert response.status_code == json.loads(real).get("error", {}).get("code", response.status_code)
    assert response.headers["content-type"] == "application/json"


async def test_body_without_a_json_content_type_is_refused_as_a_real_vllm_does(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", content=b"{}")
    assert (response.status_code, response.text) == (400, (STREAMS / "flags_err_content_type_only.json").read_text())


async def test_head_is_not_allowed_as_in_a_real_vllm(http: httpx.AsyncClient) -> None:
    response = await http.head("/v1/models")
    assert (response.status_code, response.headers["allow"]) == (405, "GET")


async def test_text_completion_ends_with_a_usage_chunk(http: httpx.AsyncClient) -> None:
    body = {"prompt": "one two", "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    response = await http.post("/v1/completions", json=body)
    *events, done, _ = response.text.split("\n\n")
    bodies = [json.loads(event.removeprefix("data: ")) for event in events]
    assert done == "data: [DONE]"
    assert [body["choices"][0]["text"] for body in bodies[:-1]] == [" You", " wrote", ":"]
    assert bodies[-1]["usage"] == {"prompt_tokens": 2, "total_tokens": 5, "completion_tokens": 3}
    whole = (await http.post("/v1/completions", json={"prompt": ["a", "b"]})).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]


KNOWN = re.findall(
    r"\S+",
    """messages role user assistant tool content text type model stream stream_options include_usage n max_tokens
    max_completion_tokens stop tools tool_choice function name parameters required response_format json_schema
    json_object schema properties items object array string integer enum anyOf $ref # minItems minLength maxLength
    logprobs top_logprobs temperature""",
)
WORDS = st.sampled_from(KNOWN) | st.text(max_size=9)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=examples(100), deadline=None)
@given(body=st.dictionaries(st.sampled_from(KNOWN), JSON))
async def test_no_body_makes_it_fail(http: httpx.AsyncClient, body: Json) -> None:
    content = json.dumps({"messages": [HELLO]} | body)
    response = await http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400, 404), response.text
