"""Every endpoint, one tree: what is said on one is recorded, continued on another, and read back on each."""

import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.wire import anthropic_blocks, hash_chain, responses_items
from tests.dialect_upstream import TOOL_CALL, events_text, every_dialect, response_events, response_of
from tests.fake_upstream import FakeUpstream, fake_upstream, sse, vllm_error, whole_json
from tests.serving import running_proxy, settings_for
from tests.telemetry.test_traces import receiver
from tests.test_dialect_sdks import asking
from tests.wire.corpus import OUTPUT

JSON = dict[str, Any]
RESPONSES, MESSAGES, CHAT = "/v1/responses", "/v1/messages", "/v1/chat/completions"


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with fake_upstream() as fake:
        fake.on("*", every_dialect())
        yield fake


@pytest.fixture
async def http(upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings = settings_for(tmp_path, upstream_url=upstream.url)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


async def respond(http: httpx.AsyncClient, said: Any, **more: Any) -> httpx.Response:
    reply = await http.post(RESPONSES, json={"model": "m", "input": said, **more})
    assert reply.status_code == 200, reply.text
    return reply


async def shown(http: httpx.AsyncClient, session_id: str, form: str = "openai", **query: Any) -> JSON:
    reply = await http.get(f"/v1/sessions/{session_id}/messages", params={"format": form, **query})
    assert reply.status_code == 200, reply.text
    found: JSON = reply.json()
    return found


async def sessions(http: httpx.AsyncClient) -> list[JSON]:
    found: list[JSON] = (await http.get("/v1/sessions")).json()["sessions"]
    return found


def events_of(body: str) -> list[JSON]:
    return [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize("stream", (False, True))
async def test_a_response_is_recorded_and_read_back_as_sent(http: httpx.AsyncClient, stream: bool) -> None:
    tool = {"type": "function", "name": "tool", "parameters": {}}
    given = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}]
    reply = await respond(http, given, instructions="Be brief.", tools=[tool], metadata={"a": "b"}, stream=stream)
    sent = events_of(reply.text)[-1]["response"] if stream else reply.json()
    session_id = reply.headers["x-session-id"]
    assert reply.headers["x-session-source"] == "new"
    back = (await http.get(f"{RESPONSES}/{sent['id']}")).json()
    assert {key: value for key, value in back.items() if key in sent} == sent
    items = await shown(http, session_id, "responses")
    assert items["messages"] == [*given, *sent["output"]]
    assert items["instructions"] == "Be brief."
    openai = (await shown(http, session_id))["messages"]
    assert [message["role"] for message in openai] == ["system", "user", "assistant"]
    [exchange] = (await http.get(f"/v1/sessions/{session_id}/exchanges")).json()["exchanges"]
    told = {key: exchange[key] for key in ("endpoint", "status", "finish_reason", "completion_id")}
    assert told == {
        "endpoint": RESPONSES,
        "status": "completed",
        "finish_reason": "completed",
        "completion_id": sent["id"],
    }
    tokens = [exchange[f"{kind}_tokens"] for kind in ("prompt", "completion", "total", "reasoning", "cached")]
    assert tokens == [7, 5, 12, 2, 3]
    assert exchange["parameters"]["tools"] == [tool]


@pytest.mark.parametrize("stream", (False, True))
async def test_a_message_is_recorded_and_read_back_as_sent(http: httpx.AsyncClient, stream: bool) -> None:
    request: JSON = {
        "model": "m",
        "max_tokens": 9,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cch=1"},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}
        ],
    }
    reply = await http.post(MESSAGES, json={**request, "stream": stream})
    session_id = reply.headers["x-session-id"]
    back = await shown(http, session_id, "anthropic")
    assert back["system"] == request["system"]
    assert back["messages"][:-1] == request["messages"]
    assert back["messages"][-1]["content"][0] == {"type": "thinking", "thinking": "thought 1", "signature": "sig1"}
    [exchange] = (await http.get(f"/v1/sessions/{session_id}/exchanges")).json()["exchanges"]
    assert (exchange["endpoint"], exchange["status"], exchange["finish_reason"]) == (MESSAGES, "completed", "end_turn")
    assert [exchange[f"{kind}_tokens"] for kind in ("prompt", "completion", "total", "cached")] == [7, 5, 12, 2]
    assert exchange["parameters"] == {"model": "m", "max_tokens": 9, "stream": stream}


