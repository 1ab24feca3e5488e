"""`POST /v1/chat/completions` end to end: what reaches upstream, what the caller gets, what is stored."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from proxy.demo import MODEL, serve_demo
from tests.fake_upstream import FakeUpstream, hang_up, never, replay, whole_json
from tests.serving import running_proxy, settings_for

RECORDED = {path.stem: path.read_bytes() for path in sorted((Path(__file__).parent / "streams").glob("*.sse"))}


@pytest.fixture
async def client(upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings = settings_for(tmp_path, upstream_url=upstream.url, response_timeout_seconds=1.0)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, timeout=10) as session:
        yield session


def chat(text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


def rows(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    """What another program finds in the file."""
    connection = sqlite3.connect(folder / "stellarchat.db")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


async def test_a_whole_reply_is_relayed_and_stored(client: httpx.AsyncClient, tmp_path: Path) -> None:
    response = await client.post("/v1/chat/completions", json=chat())
    reply = response.json()["choices"][0]["message"]
    assert response.headers["x-session-source"] == "new"
    stored = rows(tmp_path, "SELECT role, content, status FROM messages ORDER BY message_no")
    assert stored == [("user", "hello", None), ("assistant", reply["content"], None)]
    assert rows(tmp_path, "SELECT session_id, title FROM sessions") == [(response.headers["x-session-id"], "hello")]
    assert rows(tmp_path, "SELECT status, http_status FROM exchanges") == [("completed", 200)]


async def test_a_stream_is_relayed_and_stored(client: httpx.AsyncClient, tmp_path: Path) -> None:
    response = await client.post("/v1/chat/completions", json=chat(stream=True))
    events = [line for line in response.text.split("\n\n") if line]
    assert events[-1] == "data: [DONE]"
    text = "".join(orjson.loads(event[6:])["choices"][0]["delta"].get("content", "") for event in events[:-1])
    assert rows(tmp_path, "SELECT content FROM messages WHERE role = 'assistant'") == [(text,)]
    assert rows(tmp_path, "SELECT status, finish_reason, total_tokens > 0 FROM exchanges") == [("completed", "stop", 1)]


async def test_usage_is_asked_for_and_kept_from_a_caller_who_did_not_ask(
    client: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    response = await client.post("/v1/chat/completions", json=chat(stream=True))
    assert orjson.loads(upstream.calls[-1].body)["stream_options"] == {"include_usage": True}
    assert '"usage"' not in response.text


async def test_usage_goes_to_a_caller_who_asked(client: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    body = chat(stream=True, stream_options={"include_usage": True})
    response = await client.post("/v1/chat/completions", json=body)
    assert orjson.loads(upstream.calls[-1].body) == body
    assert '"usage":{' in response.text


async def test_the_body_reaches_upstream_byte_for_byte(client: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    body = (
        b' { "model":"m" ,"messages":[{"role":"user","content":"\\u00e9\\ud83d\\ude00"}],'
        b' "n":1e0, "n":1, "big": 123456789012345678901234567890 } '
    )
    await client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert upstream.calls[-1].body == body


@pytest.mark.parametrize("value", ('"mine"', "null"))
async def test_session_id_stays_in_the_body(client: httpx.AsyncClient, upstream: FakeUpstream, value: str) -> None:
    body = f'{{"model":"m", "session_id" : {value}, "messages":[{{"role":"user","content":"a"}}], "seed": 1.50}}'
    response = await client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert upstream.calls[-1].body == body.encode()
    assert response.headers["x-session-source"] == ("body" if value == '"mine"' else "new")


@pytest.mark.parametrize(
    ("fields", "headers", "source"),
    (
        ({}, {"X-Session-Id": "one"}, "header"),
        ({"session_id": "one"}, {}, "body"),
        ({"metadata": {"session_id": "one"}}, {}, "metadata"),
        ({"metadata": {"thread_id": "one"}}, {}, "metadata"),
        ({"metadata": {"conversation_id": "one"}}, {}, "metadata"),
        ({}, {"X-OpenWebUI-Chat-Id": "one"}, "vendor"),
        ({"session_id": "two", "metadata": {"session_id": "three"}}, {"X-Session-Id": "one"}, "header"),
        ({"metadata": {"session_id": "one"}}, {"X-Conversation-Id": "two"}, "metadata"),
    ),
)
async def test_an_explicit_id_names_the_session(
    client: httpx.AsyncClient, tmp_path: Path, fields: dict[str, Any], headers: dict[str, str], source: str
) -> None:
    first = await client.post("/v1/chat/completions", json=chat("a", **fields), headers=headers)
    second = await client.post("/v1/chat/completions", json=chat("b", **fields), headers=headers)
    assert first.headers["x-session-source"] == second.headers["x-session-source"] == source
    assert first.headers["x-session-id"] == second.headers["x-session-id"]
    assert rows(tmp_path, "SELECT external_id, message_count FROM sessions") == [("one", 4)]


@pytest.mark.parametrize("session_id", ("", "a b", "x" * 129, "é", 5, ["a"]))
async def test_an_unfit_id_is_refused_before_upstream_is_asked(
    client: httpx.AsyncClient, upstream: FakeUpstream, session_id: Any
) -> None:
    response = await client.post("/v1/chat/completions", json=chat(session_id=session_id))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "session_id"
    assert upstream.calls == []


async def test_a_session_is_found_by_its_own_id(client: httpx.AsyncClient, tmp_path: Path) -> None:
    first = await client.post("/v1/chat/completions", json=chat("a"))
    headers = {"X-Session-Id": first.headers["x-session-id"]}
    second = await client.post("/v1/chat/completions", json=chat("b"), headers=headers)
    assert second.headers["x-session-id"] == first.headers["x-session-id"]
    assert rows(tmp_path, "SELECT external_id, message_count FROM sessions") == [(None, 4)]


async def test_two_users_with_the_same_id_have_two_sessions(client: httpx.AsyncClient, tmp_path: Path) -> None:
    for user in ("ann", "bob"):
        headers = {"X-User-Id": user, "X-Session-Id": "same"}
        await client.post("/v1/chat/completions", json=chat(), headers=headers)
    assert rows(tmp_path, "SELECT user_id FROM sessions ORDER BY user_id") == [("ann",), ("bob",)]


@pytest.mark.parametrize(
    ("fields", "headers", "user"),
    (
        ({"user": "u", "safety_identifier": "s"}, {"X-User-Id": "h"}, "h"),
        ({"user": "u", "safety_identifier": "s"}, {}, "s"),
        ({"user": "u"}, {}, "u"),
        ({"user": 5}, {}, "default_user"),
        ({}, {}, "default_user"),
    ),
)
async def test_the_user_is_who_the_request_names(
    client: httpx.AsyncClient, tmp_path: Path, fields: dict[str, Any], headers: dict[str, str], user: str
) -> None:
    await client.post("/v1/chat/completions", json=chat(**fields), headers=headers)
    assert rows(tmp_path, "SELECT user_id FROM sessions") == [(user,)]


async def test_store_false_is_relayed_and_not_saved(client: httpx.AsyncClient, tmp_path: Path) -> None:
    response = await client.post("/v1/chat/completions", json=chat(store=False))
    assert response.status_code == 200
    assert "x-session-id" not in response.headers
    assert rows(tmp_path, "SELECT * FROM exchanges") == []


async def test_upstream_errors_pass_and_are_recorded(
    client: httpx.AsyncClient, upstream: FakeUpstream, tmp_path: Path
) -> None:
    error = {"error": {"message": "no", "type": "NotFoundError", "param": "model", "code": 404}}
    upstream.on("/v1/chat/completions", whole_json(error, status=404))
    response = await client.post("/v1/chat/completions", json=chat(stream=True))
    assert (response.status_code, response.json()) == (404, error)
    assert rows(tmp_path, "SELECT status, http_status, error FROM exchanges") == [
        ("failed", 404, orjson.dumps(error["error"]).decode())
    ]
    assert rows(tmp_path, "SELECT role, content FROM messages") == [("user", "hello")]


async def test_an_upstream_that_never_answers_is_a_504(
    client: httpx.AsyncClient, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.on("/v1/chat/completions", never())
    response = await client.post("/v1/chat/completions", json=chat())
    assert response.status_code == 504
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert rows(tmp_path, "SELECT status, http_status FROM exchanges") == [("failed", None)]


async def test_an_upstream_that_hangs_up_is_a_502(
    client: httpx.AsyncClient, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.on("/v1/chat/completions", hang_up())
    response = await client.post("/v1/chat/completions", json=chat())
    assert response.status_code == 502
    assert rows(tmp_path, "SELECT status FROM exchanges") == [("failed",)]


@pytest.mark.parametrize("recorded", RECORDED.values(), ids=RECORDED)
async def test_recorded_streams_pass_byte_for_byte(
    client: httpx.AsyncClient, upstream: FakeUpstream, tmp_path: Path, recorded: bytes
) -> None:
    upstream.on("/v1/chat/completions", replay(recorded))
    body = chat(stream=True, stream_options={"include_usage": True})
    response = await client.post("/v1/chat/completions", json=body)
    assert response.content == recorded
    assert len(rows(tmp_path, "SELECT * FROM exchanges WHERE status IN ('completed', 'incomplete')")) == 1


async def test_a_continued_history_is_stitched(tmp_path: Path) -> None:
    async with (
        serve_demo(pause_seconds=0) as url,
        running_proxy(settings_for(tmp_path, upstream_url=url)) as proxy,
        httpx.AsyncClient(base_url=proxy) as client,
    ):
        messages = [{"role": "user", "content": "one"}]
        sessions = set()
        for turn in ("two", "three", "four"):
            response = await client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})
            sessions.add(response.headers["x-session-id"])
            messages += [response.json()["choices"][0]["message"], {"role": "user", "content": turn}]
        assert response.headers["x-session-source"] == "stitched"
        assert len(sessions) == 1
    assert rows(tmp_path, "SELECT role FROM messages ORDER BY message_no") == [("user",), ("assistant",)] * 3
