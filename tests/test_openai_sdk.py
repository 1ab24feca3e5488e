"""OpenAI's own SDK, with and without the proxy: only base_url differs, and every result is the same."""

import io
import json
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

import httpx
import openai
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI
from pydantic import BaseModel

from tests.proxy_process import ProxyProcess, run_proxy
from tests.raw_http import Address
from tests.scripted_upstream import Received, ScriptedUpstream, Step, respond

# --- a model whose answer depends on nothing but the request ----------------------------------------------------------

WEATHER_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
}
CLOCK_CALL = {"id": "call_2", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "total_tokens": 18,
    "completion_tokens_details": {"reasoning_tokens": 2},
    "prompt_tokens_details": {"cached_tokens": 4},
}
LOGPROBS = {"content": [{"token": "Hi", "logprob": -0.25, "bytes": [72, 105], "top_logprobs": []}], "refusal": None}

Message = dict[str, Any]


def whole_message(asked: dict[str, Any], index: int) -> Message:
    message: Message = {"role": "assistant", "content": f"answer {index}: 你好 👋\n", "refusal": None}
    match asked["model"]:
        case "tools":
            message |= {"content": None, "tool_calls": [WEATHER_CALL, CLOCK_CALL]}
        case "reasoning":
            message |= {"reasoning": "I think.", "unknown_key": {"deep": [1, None]}}
        case "refusing":
            message |= {"content": None, "refusal": "I cannot."}
        case "json":
            message |= {"content": '{"city": "Paris", "degrees": 21}'}
    return message


def finish_reason(asked: dict[str, Any]) -> str:
    return {"tools": "tool_calls", "cut": "length"}.get(asked["model"], "stop")


def whole_completion(asked: dict[str, Any]) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "message": whole_message(asked, index),
            "logprobs": LOGPROBS if asked.get("logprobs") else None,
            "finish_reason": finish_reason(asked),
            "stop_reason": None,
        }
        for index in range(asked.get("n", 1))
    ]
    return {
        "id": "chatcmpl-fixed",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": asked["model"],
        "choices": choices,
        "usage": USAGE,
        "system_fingerprint": "fp",
    }


def deltas_of(message: Message) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": ""}
    for key in ("reasoning", "content", "refusal"):
        text = message.get(key) or ""
        yield from ({key: text[i : i + 3]} for i in range(0, len(text), 3))
    for index, call in enumerate(message.get("tool_calls", ())):
        arguments = call["function"]["arguments"]
        yield {"tool_calls": [{**call, "index": index, "function": {**call["function"], "arguments": ""}}]}
        for character in arguments:
            yield {"tool_calls": [{"index": index, "function": {"arguments": character}}]}