async def test_a_tool_dialogue_goes_on_from_endpoint_to_endpoint_in_one_session(http: httpx.AsyncClient) -> None:
    reply = await respond(http, TOOL_CALL)
    [_, call] = reply.json()["output"]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "done"}
    reply = await respond(http, [{"role": "user", "content": TOOL_CALL}, *reply.json()["output"], output])
    session_id = reply.headers["x-session-id"]
    assert reply.headers["x-session-source"] == "stitched"
    chat = [*(await shown(http, session_id))["messages"], {"role": "user", "content": "on with chat"}]
    reply = await http.post(CHAT, json={"model": "m", "messages": chat})
    assert (reply.headers["x-session-id"], reply.headers["x-session-source"]) == (session_id, "stitched")
    messages = [
        *(await shown(http, session_id, "anthropic"))["messages"],
        {"role": "user", "content": "on with messages"},
    ]
    reply = await http.post(MESSAGES, json={"model": "m", "max_tokens": 9, "messages": messages})
    assert (reply.headers["x-session-id"], reply.headers["x-session-source"]) == (session_id, "stitched")
    items = [*(await shown(http, session_id, "responses"))["messages"], {"role": "user", "content": "back again"}]
    reply = await respond(http, items)
    assert (reply.headers["x-session-id"], reply.headers["x-session-source"]) == (session_id, "stitched")
    [session] = await sessions(http)
    assert session["message_count"] == 10
    assert len((await http.get(f"/v1/sessions/{session_id}/exchanges")).json()["exchanges"]) == 5


# Responses state


@pytest.mark.parametrize("stream", (False, True))
async def test_previous_response_id_puts_the_history_before_the_input(
    http: httpx.AsyncClient, upstream: FakeUpstream, stream: bool
) -> None:
    last_id, expected = None, list[Any]()
    for turn in range(20):
        said: Any = (
            TOOL_CALL if turn % 2 == 0 else [{"type": "function_call_output", "call_id": f"call_{turn}", "output": "o"}]
        )
        more: JSON = {} if last_id is None else {"previous_response_id": last_id, "instructions": f"turn {turn}"}
        reply = await respond(http, said, stream=stream, **more)
        sent = events_of(reply.text)[-1]["response"] if stream else reply.json()
        given = upstream.calls[-1].json()
        expected += [{"role": "user", "content": said}] if isinstance(said, str) else said
        if turn:
            assert given["input"] == expected
            assert given["instructions"] == f"turn {turn}"
            assert "previous_response_id" not in given
            assert reply.headers["x-session-source"] == "response"
        expected += sent["output"]
        last_id = sent["id"]
    [session] = await sessions(http)
    assert session["message_count"] == 40 + 19  # with the instructions of each turn


async def test_two_replies_to_one_response_are_branches(http: httpx.AsyncClient) -> None:
    first = (await respond(http, "hi")).json()["id"]
    replies = [await respond(http, text, previous_response_id=first) for text in ("one", "two")]
    assert len({reply.headers["x-session-id"] for reply in replies}) == 1
    [session] = await sessions(http)
    assert session["message_count"] == 6
    items = (await http.get(f"{RESPONSES}/{replies[1].json()['id']}/input_items")).json()
    said = [item["content"][0]["text"] for item in items["data"] if item["type"] == "message"]
    assert said == ["two", "answer 1 to 1 items", "hi"]


