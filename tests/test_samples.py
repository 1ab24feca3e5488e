"""What a real vLLM was asked and answered, and all that a dialect can say: read back as it was sent."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.wire.sse import Decoder
from tests.dialect_upstream import events_text, message_events, response_events
from tests.fake_upstream import FakeUpstream, sse, whole, whole_json
from tests.long import some_of
from tests.serving import running_proxy, settings_for
from tests.wire.corpus import BLOCKS, ITEMS, MESSAGES, OUTPUT, SYSTEM
from tests.wire.test_split_points import MESSAGE, RESPONSE

JSON = dict[str, Any]
STREAMS = Path(__file__).parent / "streams"
REQUESTS: dict[str, JSON] = json.loads((STREAMS / "requests.json").read_text())
RESPONSES, MESSAGES_PATH, COMPLETIONS, CHAT = (
    "/v1/responses",
    "/v1/messages",
    "/v1/completions",
    "/v1/chat/completions",
)
FORMS = {RESPONSES: "responses", MESSAGES_PATH: "anthropic", COMPLETIONS: "openai", CHAT: "openai"}
SAMPLES = [
    (path.name, path.read_bytes(), REQUESTS[name])
    for path in sorted([*STREAMS.glob("*_*"), *STREAMS.glob("dialects/*_*")])
    if (name := path.stem.partition("_")[2]) in REQUESTS
]


@pytest.fixture
async def http(upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    recorded = ("chat", "responses", "messages", "completions")
    settings = settings_for(tmp_path, upstream_url=upstream.url, record=recorded)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


def path_of(name: str) -> str:
    kind = name.partition(".")[0].split("_")[1]
    return {"responses": RESPONSES, "messages": MESSAGES_PATH, "completion": COMPLETIONS}.get(kind, CHAT)


async def branches_of(http: httpx.AsyncClient, session_id: str, form: str) -> list[list[Any]]:
    """The messages of each branch, in the form of an endpoint."""
    listed = (await http.get(f"/v1/sessions/{session_id}/branches")).json()["branches"]
    found = []
    for branch in reversed(listed):
        query: dict[str, Any] = {"format": form, "branch": branch["message_id"], "limit": 1000}
        found.append((await http.get(f"/v1/sessions/{session_id}/messages", params=query)).json()["messages"])
    return found


def without_nulls(message: JSON) -> JSON:
    return {key: value for key, value in message.items() if value is not None}


# A reader of replies of its own, as plain as can be


def answers(path: str, name: str, body: bytes, request: JSON) -> list[Any]:
    """What each choice says, in its dialect."""
    events = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: {")]
    reply = {} if events else json.loads(body)
    if path == RESPONSES:
        return [events[-1]["response"]["output"] if events else reply["output"]]
    if path == MESSAGES_PATH:
        deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
        content = [{"type": "text", "text": "".join(deltas)}] if events else reply["content"]
        return [[{"role": "assistant", "content": content}]]
    chunks = [choice for event in events for choice in event["choices"]]
    indexes = sorted({choice["index"] for choice in chunks})
    if path == COMPLETIONS:
        texts = ["".join(each["text"] for each in chunks if each["index"] == index) for index in indexes]
        texts = texts or [choice["text"] for choice in reply["choices"]]
        prompt = request["prompt"] if request.get("echo") else ""
        return [[{"role": "assistant", "content": text.removeprefix(prompt)}] for text in texts]
    if events:
        return [[streamed([each["delta"] for each in chunks if each["index"] == index])] for index in indexes]
    return [[without_nulls(choice["message"])] for choice in reply["choices"]]


def streamed(deltas: list[JSON]) -> JSON:
    """A message of chunks: its text, and at most one call."""
    calls = [call for delta in deltas for call in delta.get("tool_calls") or ()]
    message: JSON = {"role": "assistant"}
    if any(delta.get("content") is not None for delta in deltas):
        message["content"] = "".join(delta.get("content") or "" for delta in deltas)
    if calls:
        arguments = "".join(call["function"].get("arguments") or "" for call in calls)
        message["tool_calls"] = [{**calls[0], "function": {**calls[0]["function"], "arguments": arguments}}]
        del message["tool_calls"][0]["index"]
    return message


def asked(path: str, request: JSON) -> list[Any]:
    if path == RESPONSES:
        return [{"role": "user", "content": request["input"]}]
    if path == COMPLETIONS:
        prompt = request["prompt"]
        return [{"role": "user", "content": each} for each in (prompt if isinstance(prompt, list) else [prompt])]
    messages = request.get("messages")
    return messages if isinstance(messages, list) else []


async def test_each_sample_passes_as_it_is_and_is_read_back_as_it_was_sent(
    http: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    for name, body, request in some_of(SAMPLES, every=3):
        path, is_error = path_of(name), name.endswith(".json") and "error" in json.loads(body)
        if name.endswith(".sse"):
            upstream.on(path, sse([event.raw for event in Decoder().feed(body)]))
        else:
            json_type = [("content-type", "application/json")]
            upstream.on(path, whole(body, status=400 if is_error else 200, headers=json_type))
        reply = await http.post(path, json=request, headers={"X-Session-Id": name})
        assert reply.content == body, name
        if not asked(path, request):  # refused, and nothing was said
            assert (await http.get(f"/v1/sessions/{name}")).status_code == 404, name
            continue
        [exchange] = (await http.get(f"/v1/sessions/{name}/exchanges")).json()["exchanges"]
        read = await branches_of(http, name, FORMS[path])
        if is_error:
            assert (exchange["status"], exchange["error"]) == ("failed", json.loads(body)["error"]), name
            assert read == [asked(path, request)], name
        else:
            assert exchange["status"] == "completed", name
            expected = [[*asked(path, request), *answer] for answer in answers(path, name, body, request)]
            assert read == expected, name
            if path == RESPONSES:
                back = (await http.get(f"{path}/{exchange['completion_id']}")).json()
                assert back["output"] == expected[0][1:], name
    assert len(SAMPLES) > 60


# All that a dialect can say


@pytest.mark.parametrize("stream", (False, True))
async def test_items_of_every_type_are_read_back_as_sent(
    http: httpx.AsyncClient, upstream: FakeUpstream, stream: bool
) -> None:
    upstream.on(RESPONSES, sse(events_text(response_events(RESPONSE))) if stream else whole_json(RESPONSE))
    request = {"model": "m", "instructions": "Be \0 brief.", "input": ITEMS, "stream": stream}
    text = json.dumps(request)  # a lone surrogate is no text to httpx
    reply = await http.post(RESPONSES, content=text, headers={"X-Session-Id": "s"})
    assert upstream.calls[-1].body == text.encode()
    assert reply.status_code == 200
    query: dict[str, str | int] = {"format": "responses", "limit": 1000}
    shown = (await http.get("/v1/sessions/s/messages", params=query)).json()
    assert shown["instructions"] == request["instructions"]
    assert shown["messages"] == [*ITEMS, *OUTPUT]
    assert (await http.get(f"{RESPONSES}/resp_1")).json()["output"] == OUTPUT
    items: list[JSON] = []
    page: JSON = {"has_more": True}
    while page["has_more"]:
        after = {"after": items[-1]["id"]} if items else {}
        query = {"order": "asc", "limit": 7, **after}
        page = (await http.get(f"{RESPONSES}/resp_1/input_items", params=query)).json()
        items += page["data"]
    objects = [item for item in ITEMS if isinstance(item, dict)]
    assert [item["type"] for item in items] == [item.get("type", "message") for item in objects]


@pytest.mark.parametrize("stream", (False, True))
async def test_blocks_of_every_type_are_read_back_as_sent(
    http: httpx.AsyncClient, upstream: FakeUpstream, stream: bool
) -> None:
    upstream.on(MESSAGES_PATH, sse(events_text(message_events(MESSAGE))) if stream else whole_json(MESSAGE))
    request = {"model": "m", "max_tokens": 9, "system": SYSTEM, "messages": MESSAGES, "stream": stream}
    assert (await http.post(MESSAGES_PATH, json=request, headers={"X-Session-Id": "s"})).status_code == 200
    query: dict[str, str | int] = {"format": "anthropic", "limit": 1000}
    shown = (await http.get("/v1/sessions/s/messages", params=query)).json()
    assert shown["system"] == SYSTEM
    assert shown["messages"] == [*MESSAGES, {"role": "assistant", "content": BLOCKS}]


@pytest.mark.parametrize(
    "prompt", ("text", "", ["one", "two"], [1, 2, 3], [[1, 2], [3]], ["one", "one"], ["\U0001f600\0"])
)
async def test_prompts_of_every_kind_are_read_back_as_sent(
    http: httpx.AsyncClient, upstream: FakeUpstream, prompt: Any
) -> None:
    are_several = isinstance(prompt, list) and not all(isinstance(each, int) for each in prompt)
    texts = [" said"] * (len(prompt) if are_several else 1)
    choices = [{"index": index, "text": text, "finish_reason": "stop"} for index, text in enumerate(texts)]
    upstream.on(COMPLETIONS, whole_json({"id": "cmpl-1", "choices": choices}))
    request = {"model": "m", "prompt": prompt}
    assert (await http.post(COMPLETIONS, json=request, headers={"X-Session-Id": "s"})).status_code == 200
    prompts = prompt if are_several else [prompt]
    for read in await branches_of(http, "s", "openai"):
        assert [message["content"] for message in read] == [*prompts, " said"]