def chunks_of(asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    base = {
        "id": "chatcmpl-fixed",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": asked["model"],
    }
    for index in range(asked.get("n", 1)):
        for delta in deltas_of(whole_message(asked, index)):
            logprobs = LOGPROBS if asked.get("logprobs") and delta.get("content") else None
            yield {**base, "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}]}
    for index in range(asked.get("n", 1)):
        yield {**base, "choices": [{"index": index, "delta": {}, "finish_reason": finish_reason(asked)}]}
    if (asked.get("stream_options") or {}).get("include_usage"):
        yield {**base, "choices": [], "usage": USAGE}


def event_stream(*data: str) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    for line in data:
        event = f"data: {line}\n\n".encode()
        yield b"%x\r\n%s\r\n" % (len(event), event)
    yield b"0\r\n\r\n"


def refuse(status: int, body: object) -> bytes:
    headers = b"Content-Type: application/json\r\nRetry-After: 0\r\nX-Reason: because\r\n"
    return respond(json.dumps(body).encode(), status=b"%d Refused" % status, headers=headers)


def error_body(status: int) -> dict[str, Any]:
    return {"error": {"message": f"refused: {status}", "type": "BadRequestError", "param": "model", "code": status}}


def answer_chat(asked: dict[str, Any], received: Received) -> Iterator[bytes | Step]:
    model = asked["model"]
    if model.startswith("status-"):
        yield refuse(int(model[7:]), error_body(int(model[7:])))
    elif model == "unauthorized":
        yield refuse(401, {"error": "Unauthorized"})
    elif model == "html":
        yield respond(b"<html>busy</html>", status=b"503 Busy", headers=b"Content-Type: text/html\r\n")
    elif model == "once-500" and received.head.values(b"x-stainless-retry-count") == [b"0"]:
        yield refuse(500, error_body(500))
    elif model == "silent":
        yield Step.AWAIT_HANGUP
    elif model == "gone":
        yield Step.CLOSE
    elif not asked.get("stream"):
        yield respond(json.dumps(whole_completion(asked)).encode())
    else:
        chunks = [json.dumps(chunk) for chunk in chunks_of(asked)]
        ending = [json.dumps(error_body(500))] if model == "broken" else []
        yield from event_stream(*chunks[: 4 if ending else None], *ending, "[DONE]")


def answer_json(received: Received) -> object:
    match received.target:
        case b"/v1/models":
            return {
                "object": "list",
                "data": [{"id": "a", "object": "model", "created": 1, "owned_by": "vllm", "root": "/m"}],
            }
        case b"/v1/models/org%2Fname" | b"/v1/models/org/name":
            return {"id": "org/name", "object": "model", "created": 1, "owned_by": "vllm"}
        case b"/v1/embeddings":
            return {
                "object": "list",
                "model": "e",
                "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -1.25]}],
                "usage": {"prompt_tokens": 1, "total_tokens": 1},
            }
        case b"/v1/audio/transcriptions":
            return {"text": f"{len(received.body) > 1000} {received.head.values(b'content-type')[0][:19].decode()}"}
        case b"/v1/completions":
            choice = {"index": 0, "text": " there", "finish_reason": "stop", "logprobs": None}
            return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
        case _:
            return None


def model(received: Received) -> Iterator[bytes | Step]:
    target = received.target.partition(b"?")[0]
    if target == b"/v1/chat/completions":
        yield from answer_chat(json.loads(received.body), received)
    elif target == b"/v1/completions" and json.loads(received.body).get("stream"):
        yield from event_stream(json.dumps(answer_json(received)), "[DONE]")
    elif target == b"/v1/audio/speech":
        yield respond(bytes(range(256)), headers=b"Content-Type: audio/wav\r\n")
    elif (body := answer_json(received)) is not None:
        yield respond(json.dumps(body).encode(), headers=b"Content-Type: application/json\r\nX-Seen: 1\r\n")
    else:
        yield refuse(404, {"detail": "Not Found"})


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    upstream = ScriptedUpstream()
    upstream.script = model
    yield upstream
    upstream.close()


@pytest.fixture(scope="module")
def proxy(upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    with run_proxy(tmp_path_factory.mktemp("proxy"), upstream_url=upstream.url) as proxy:
        yield proxy


# --- calls, and what comes of them ------------------------------------------------------------------------------------


class Weather(BaseModel):
    city: str
    degrees: int


@dataclass(frozen=True, slots=True)
class Call:
    """A method of the client by its dotted name, and its arguments."""

    method: str
    arguments: dict[str, Any]
    read: Literal["value", "chunks", "events", "raw", "binary", "lines"] = "value"
    client: dict[str, Any] = field(default_factory=dict)


HI: list[Message] = [{"role": "user", "content": "Hi, 世界"}]
HISTORY: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is the weather?"}]},
    {"role": "assistant", "content": None, "tool_calls": [WEATHER_CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "21 degrees"},
    {"role": "user", "content": "And the time?", "name": "ann"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def chat(model: str = "m", *, messages: list[Message] = HI, **arguments: Any) -> dict[str, Any]:
    return {"model": model, "messages": messages, **arguments}


CREATE = "chat.completions.create"
ASKED_USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}

CHATS = {
    "whole": Call(CREATE, chat()),
    "history": Call(CREATE, chat(messages=HISTORY)),
    "tools": Call(CREATE, chat("tools", tools=TOOLS, tool_choice="auto")),
    "n=2": Call(CREATE, chat(n=2)),
    "logprobs": Call(CREATE, chat(logprobs=True, top_logprobs=2)),
    "reasoning": Call(CREATE, chat("reasoning")),
    "refusal": Call(CREATE, chat("refusing")),
    "length": Call(CREATE, chat("cut", max_completion_tokens=5)),
    "parameters": Call(CREATE, chat(temperature=0.5, seed=2**40, stop=["a", "b"], metadata={"k": "v"}, user="someone")),
    "unknown fields": Call(CREATE, chat(extra_body={"top_k": 5, "chat_template_kwargs": {"thinking": True}})),
    "stream": Call(CREATE, chat(stream=True), read="chunks"),
    "stream with usage": Call(CREATE, chat(**ASKED_USAGE), read="chunks"),
    "stream of history": Call(CREATE, chat(messages=HISTORY, stream=True), read="chunks"),
    "stream of tools": Call(CREATE, chat("tools", tools=TOOLS, stream=True), read="chunks"),
    "stream n=2": Call(CREATE, chat(n=2, stream=True), read="chunks"),
    "stream of logprobs": Call(CREATE, chat(logprobs=True, stream=True), read="chunks"),
    "stream of reasoning": Call(CREATE, chat("reasoning", stream=True), read="chunks"),
    "stream of a refusal": Call(CREATE, chat("refusing", stream=True), read="chunks"),
    "stream helper": Call("chat.completions.stream", chat(), read="events"),
    "stream helper with tools": Call("chat.completions.stream", chat("tools", tools=TOOLS), read="events"),
    "stream helper with a format": Call(
        "chat.completions.stream", chat("json", response_format=Weather), read="events"
    ),
    "parse": Call("chat.completions.parse", chat("json", response_format=Weather)),
    "raw response": Call("chat.completions.with_raw_response.create", chat(), read="raw"),
    "streaming response": Call("chat.completions.with_streaming_response.create", chat(stream=True), read="lines"),
}

FAILURES = {
    **{
        f"status {status}": Call(CREATE, chat(f"status-{status}"))
        for status in (400, 401, 403, 404, 409, 422, 429, 500, 503)
    },
    **{
        f"stream status {status}": Call(CREATE, chat(f"status-{status}", stream=True), read="chunks")
        for status in (400, 500)
    },
    "an error that is a string": Call(CREATE, chat("unauthorized")),
    "an error page": Call(CREATE, chat("html")),
    "a timeout": Call(CREATE, chat("silent"), client={"timeout": 0.5}),
    "a stream that breaks": Call(CREATE, chat("broken", stream=True), read="chunks"),
    "a raw refusal": Call("chat.completions.with_raw_response.create", chat("status-429"), read="raw"),
}

OTHERS = {
    "a retry": Call(CREATE, chat("once-500"), client={"max_retries": 1}),
    "models": Call("models.list", {}),
    "a model with a slash": Call("models.retrieve", {"model": "org/name"}),
    "a model that is not": Call("models.retrieve", {"model": "nope"}),
    "completion": Call("completions.create", {"model": "m", "prompt": "hi"}),
    "completion stream": Call("completions.create", {"model": "m", "prompt": "hi", "stream": True}, read="chunks"),
    "embeddings": Call("embeddings.create", {"model": "e", "input": ["a"], "encoding_format": "float"}),
    "a route that is not": Call("moderations.create", {"input": "x"}),
    "speech": Call("audio.speech.create", {"model": "s", "voice": "alloy", "input": "hi"}, read="binary"),
    "headers and query": Call(
        "models.list",
        {"extra_headers": {"X-Extra": "1"}, "extra_query": {"a": ["1", "2"], "b[c]": "d e"}},
        read="value",
    ),
}


def base_url(address: Address) -> str:
    return "http://{}:{}/v1".format(*address)


def client_options(address: Address, call: Call) -> dict[str, Any]:
    return {"base_url": base_url(address), "api_key": "sk-anything", "max_retries": 0, "timeout": 15.0, **call.client}


# loading the certificates of the machine takes longer than all else in a call, and no call here needs one
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def connect(address: Address, call: Call | None = None) -> OpenAI:
    options = client_options(address, call or Call("", {}))
    return OpenAI(**options, http_client=DefaultHttpxClient(verify=NO_CERTIFICATES))


def connect_async(address: Address, call: Call) -> AsyncOpenAI:
    return AsyncOpenAI(**client_options(address, call), http_client=DefaultAsyncHttpxClient(verify=NO_CERTIFICATES))


def describe(value: Any) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(warnings=False)
    return value


def describe_error(error: openai.OpenAIError) -> dict[str, object]:
    names = ("message", "body", "code", "param", "type", "status_code")
    headers = error.response.headers if isinstance(error, openai.APIStatusError) else {}
    return {"class": type(error), "x-reason": headers.get("x-reason")} | {n: getattr(error, n, None) for n in names}


def describe_raw(raw: Any) -> object:
    kept = {name: value for name, value in raw.headers.items() if name not in ADDED_HEADERS}
    return (raw.status_code, kept, describe(raw.parse()))


ADDED_HEADERS = ("x-request-id", "x-session-id", "x-session-source")


def run_sync(address: Address, call: Call) -> object:
    with connect(address, call) as client:
        try:
            result = attrgetter(call.method)(client)(**call.arguments)
            match call.read:
                case "chunks":
                    return [describe(chunk) for chunk in result]
                case "events":
                    with result as stream:
                        return [*map(describe, stream), describe(stream.get_final_completion())]
                case "lines":
                    with result as response:
                        return list(response.iter_lines())
                case "raw":
                    return describe_raw(result)
                case "binary":
                    return result.read()
            return describe(result)
        except openai.OpenAIError as error:
            return describe_error(error)


async def run_async(address: Address, call: Call) -> object:
    async with connect_async(address, call) as client:
        try:
            result = attrgetter(call.method)(client)(**call.arguments)
            match call.read:
                case "chunks":
                    return [describe(chunk) async for chunk in await result]
                case "events":
                    async with result as stream:
                        return [
                            *[describe(event) async for event in stream],
                            describe(await stream.get_final_completion()),
                        ]
                case "lines":
                    async with result as response:
                        return [line async for line in response.iter_lines()]
                case "raw":
                    return describe_raw(await result)
                case "binary":
                    return await (await result).aread()
            return describe(await result)
        except openai.OpenAIError as error:
            return describe_error(error)


ALL_CALLS = CHATS | FAILURES | OTHERS


@pytest.mark.parametrize("call", ALL_CALLS.values(), ids=ALL_CALLS)
def test_the_sync_client_gets_the_same_from_both(upstream: ScriptedUpstream, proxy: ProxyProcess, call: Call) -> None:
    assert run_sync(proxy.address, call) == run_sync(upstream.address, call)


@pytest.mark.parametrize("call", ALL_CALLS.values(), ids=ALL_CALLS)
async def test_the_async_client_gets_the_same_from_both(
    upstream: ScriptedUpstream, proxy: ProxyProcess, call: Call
) -> None:
    assert await run_async(proxy.address, call) == await run_async(upstream.address, call)


ERROR_CLASSES = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
    500: openai.InternalServerError,
}


@pytest.mark.parametrize(("status", "error"), ERROR_CLASSES.items())
def test_each_error_class_is_raised(proxy: ProxyProcess, status: int, error: type[openai.APIStatusError]) -> None:
    with connect(proxy.address) as client, pytest.raises(error) as caught:
        client.chat.completions.create(model=f"status-{status}", messages=[{"role": "user", "content": "x"}])
    assert caught.value.request_id
    assert caught.value.body == error_body(status)["error"]


def test_an_upstream_that_hangs_up_is_an_internal_server_error(proxy: ProxyProcess) -> None:
    with (
        connect(proxy.address) as client,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        client.chat.completions.create(model="gone", messages=[{"role": "user", "content": "x"}])
    assert caught.value.status_code == 502


def test_a_file_is_uploaded_as_it_is(upstream: ScriptedUpstream, proxy: ProxyProcess) -> None:
    def transcribe(address: Address) -> str:
        with connect(address) as client:
            file = ("a.wav", io.BytesIO(b"RIFF" * 5000))
            return client.audio.transcriptions.create(model="w", file=file).text

    assert transcribe(proxy.address) == transcribe(upstream.address) == "True multipart/form-data"


# --- what is there afterwards -----------------------------------------------------------------------------------------


def read(proxy: ProxyProcess, path: str, *, user: str | None = None, **query: str) -> Any:
    response = httpx.get(
        proxy.url + path, verify=NO_CERTIFICATES, params=query, headers={"X-User-Id": user} if user else {}
    )
    assert response.status_code == 200, response.text
    return response.json()


def without_nulls(message: Message) -> Message:
    return {key: value for key, value in message.items() if value is not None}


def said(message: Message) -> Message:
    """What of a stored message came from the chat."""
    names = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning", "refusal", "unknown_key")
    return without_nulls({name: message.get(name) for name in names})


def replies_to(call: Call) -> list[Message]:
    return [whole_message(call.arguments, index) for index in range(call.arguments.get("n", 1))]


@pytest.mark.parametrize("name", CHATS)
def test_the_session_holds_what_was_said(proxy: ProxyProcess, name: str) -> None:
    call = CHATS[name]
    session_id = "sdk " + name
    session_id = session_id.replace(" ", "-")
    headers = {"X-Session-Id": session_id}
    outcome = run_sync(proxy.address, Call(call.method, {**call.arguments, "extra_headers": headers}, call.read))
    assert not (isinstance(outcome, dict) and "class" in outcome)

    user = call.arguments.get("user")
    page = read(proxy, f"/v1/sessions/{session_id}/messages", user=user)
    replies = replies_to(call)
    if "helper" in name or name.startswith("stream"):
        for reply in replies:  # as the deltas say it: their first content is "", and there is none for the unknown key
            reply.pop("unknown_key", None)
            reply["content"] = reply["content"] or ""
    stored = [said(message) for message in page["messages"]]
    assert stored[:-1] == [said(message) for message in call.arguments["messages"]]
    assert stored[-1] in [said(reply) for reply in replies]
    assert page["total"] == len(stored)
    assert page["session_info"]["external_id"] == session_id
    assert page["messages"][-1]["tokens"] > 0
    assert page["messages"][-1]["siblings"] == len(replies)

    (exchange,) = read(proxy, f"/v1/sessions/{session_id}/exchanges", user=user)["exchanges"]
    assert exchange["status"] == "completed"
    assert exchange["finish_reason"] == finish_reason(call.arguments)


@pytest.mark.parametrize("name", ("status 400", "stream status 500", "a stream that breaks", "a timeout"))
def test_a_failed_chat_is_kept_with_its_status(proxy: ProxyProcess, name: str) -> None:
    call = FAILURES[name]
    session_id = "sdk-failed-" + name.replace(" ", "-")
    headers = {"X-Session-Id": session_id}
    run_sync(proxy.address, Call(call.method, {**call.arguments, "extra_headers": headers}, call.read, call.client))
    (exchange,) = read_when_closed(proxy, session_id)
    assert exchange["status"] in ("failed", "incomplete")
    assert exchange["finish_reason"] is None
    page = read(proxy, f"/v1/sessions/{session_id}/messages")
    assert said(page["messages"][0]) == HI[0]


def read_when_closed(proxy: ProxyProcess, session_id: str) -> list[dict[str, Any]]:
    """The exchanges once none is in progress: a caller who left cannot know when that is."""
    for _ in range(100):
        response = httpx.get(f"{proxy.url}/v1/sessions/{session_id}/exchanges", verify=NO_CERTIFICATES)
        exchanges: list[dict[str, Any]] = response.json().get("exchanges", [])
        if exchanges and all(exchange["status"] != "in_progress" for exchange in exchanges):
            return exchanges
    raise AssertionError(f"still open: {response.text}")


SESSION_FIELDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "header": lambda name: {"extra_headers": {"X-Session-Id": name}},
    "body": lambda name: {"extra_body": {"session_id": name}},
    "metadata": lambda name: {"metadata": {"session_id": name}},
    "vendor": lambda name: {"extra_headers": {"X-Conversation-Id": name}},
}


@pytest.mark.parametrize("source", SESSION_FIELDS)
def test_two_turns_share_a_session_named_in_any_place(proxy: ProxyProcess, source: str) -> None:
    name = f"sdk-turns-{source}"
    history: list[Any] = []
    with connect(proxy.address) as client:
        for question in ("first?", "second?"):
            history.append({"role": "user", "content": question})
            raw = client.chat.completions.with_raw_response.create(
                model="m", messages=history, user="sdk-turns", **SESSION_FIELDS[source](name)
            )
            assert raw.headers["x-session-source"] == source
            history.append(raw.parse().choices[0].message.model_dump(exclude_none=True))
    page = read(proxy, f"/v1/sessions/{name}/messages", user="sdk-turns")
    assert [said(message) for message in page["messages"]] == history
    assert page["session_info"]["session_id"] == raw.headers["x-session-id"]
    listed = read(proxy, "/v1/sessions", user="sdk-turns", user_id="sdk-turns", limit="1000")["sessions"]
    assert name in [session["external_id"] for session in listed]


def test_a_chat_that_is_not_to_be_stored_leaves_nothing(proxy: ProxyProcess) -> None:
    before = read(proxy, "/v1/sessions", limit="1")["total"]
    with connect(proxy.address) as client:
        raw = client.chat.completions.with_raw_response.create(**chat(store=False))
    assert "x-session-id" not in raw.headers
    assert read(proxy, "/v1/sessions", limit="1")["total"] == before