async def test_a_conversation_is_a_session(http: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    made = (await http.post("/v1/conversations", json={"items": [{"role": "user", "content": "known"}]})).json()
    first = await respond(http, "hi", conversation=made["id"])
    assert first.headers["x-session-source"] == "conversation"
    assert "conversation" not in upstream.calls[-1].json()
    assert [item["content"] for item in upstream.calls[-1].json()["input"]] == ["known", "hi"]
    await respond(http, "more", conversation={"id": made["id"]})
    assert len(upstream.calls[-1].json()["input"]) == 5
    [session] = await sessions(http)
    assert made["id"].endswith(session["session_id"])


async def test_references_to_items_are_resolved(http: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    output = (await respond(http, "hi")).json()["output"]
    references = [{"type": "item_reference", "id": item["id"]} for item in output]
    unknown = {"type": "item_reference", "id": "msg_unknown"}
    await respond(http, [{"role": "user", "content": "hi"}, *references, {"role": "user", "content": "more"}, unknown])
    assert upstream.calls[-1].json()["input"][1:] == [*output, {"role": "user", "content": "more"}, unknown]
    [session] = await sessions(http)
    assert session["message_count"] == 5


async def test_what_is_not_ours_is_relayed_as_it_is(http: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    body = b'{"model":"m", "input": "hi","previous_response_id" : "resp_unknown","n":1.50}'
    await http.post(RESPONSES, content=body, headers={"content-type": "application/json"})
    assert upstream.calls[-1].body == body
    upstream.on("*", vllm_error(404))
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel"), ("PATCH", "")):
        reply = await http.request(method, f"{RESPONSES}/resp_unknown{path}")
        assert (reply.status_code, upstream.calls[-1].method) == (404, method)


async def test_a_response_that_is_deleted_is_known_no_more(http: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    response_id = (await respond(http, "hi")).json()["id"]
    deleted = await http.delete(f"{RESPONSES}/{response_id}")
    assert deleted.json() == {"id": response_id, "object": "response", "deleted": True}
    upstream.on("*", vllm_error(404))
    assert (await http.get(f"{RESPONSES}/{response_id}")).status_code == 404


async def test_store_false_is_in_the_history_and_cannot_be_referred_to(
    http: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    reply = await respond(http, "hi", store=False)
    assert len((await shown(http, reply.headers["x-session-id"]))["messages"]) == 2
    await respond(http, "more", previous_response_id=reply.json()["id"])
    assert upstream.calls[-1].json()["previous_response_id"] == reply.json()["id"]
    await respond(http, [{"type": "item_reference", "id": reply.json()["output"][1]["id"]}])
    assert upstream.calls[-1].json()["input"][0]["type"] == "item_reference"
    upstream.on("*", vllm_error(404))
    assert (await http.get(f"{RESPONSES}/{reply.json()['id']}")).status_code == 404


@pytest.mark.parametrize(
    ("setting", "path", "is_recorded"),
    (
        ("auto", CHAT, False),
        ("auto", RESPONSES, True),
        ("skip", CHAT, False),
        ("skip", RESPONSES, False),
        ("record", CHAT, True),
        ("record", RESPONSES, True),
    ),
)
async def test_what_store_false_means_is_a_setting(
    upstream: FakeUpstream, tmp_path: Path, setting: str, path: str, is_recorded: bool
) -> None:
    settings = settings_for(tmp_path, upstream_url=upstream.url, store_false=setting)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as http:
        said = {"messages": [{"role": "user", "content": "x"}], "input": "x", "model": "m", "store": False}
        assert (await http.post(path, json=said)).status_code == 200
        assert len(await sessions(http)) == is_recorded


async def test_an_endpoint_is_recorded_where_the_setting_says_so(upstream: FakeUpstream, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, upstream_url=upstream.url, record=("messages",), responses_state="upstream")
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as http:
        await respond(http, "hi")
        assert await sessions(http) == []
        await http.post(MESSAGES, json={"model": "m", "messages": [{"role": "user", "content": "hi"}]})
        assert len(await sessions(http)) == 1


async def test_errors_of_our_own_have_the_shape_of_the_dialect(tmp_path: Path) -> None:
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url, timeout=30) as http:
        said = {"model": "m", "messages": [{"role": "user", "content": "x"}], "input": "x"}
        reply = await http.post(MESSAGES, json=said)
        assert reply.status_code == 502
        assert set(reply.json()) == {"type", "error", "request_id"}
        assert set(reply.json()["error"]) == {"type", "message", "param", "code"}
        assert set((await http.post(RESPONSES, json=said)).json()) == {"error"}


async def test_a_failed_request_is_recorded_with_its_messages(http: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    upstream.on("*", vllm_error(400))
    for path in (RESPONSES, MESSAGES):
        said = {"model": "m", "messages": [{"role": "user", "content": path}], "input": path}
        reply = await http.post(path, json=said)
        [exchange] = (await http.get(f"/v1/sessions/{reply.headers['x-session-id']}/exchanges")).json()["exchanges"]
        assert (exchange["status"], exchange["http_status"], exchange["endpoint"]) == ("failed", 400, path)
        assert len((await shown(http, reply.headers["x-session-id"]))["messages"]) == 1


@pytest.mark.parametrize("seed", range(4))
async def test_a_conversation_on_random_endpoints_is_one_session_and_each_message_once(
    http: httpx.AsyncClient, seed: int
) -> None:
    """Each turn is resent as it reads back in its endpoint's dialect; some go on from an earlier response."""
    dice = random.Random(seed)
    session_id, response_id, count = "", None, 0
    for turn in range(12):
        said = dice.choice((TOOL_CALL, f"question {turn}", "日本語 \U0001f600"))
        kinds = ["chat", "responses", "messages"] + (["state"] if response_id else [])
        kind = dice.choice(kinds)
        rows = [] if not session_id else (await shown(http, session_id, limit=1000))["messages"]
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": "done"}
            for call in (rows[-1].get("tool_calls") or [] if rows else [])
        ]
        asked = {"role": "user", "content": said}
        count += len(results) + 2
        if kind == "chat":
            reply = await http.post(CHAT, json={"model": "m", "messages": [*rows, *results, asked]})
        elif kind == "messages":
            history = [] if not session_id else (await shown(http, session_id, "anthropic", limit=1000))["messages"]
            blocks = [
                {"type": "tool_result", "tool_use_id": each["tool_call_id"], "content": "done"} for each in results
            ]
            history.append({"role": "user", "content": [*blocks, {"type": "text", "text": said}] if blocks else said})
            reply = await http.post(MESSAGES, json={"model": "m", "max_tokens": 9, "messages": history})
        else:
            history = [] if not session_id else (await shown(http, session_id, "responses", limit=1000))["messages"]
            outputs = [
                {"type": "function_call_output", "call_id": each["tool_call_id"], "output": "done"} for each in results
            ]
            if kind == "state":
                reply = await respond(http, [*outputs, asked], previous_response_id=response_id)
            else:
                reply = await respond(http, [*history, *outputs, asked])
        response_id = reply.json()["id"] if kind in ("responses", "state") else None
        assert session_id in ("", reply.headers["x-session-id"])
        session_id = reply.headers["x-session-id"]
    [session] = await sessions(http)
    assert session["message_count"] == count
    openai = (await shown(http, session_id, limit=1000))["messages"]
    items = (await shown(http, session_id, "responses", limit=1000))["messages"]
    messages = (await shown(http, session_id, "anthropic", limit=1000))["messages"]
    chain = hash_chain.chain("default_user", openai)
    assert hash_chain.chain("default_user", responses_items.messages_of(items)) == chain
    assert hash_chain.chain("default_user", anthropic_blocks.messages_of(messages)) == chain
    assert len(chain) == count


async def test_pages_of_messages_are_cut_between_messages(http: httpx.AsyncClient) -> None:
    results = [{"type": "tool_result", "tool_use_id": f"t{number}", "content": "done"} for number in range(3)]
    calls = [{"type": "tool_use", "id": f"t{number}", "name": "tool", "input": {}} for number in range(3)]
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": calls},
        {"role": "user", "content": [*results, {"type": "text", "text": "and?"}]},
    ]
    reply = await http.post(MESSAGES, json={"model": "m", "max_tokens": 9, "system": "Be brief.", "messages": messages})
    session_id = reply.headers["x-session-id"]
    whole = await shown(http, session_id, "anthropic")
    assert whole["messages"][:-1] == messages
    for size in (1, 2, 3, 4):
        pages = [await shown(http, session_id, "anthropic", limit=size, offset=at) for at in range(0, 8, size)]
        assert [message for page in pages for message in page["messages"]] == whole["messages"]
        assert pages[0]["system"] == "Be brief."


async def test_what_is_said_on_any_endpoint_is_found_counted_traced_and_exported(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    pytest.importorskip("opentelemetry.sdk")
    choice = {"index": 0, "text": " stands still", "finish_reason": "stop"}
    upstream.on("/v1/completions", whole_json({"id": "cmpl-1", "choices": [choice]}))
    asked: dict[str, tuple[str, JSON]] = {
        "walrus": (CHAT, {"messages": [{"role": "user", "content": "a walrus"}]}),
        "ostrich": (RESPONSES, {"input": "an ostrich"}),
        "badger": (MESSAGES, {"max_tokens": 9, "messages": [{"role": "user", "content": "a badger"}]}),
        "heron": ("/v1/completions", {"prompt": "a heron"}),
    }
    with receiver() as (address, got):
        recorded = ("chat", "responses", "messages", "completions")
        settings = settings_for(tmp_path, upstream_url=upstream.url, record=recorded, otlp_endpoint=address)
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
            for word, (path, body) in asked.items():
                session_id = (await client.post(path, json={"model": "m", **body})).headers["x-session-id"]
                found = (await client.get("/v1/search", params={"q": word})).json()["results"]
                assert {each["session"]["session_id"] for each in found} == {session_id}, path
                for form in ("jsonl", "openai", "markdown"):
                    export = await client.get(f"/v1/sessions/{session_id}/export", params={"format": form})
                    assert word in export.text
                    assert '"assistant"' in export.text or "## assistant" in export.text, (path, form)
            metrics = (await client.get("/metrics")).text.splitlines()
            stored = (await client.get(CHAT)).json()["data"]
    ended = [line for line in metrics if line.startswith('stellarchat_chats_total{status="completed"')]
    assert sum(float(line.rpartition(" ")[2]) for line in ended) == len(asked)
    assert len(stored) == len(asked)
    assert b"".join(content for _, content in got).count(b"gen_ai.operation.name") == len(asked)


@pytest.mark.parametrize("path", (RESPONSES, MESSAGES))
@pytest.mark.parametrize("session", ({}, {"X-Session-Id": "s"}))
@pytest.mark.parametrize("stream", (False, True))
async def test_a_client_resends_regenerates_and_edits(
    http: httpx.AsyncClient, path: str, session: dict[str, str], stream: bool
) -> None:
    """With the SDK of the endpoint."""
    form, key = ("responses", "input") if path == RESPONSES else ("anthropic", "messages")

    async def ask(turns: list[JSON]) -> tuple[str, list[JSON]]:
        async with asking(str(http.base_url).rstrip("/"), is_sync=False) as (respond, say):
            asked: Any = {"model": "m", key: turns, "extra_headers": session, "stream": stream}
            if path == RESPONSES:
                last = (await respond(**asked))[-1]
                answer = [item.to_dict() for item in (last.response if stream else last).output]
            else:
                message = (await say(max_tokens=99, **asked))[-1]
                answer = [{"role": "assistant", "content": [block.to_dict() for block in message.content]}]
        [newest] = (await http.get("/v1/sessions", params={"limit": 1})).json()["sessions"]
        return newest["session_id"], [*turns, *answer]

    first_id, history = await ask([{"role": "user", "content": "one"}])
    asked = [*history, {"role": "user", "content": "two"}]
    _, resent = await ask(asked)
    _, regenerated = await ask(asked)
    edited_id, edited = await ask([*history, {"role": "user", "content": "two, better"}])
    last_id, whole = await ask([*regenerated, {"role": "user", "content": "three"}])
    assert {first_id, edited_id, last_id} == {first_id}
    [listed] = await sessions(http)
    assert listed["message_count"] == 2 + 3 + 2 + 2  # each message once
    branches = (await http.get(f"/v1/sessions/{first_id}/branches")).json()["branches"]
    read = [(await shown(http, first_id, form, branch=each["message_id"]))["messages"] for each in branches]
    texts = [sorted(json.dumps(each, sort_keys=True) for each in told) for told in (read, (resent, edited, whole))]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("status", ("failed", "cancelled"))
@pytest.mark.parametrize("error", (None, {"code": "server_error", "message": "no"}))
async def test_a_response_that_upstream_gave_up_is_not_completed(
    http: httpx.AsyncClient, upstream: FakeUpstream, status: str, error: JSON | None
) -> None:
    whole = {**response_of(1, {"input": "hi"}), "status": status, "error": error}
    upstream.on(RESPONSES, whole_json(whole))
    reply = await respond(http, "one")
    [exchange] = (await http.get(f"/v1/sessions/{reply.headers['x-session-id']}/exchanges")).json()["exchanges"]
    assert (exchange["status"], exchange["finish_reason"]) == ("failed", status)
    assert exchange["error"] == error or exchange["error"]["type"] == status
    events = [*response_events(whole)[:-1], {"type": f"response.{status}", "response": whole}]
    upstream.on(RESPONSES, sse(events_text(events)))
    reply = await respond(http, "two", stream=True)
    [exchange] = (await http.get(f"/v1/sessions/{reply.headers['x-session-id']}/exchanges")).json()["exchanges"]
    assert (exchange["status"], exchange["finish_reason"]) == ("incomplete", status)
    back = (await http.get(f"{RESPONSES}/{whole['id']}")).json()
    assert (back["status"], back["output"]) == (status, whole["output"])
    if status == "failed":
        assert back["error"] == exchange["error"]


@pytest.mark.parametrize("order", ("asc", "desc"))
async def test_input_items_that_have_one_id_are_each_listed_once(http: httpx.AsyncClient, order: str) -> None:
    ids = ["same", "same", "", None, 7, "other", "same", "x" * 300, "same"]
    given = [{"type": "message", "role": "user", "content": str(place), "id": id_} for place, id_ in enumerate(ids)]
    first = (await respond(http, given)).json()["id"]
    response_id = (await respond(http, given, previous_response_id=first)).json()["id"]
    found: list[JSON] = []
    query: dict[str, str | int] = {"limit": 2, "order": order}
    while (page := (await http.get(f"{RESPONSES}/{response_id}/input_items", params=query)).json())["has_more"]:
        found += page["data"]
        query["after"] = page["last_id"]
        assert len(found) < 50
    found += page["data"]
    assert len({item["id"] for item in found}) == len(found) == 2 * len(ids) + 2
    texts = [item["content"][0]["text"] for item in found if item.get("role") == "user"]
    assert texts == [str(place) for place in range(len(ids))] * 2 if order == "asc" else texts[0] == "8"


@pytest.mark.parametrize("status", ("queued", "in_progress"))
async def test_a_response_in_the_background_is_asked_for_at_upstream(
    http: httpx.AsyncClient, upstream: FakeUpstream, status: str
) -> None:
    begun = {"id": "resp_bg", "object": "response", "status": status, "output": [], "background": True}
    upstream.on(RESPONSES, whole_json(begun))
    reply = await respond(http, "take your time", background=True)
    assert reply.json() == begun
    [exchange] = (await http.get(f"/v1/sessions/{reply.headers['x-session-id']}/exchanges")).json()["exchanges"]
    assert (exchange["status"], exchange["error"]["type"]) == ("failed", "background")
    upstream.on("*", whole_json({**begun, "status": "completed"}))
    for method, path in (("GET", ""), ("POST", "/cancel"), ("DELETE", ""), ("GET", "?stream=true&starting_after=1")):
        assert (await http.request(method, f"{RESPONSES}/resp_bg{path}")).json()["status"] == "completed"
    upstream.on("*", every_dialect())
    await respond(http, "and?", previous_response_id="resp_bg")
    assert upstream.calls[-1].json()["previous_response_id"] == "resp_bg"


async def test_a_stream_in_the_background_that_was_left_is_asked_for_at_upstream(
    http: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    whole = response_of(1, {"input": "hi"})
    upstream.on(RESPONSES, sse(events_text(response_events(whole))[:8]))
    assert (await respond(http, "take your time", background=True, stream=True)).text
    upstream.on("*", whole_json({"status": "completed"}))
    assert (await http.get(f"{RESPONSES}/{whole['id']}")).json() == {"status": "completed"}


@pytest.mark.parametrize("stream", (False, True))
async def test_tools_that_run_at_the_server_are_one_reply(
    http: httpx.AsyncClient, upstream: FakeUpstream, stream: bool
) -> None:
    whole = {**response_of(1, {"input": "hi"}), "output": OUTPUT}
    upstream.on(RESPONSES, sse(events_text(response_events(whole))) if stream else whole_json(whole))
    reply = await respond(http, "hi", stream=stream)
    approval = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}
    upstream.on(RESPONSES, every_dialect())
    asked = [{"role": "user", "content": "hi"}, *OUTPUT, approval, {"role": "user", "content": "more"}]
    again = await respond(http, asked)
    assert again.headers["x-session-id"] == reply.headers["x-session-id"]
    assert (await sessions(http))[0]["message_count"] == 2 + 2 + 1
    assert (await shown(http, reply.headers["x-session-id"], "responses"))["messages"] == [
        *asked,
        *again.json()["output"],
    ]


@pytest.mark.parametrize("mode", ("default", "flags"))
async def test_a_response_of_vllm_is_given_again_as_the_client_got_it(
    http: httpx.AsyncClient, upstream: FakeUpstream, mode: str
) -> None:
    recorded = json.loads((Path(__file__).parent / "streams" / "dialects" / f"{mode}_responses.json").read_bytes())
    upstream.on(RESPONSES, whole_json(recorded))
    reply = await respond(http, "Where is it?")
    back = (await http.get(f"{RESPONSES}/{recorded['id']}")).json()
    assert reply.json() == recorded
    assert {key: value for key, value in back.items() if value is not None or key in recorded} == recorded
