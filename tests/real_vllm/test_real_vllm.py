"""A real vLLM behind the proxy: every dialect, one conversation over all of them, and what survives a crash."""

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import permutations
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving import ServerProcess, server_process

VLLM = os.environ.get("STELLARCHAT_LIVE_URL", "")
if not VLLM:
    pytest.skip("STELLARCHAT_LIVE_URL names no vLLM", allow_module_level=True)

JSON = dict[str, Any]
ENDPOINTS = ("chat", "responses", "messages")
SHAPES = {"chat": "openai", "responses": "responses", "messages": "anthropic"}
SCHEMA: JSON = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris"]}}}
TURNS = 20


@pytest.fixture(scope="module")
def model() -> str:
    return str(httpx.get(f"{VLLM}/v1/models").json()["data"][0]["id"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with server_process(tmp_path, VLLM) as process:
        yield process


@pytest.fixture
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def rows(server: ServerProcess, query: str) -> list[Any]:
    with closing(sqlite3.connect(server.folder / "stellarchat.db")) as database:
        return database.execute(query).fetchall()


def say(http: httpx.Client, model: str, endpoint: str, turns: list[tuple[str, str]]) -> tuple[str, str]:
    """The reply to a history that is sent whole, and the session of it."""
    messages = [{"role": role, "content": text} for role, text in turns]
    asked: JSON = {"model": model, "temperature": 0}
    match endpoint:
        case "chat":
            reply = http.post("/v1/chat/completions", json={**asked, "messages": messages, "max_tokens": 12})
            text = reply.json()["choices"][0]["message"]["content"]
        case "responses":
            reply = http.post("/v1/responses", json={**asked, "input": messages, "max_output_tokens": 12})
            text = "".join(part["text"] for item in reply.json()["output"] for part in item["content"])
        case _:
            reply = http.post("/v1/messages", json={**asked, "messages": messages, "max_tokens": 12})
            text = "".join(block["text"] for block in reply.json()["content"])
    return text, reply.headers["x-session-id"]


@pytest.mark.parametrize("order", tuple(permutations(ENDPOINTS)))
def test_a_conversation_over_all_endpoints_is_one(
    http: httpx.Client, server: ServerProcess, model: str, order: tuple[str, ...]
) -> None:
    turns: list[tuple[str, str]] = []
    sessions = set()
    for number, endpoint in enumerate((*order, order[0])):
        turns.append(("user", f"Question {number}: say something short."))
        text, session = say(http, model, endpoint, turns)
        turns.append(("assistant", text))
        sessions.add(session)
    assert len(sessions) == 1
    assert rows(server, "SELECT count(*) FROM messages") == [(len(turns),)]
    for shape in SHAPES.values():
        back = http.get(f"/v1/sessions/{session}/messages", params={"format": shape}).json()
        texts = json.dumps(back, ensure_ascii=False)
        assert [text for _, text in turns if json.dumps(text, ensure_ascii=False)[1:-1] not in texts] == []


def test_a_chain_of_responses_with_tools_where_vllm_alone_says_404(
    http: httpx.Client, server: ServerProcess, model: str
) -> None:
    parameters = {**SCHEMA, "required": ["city"], "additionalProperties": False}
    tool: JSON = {"type": "function", "name": "weather", "parameters": parameters, "strict": True}
    asked: JSON = {"model": model, "tools": [tool], "temperature": 0, "max_output_tokens": 8}
    first = http.post("/v1/responses", json={**asked, "input": "Hi, I am Ann."}).json()
    refused = httpx.post(f"{VLLM}/v1/responses", json={**asked, "input": "x", "previous_response_id": first["id"]})
    assert refused.status_code == 404
    last, said, calls_made = first, 2, 0
    for turn in range(TURNS):
        calls = [item["call_id"] for item in last["output"] if item["type"] == "function_call"]
        new: list[JSON] = [{"type": "function_call_output", "call_id": call_id, "output": "sun"} for call_id in calls]
        new = new or [{"role": "user", "content": f"Turn {turn}: the weather in Paris?"}]
        forced = {"tool_choice": "required", "max_output_tokens": 120} if turn % 4 == 0 else {}
        is_stream = turn % 3 != 2
        body = {**asked, **forced, "input": new, "previous_response_id": last["id"], "stream": is_stream}
        reply = http.post("/v1/responses", json=body)
        assert reply.status_code == 200, reply.text
        assert reply.headers["x-session-source"] == "response"
        lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: {")]
        last = json.loads(lines[-1])["response"] if is_stream else reply.json()
        said += len(new) + 1
        calls_made += len(calls)
    assert calls_made >= TURNS // 4
    assert rows(server, "SELECT count(DISTINCT session_id), count(*) FROM messages") == [(1, said)]
    items = http.get(f"/v1/responses/{last['id']}/input_items", params={"limit": 100, "order": "asc"}).json()
    assert items["data"][0]["content"] in ("Hi, I am Ann.", [{"type": "input_text", "text": "Hi, I am Ann."}])
    assert sum(item["type"] == "function_call_output" for item in items["data"]) == calls_made


def test_a_forced_tool_call_and_its_result_on_chats(http: httpx.Client, server: ServerProcess, model: str) -> None:
    # Without `strict` vLLM 0.32 holds the model to the call's form alone, not to the schema. Where `max_tokens` leaves
    # no room for the whole call (SmolLM2 needs about 50), its parser finds none, and the reply is text.
    parameters = {**SCHEMA, "required": ["city"], "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters, "strict": True}}
    choice = {"type": "function", "function": {"name": "weather"}}
    history: list[JSON] = [{"role": "user", "content": "The weather in Paris?"}]
    asked: JSON = {"model": model, "tools": [tool], "max_tokens": 200, "temperature": 0}
    reply = http.post("/v1/chat/completions", json={**asked, "messages": history, "tool_choice": choice})
    message = reply.json()["choices"][0]["message"]
    assert message.get("tool_calls"), reply.text
    history += [message, {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sun"}]
    after = http.post("/v1/chat/completions", json={**asked, "messages": history})
    assert (after.status_code, after.headers["x-session-id"]) == (200, reply.headers["x-session-id"])
    assert rows(server, "SELECT count(*) FROM messages") == [(4,)]


def test_a_tool_loop_on_messages(http: httpx.Client, server: ServerProcess, model: str) -> None:
    tool = {"name": "weather", "input_schema": SCHEMA}
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sun", "is_error": False}
    turns: list[JSON] = [
        {"role": "user", "content": "The weather in Paris?"},
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, use]},
        {"role": "user", "content": [result]},
    ]
    asked: JSON = {"model": model, "tools": [tool], "max_tokens": 8}
    reply = http.post("/v1/messages", json={**asked, "messages": turns})
    assert reply.status_code == 200, reply.text
    back = http.get(f"/v1/sessions/{reply.headers['x-session-id']}/messages", params={"format": "anthropic"}).json()
    assert back["messages"][:3] == turns


def test_completions_are_recorded_where_asked(tmp_path: Path, model: str) -> None:
    with server_process(tmp_path, VLLM, STELLARCHAT_RECORD="completions") as server:
        asked: JSON = {"model": model, "prompt": "Once upon", "max_tokens": 8}
        for stream in (False, True):
            httpx.post(f"{server.url}/v1/completions", json={**asked, "stream": stream}, timeout=60)
        assert rows(server, "SELECT status, completion_tokens FROM exchanges") == [("completed", 8)] * 2


def begin(server: ServerProcess, model: str, *, events: int) -> list[JSON]:
    """Ask for a long response, and leave when so many events have come."""
    asked: JSON = {"model": model, "input": "Tell a very long story.", "stream": True, "max_output_tokens": 300}
    came: list[JSON] = []
    with httpx.stream("POST", f"{server.url}/v1/responses", json={**asked, "temperature": 0}, timeout=60) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: "):
                came.append(json.loads(line[6:]))
                if len(came) == events:
                    if events > 40:
                        time.sleep(1.5)  # what has streamed is written down once a second
                        server.kill()
                    break
    return came


def rest_of(server: ServerProcess, came: list[JSON]) -> list[JSON]:
    query: JSON = {"stream": "true", "starting_after": came[-1]["sequence_number"]}
    reply = httpx.get(f"{server.url}/v1/responses/{came[0]['response']['id']}", params=query, timeout=60)
    return [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: ")]


def test_the_rest_of_a_stream_whose_caller_left(tmp_path: Path, model: str) -> None:
    with server_process(tmp_path, VLLM, STELLARCHAT_ON_DISCONNECT="finish") as server:
        came = begin(server, model, events=20)
        rest = rest_of(server, came)
        numbers = [each["sequence_number"] for each in (*came, *rest)]
        assert numbers == list(range(len(numbers)))
        assert rest[-1]["response"]["status"] in ("completed", "incomplete")


def test_the_rest_of_a_stream_after_a_kill(server: ServerProcess, model: str) -> None:
    came = begin(server, model, events=50)
    server.start()
    rest = rest_of(server, came[:10])
    numbers = [each["sequence_number"] for each in (*came[:10], *rest)]
    assert numbers == list(range(len(numbers)))
    assert rest[-1]["type"] == "error"
    assert len(numbers) > len(came)
    previous = came[0]["response"]["id"]
    asked: JSON = {"model": model, "input": "Go on.", "previous_response_id": previous, "max_output_tokens": 8}
    assert httpx.post(f"{server.url}/v1/responses", json=asked, timeout=60).status_code == 200


def test_what_is_read_back_is_what_vllm_said(http: httpx.Client, model: str) -> None:
    said = http.post("/v1/responses", json={"model": model, "input": "Hi", "max_output_tokens": 8}).json()
    back = http.get(f"/v1/responses/{said['id']}").json()
    # Which keys without a value vLLM adds is not stored.
    assert without_nulls(back) == without_nulls(said)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def test_errors_are_vllms_own(http: httpx.Client) -> None:
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages"):
        asked: JSON = {"model": "none", "messages": [{"role": "user", "content": "x"}], "input": "x", "max_tokens": 1}
        direct, relayed = httpx.post(VLLM + path, json=asked), http.post(path, json=asked)
        assert (relayed.status_code, relayed.json()) == (direct.status_code, direct.json())
