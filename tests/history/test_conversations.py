"""Sessions as conversations, with the OpenAI SDK."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.conversations import Conversation, ConversationDeletedResource, ConversationItem, ConversationItemList
from pydantic import TypeAdapter

from tests.engines import on_both_engines, rows_of
from tests.fake_upstream import FakeUpstream, chat_chunk, chat_completion, event, sse, whole_json
from tests.history.test_stored_completions import is_counted_right
from tests.serving import running_proxy, settings_for

pytestmark = on_both_engines

ROUTE = "/v1/conversations"
CHAT = "/v1/chat/completions"
ITEM: TypeAdapter[Any] = TypeAdapter(ConversationItem)
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
PICTURE = "data:image/png;base64," + "QUJD" * 1000


@pytest.fixture
async def http(upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings = settings_for(tmp_path, upstream_url=upstream.url)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, timeout=20) as client:
        yield client


@pytest.fixture
async def sdk(http: httpx.AsyncClient) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=str(http.base_url.join("/v1")), api_key="any", max_retries=0) as client:
        yield client


async def chat(http: httpx.AsyncClient, session: str, *messages: Any) -> Any:
    body = {"model": "m", "messages": list(messages)}
    response = await http.post(CHAT, json=body, headers={"X-Session-Id": session})
    assert response.status_code == 200, response.text
    return response


async def items(http: httpx.AsyncClient, conversation: str, **query: Any) -> list[Any]:
    """All items, oldest first, each as the SDK's types say."""
    response = await http.get(f"{ROUTE}/{conversation}/items", params={"order": "asc", "limit": 100, **query})
    assert response.status_code == 200, response.text
    found: list[Any] = response.json()["data"]
    for item in found:
        ITEM.validate_json(json.dumps(item), strict=True)
    return found


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def brief(found: list[Any]) -> list[tuple[str, Any]]:
    """Kind and what it says."""
    keys = {"message": "content", "reasoning": "content", "function_call": "arguments", "custom_tool_call": "input"}
    shown = [(item["type"], item[keys.get(item["type"], "output")]) for item in found]
    return [(kind, said[0].get("text") if said and isinstance(said, list) else said) for kind, said in shown]


# --- conversations


async def test_conversation_is_made_read_changed_and_deleted(http: httpx.AsyncClient, sdk: AsyncOpenAI) -> None:
    made = await sdk.conversations.create(
        metadata={"topic": "tests"}, items=[{"type": "message", "role": "user", "content": "hello there"}]
    )
    assert made.id.startswith("conv_")
    assert made.metadata == {"topic": "tests"}
    assert await sdk.conversations.retrieve(made.id) == made
    changed = await sdk.conversations.update(made.id, metadata={"a": "b"})
    assert changed == made.model_copy(update={"metadata": {"a": "b"}})
    session = (await http.get(f"/v1/sessions/{made.id}")).json()
    assert (session["title"], session["message_count"], session["metadata"]) == ("hello there", 1, {"a": "b"})
    for value, model in ((made, Conversation), (changed, Conversation)):
        model.model_validate_json(value.to_json(), strict=True)
    deleted = await sdk.conversations.delete(made.id)
    ConversationDeletedResource.model_validate_json(deleted.to_json(), strict=True)
    assert deleted.id == made.id
    with pytest.raises(openai.NotFoundError):
        await sdk.conversations.retrieve(made.id)


async def test_conversation_of_nothing_is_empty(sdk: AsyncOpenAI) -> None:
    made = await sdk.conversations.create()
    assert made.metadata == {}
    assert [each async for each in sdk.conversations.items.list(made.id)] == []


async def test_session_is_a_conversation_by_each_of_its_ids(http: httpx.AsyncClient) -> None:
    session_id = (await chat(http, "mine", user("hi"))).headers["x-session-id"]
    for id_ in ("mine", "conv_mine", session_id, f"conv_{session_id}"):
        assert (await http.get(f"{ROUTE}/{id_}")).json()["id"] == f"conv_{session_id}"


async def test_chat_that_names_a_conversation_belongs_to_it(http: httpx.AsyncClient, sdk: AsyncOpenAI) -> None:
    made = await sdk.conversations.create()
    session_id = made.id.removeprefix("conv_")
    await http.post("/v1/sessions", json={"session_id": "external"})
    bodies: tuple[tuple[Any, Any], ...] = (
        ({}, {"X-Session-Id": made.id}),
        ({"session_id": made.id}, {}),
        ({"metadata": {"conversation_id": made.id}}, {}),
        ({"metadata": {"thread_id": made.id}}, {}),
        ({}, {"X-Conversation-Id": made.id}),
    )
    for number, (body, headers) in enumerate(bodies):
        asked = {"model": "m", "messages": [user(str(number))], **body}
        response = await http.post(CHAT, json=asked, headers=headers)
        assert response.headers["x-session-id"] == session_id
    named = await chat(http, "conv_external", user("hi"))
    assert named.headers["x-session-id"] == (await http.get("/v1/sessions/external")).json()["session_id"]
    assert len([each async for each in sdk.conversations.items.list(made.id, limit=3)]) == 10


# --- items


async def test_many_items_are_listed_to_the_end(http: httpx.AsyncClient, sdk: AsyncOpenAI) -> None:
    messages = [{"role": "assistant" if number % 2 else "user", "content": str(number)} for number in range(399)]
    session_id = (await chat(http, "long", *messages)).headers["x-session-id"]
    newest = [each async for each in sdk.conversations.items.list(f"conv_{session_id}", limit=100)]
    texts = [item.content[0].text for item in newest if item.type == "message"]  # type: ignore[union-attr]
    assert texts[1:] == [str(number) for number in reversed(range(399))]
    oldest = [each.id async for each in sdk.conversations.items.list(f"conv_{session_id}", order="asc", limit=7)]
    assert oldest == [each.id for each in reversed(newest)]
    page = await sdk.conversations.items.list(f"conv_{session_id}")
    assert (len(page.data), page.has_more, page.last_id) == (20, True, page.data[-1].id)


async def test_chat_is_shown_as_items(http: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    thought = {"role": "assistant", "content": "Let me see.", "reasoning": "Hm.", "tool_calls": [CALL]}
    upstream.on(CHAT, whole_json(chat_completion(1, [thought])))
    parts = [{"type": "text", "text": "what is"}, {"type": "image_url", "image_url": {"url": PICTURE}}]
    system = {"role": "system", "content": "be brief"}
    asked = {"role": "user", "content": parts}
    session_id = (await chat(http, "mine", system, asked)).headers["x-session-id"]
    upstream.on(CHAT, whole_json(chat_completion(2, [{"role": "assistant", "content": None, "refusal": "No."}])))
    await chat(http, "mine", system, asked, thought, {"role": "tool", "tool_call_id": "c1", "content": "sunny"})
    found = await items(http, f"conv_{session_id}")
    assert brief(found) == [
        ("message", "be brief"),
        ("message", "what is"),
        ("reasoning", "Hm."),
        ("message", "Let me see."),
        ("function_call", '{"city":"Paris"}'),
        ("function_call_output", "sunny"),
        ("message", None),
    ]
    assert found[1]["content"][1] == {
        "type": "input_image",
        "image_url": PICTURE,
        "detail": "auto",
        "file_id": None,
    }
    assert (found[4]["call_id"], found[4]["name"], found[5]["call_id"]) == ("c1", "weather", "c1")
    assert found[6]["content"] == [{"type": "refusal", "refusal": "No."}]
    assert {item["status"] for item in found} == {"completed"}
    for item in found:
        assert (await http.get(f"{ROUTE}/mine/items/{item['id']}")).json() == item
    backwards: list[Any] = []
    while page := (await http.get(f"{ROUTE}/mine/items", params={"limit": 1, **_after(backwards)})).json()["data"]:
        backwards += page
    assert backwards == found[::-1]


def _after(found: list[Any]) -> dict[str, str]:
    return {"after": found[-1]["id"]} if found else {}


async def test_last_item_of_a_cut_reply_is_incomplete(http: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    deltas: tuple[Any, ...] = ({"role": "assistant", "reasoning": "Hm."}, {"content": "half"})
    upstream.on(CHAT, sse([event(chat_chunk(1, delta)) for delta in deltas], die_after=2))
    body = {"model": "m", "messages": [user("hi")], "stream": True}
    with pytest.raises(httpx.RemoteProtocolError):
        await http.post(CHAT, json=body, headers={"X-Session-Id": "mine"})
    found = await items(http, "mine")
    assert [(item["type"], item["status"]) for item in found] == [
        ("message", "completed"),
        ("reasoning", "completed"),
        ("message", "incomplete"),
    ]


async def test_logprobs_and_citations_are_shown(http: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    citation = {"start_index": 0, "end_index": 1, "title": "T", "url": "http://localhost/"}
    annotations = [{"type": "url_citation", "url_citation": citation}]
    reply = chat_completion(1, [{"role": "assistant", "content": "Hi", "annotations": annotations}])
    token = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": [{"token": "Ho", "logprob": -1.5}]}
    reply["choices"][0]["logprobs"] = {"content": [token]}
    upstream.on(CHAT, whole_json(reply))
    await chat(http, "mine", user("hi"))
    plain = (await items(http, "mine"))[1]["content"][0]
    assert plain["annotations"] == [{"type": "url_citation", **citation}]
    assert plain["logprobs"] == []
    for name in ("include[]", "include"):
        said = (await items(http, "mine", **{name: "message.output_text.logprobs"}))[1]["content"][0]
        top = {"token": "Ho", "logprob": -1.5, "bytes": []}
        assert said["logprobs"] == [{**token, "top_logprobs": [top]}]


async def test_items_are_added_and_sent_back_as_a_chat(http: httpx.AsyncClient, sdk: AsyncOpenAI) -> None:
    made = await sdk.conversations.create()
    added = await sdk.conversations.items.create(
        made.id,
        items=[
            {"role": "developer", "content": "be brief"},
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "look"},
                    {"type": "input_image", "image_url": PICTURE, "detail": "low"},
                ],
            },
            {"type": "reasoning", "id": "rs_x", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "role": "assistant", "content": "Let me see."},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "custom_tool_call", "call_id": "c2", "name": "shell", "input": "ls"},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "files"}]},
            {"type": "message", "role": "assistant", "content": "Sunny."},
        ],
    )
    ConversationItemList.model_validate_json(added.to_json(), strict=True)
    assert [item["id"] for item in await items(http, made.id)] == [item.id for item in added.data]
    assert (added.first_id, added.last_id) == (added.data[0].id, added.data[-1].id)
    sent = (await http.get(f"/v1/sessions/{made.id}/messages", params={"format": "openai"})).json()["messages"]
    picture = {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}}
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
        {"id": "c2", "type": "custom", "custom": {"name": "shell", "input": "ls"}},
    ]
    assert sent == [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "look"}, picture]},
        {"role": "assistant", "content": "Let me see.", "reasoning": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "c2", "content": "files"},
        {"role": "assistant", "content": "Sunny."},
    ]
    stitched = await http.post(CHAT, json={"model": "m", "messages": [*sent, user("and tomorrow?")]})
    assert stitched.headers["x-session-id"] == made.id.removeprefix("conv_")


async def test_items_can_be_added_as_they_were_listed(http: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    thought = {"role": "assistant", "content": "Let me see.", "reasoning": "Hm.", "tool_calls": [CALL]}
    upstream.on(CHAT, whole_json(chat_completion(1, [thought])))
    await chat(http, "mine", user("hi"))
    listed = await items(http, "mine")
    copy = (await http.post(ROUTE, json={"items": listed})).json()["id"]
    assert brief(await items(http, copy)) == brief(listed)


@pytest.mark.parametrize(
    ("item", "param"),
    (
        ("no object", "items[0]"),
        ({}, "items[0].role"),
        ({"role": ["user"], "content": "x"}, "items[0].role"),
        ({"role": "tool", "content": "x"}, "items[0].role"),
        ({"role": "user"}, "items[0].content"),
        ({"role": "user", "content": ["x"]}, "items[0].content"),
        ({"role": "user", "content": [{"type": "hologram"}]}, "items[0].content"),
        ({"role": "assistant", "content": [{"type": "input_image", "image_url": "x"}]}, "items[0].content"),
        ({"type": "function_call", "call_id": "c", "name": "f"}, "items[0].arguments"),
        ({"type": "function_call_output", "output": "x"}, "items[0].call_id"),
        ({"type": "function_call_output", "call_id": "c"}, "items[0].output"),
        ({"type": "item_reference", "id": "msg_x"}, "items[0].type"),
    ),
)
async def test_wrong_item_is_named(http: httpx.AsyncClient, item: Any, param: str) -> None:
    response = await http.post(ROUTE, json={"items": [item]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    (
        ("POST", "/mine/items", {}, "items"),
        ("POST", "/mine/items", {"items": []}, "items"),
        ("POST", "/mine/items", {"items": [{"role": "user", "content": "x"}] * 21}, "items"),
        ("POST", "/mine", {}, "metadata"),
        ("POST", "/mine", {"metadata": {"a": 1}}, "metadata"),
        ("POST", "/mine", {"metadata": {}, "title": "x"}, "title"),
        ("GET", "/mine/items?limit=101", None, "limit"),
        ("GET", "/mine/items?order=up", None, "order"),
        ("GET", "/mine/items?after=x", None, "after"),
    ),
)
async def test_wrong_request_is_named(http: httpx.AsyncClient, method: str, path: str, body: Any, param: str) -> None:
    await chat(http, "mine", user("hi"))
    response = await http.request(method, ROUTE + path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


# --- deleting items


async def test_message_in_the_middle_is_deleted_and_the_rest_stays(
    http: httpx.AsyncClient, sdk: AsyncOpenAI, tmp_path: Path
) -> None:
    first = await chat(http, "mine", {"role": "system", "content": "s"}, user("one"))
    told = first.json()["choices"][0]["message"]
    await chat(http, "mine", {"role": "system", "content": "s"}, user("one"), told, user("two"))
    conversation = "conv_" + first.headers["x-session-id"]
    while found := await items(http, conversation):
        left = [item["id"] for item in found if item != found[len(found) // 2]]
        deleted = await sdk.conversations.items.delete(found[len(found) // 2]["id"], conversation_id=conversation)
        Conversation.model_validate_json(deleted.to_json(), strict=True)
        assert [item["id"] for item in await items(http, conversation)] == left
        assert is_counted_right(tmp_path)
        sent = await http.get(f"/v1/sessions/{conversation}/messages", params={"format": "openai"})
        assert len(sent.json()["messages"]) == len(left)
        assert (await http.get(CHAT)).status_code == 200
    await chat(http, "mine", user("again"))
    assert [kind for kind, _ in brief(await items(http, conversation))] == ["message", "message"]
    assert is_counted_right(tmp_path)


async def test_client_that_still_sends_a_deleted_message_goes_on_in_place(http: httpx.AsyncClient) -> None:
    first = await chat(http, "mine", user("one"))
    told = first.json()["choices"][0]["message"]
    second = await chat(http, "mine", user("one"), told, user("two"))
    listed = await items(http, "mine")
    assert (await http.delete(f"{ROUTE}/mine/items/{listed[0]['id']}")).status_code == 200
    told_again = second.json()["choices"][0]["message"]
    await chat(http, "mine", user("one"), told, user("two"), told_again, user("three"))
    assert [said for _, said in brief(await items(http, "mine"))][:4] == [
        told["content"],
        "two",
        told_again["content"],
        "three",
    ]


async def test_parts_of_a_reply_are_deleted_one_by_one(
    http: httpx.AsyncClient, upstream: FakeUpstream, tmp_path: Path
) -> None:
    calls = [{**CALL, "id": f"c{number}"} for number in range(3)]
    thought = {"role": "assistant", "content": "Let me see.", "reasoning": "Hm.", "tool_calls": calls}
    upstream.on(CHAT, whole_json(chat_completion(1, [thought])))
    await chat(http, "mine", user("hi"))
    listed = await items(http, "mine")
    for position, item in enumerate(listed[1:], start=2):
        assert (await http.delete(f"{ROUTE}/mine/items/{item['id']}")).status_code == 200
        assert (await http.get(f"{ROUTE}/mine/items/{item['id']}")).status_code == 404
        assert [each["id"] for each in await items(http, "mine")] == [
            each["id"] for each in (listed[0], *listed[position:])
        ]
        assert is_counted_right(tmp_path)
    assert "see" not in str(rows_of(tmp_path / "stellarchat.db", "SELECT content, extra FROM messages"))


async def test_old_function_call_is_an_item(http: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    reply = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    upstream.on(CHAT, whole_json(chat_completion(1, [reply])))
    await chat(http, "mine", user("hi"))
    _, call = await items(http, "mine")
    assert (call["type"], call["name"]) == ("function_call", "f")
    assert (await http.delete(f"{ROUTE}/mine/items/{call['id']}")).status_code == 200
    assert len(await items(http, "mine")) == 1


@pytest.mark.parametrize("order", ("asc", "desc"))
async def test_all_items_can_be_deleted_while_they_are_listed(
    http: httpx.AsyncClient, sdk: AsyncOpenAI, order: Any
) -> None:
    session_id = (await chat(http, "mine", *(user(str(number)) for number in range(7)))).headers["x-session-id"]
    conversation = f"conv_{session_id}"
    async for item in sdk.conversations.items.list(conversation, limit=2, order=order):
        await sdk.conversations.items.delete(str(item.id), conversation_id=conversation)
    assert await items(http, conversation) == []


# --- who and where


async def test_conversations_of_another_user_do_not_exist(http: httpx.AsyncClient) -> None:
    own, other = {"X-User-Id": "ann"}, {"X-User-Id": "bob"}
    added = {"items": [{"role": "user", "content": "x"}]}
    path = f"{ROUTE}/{(await http.post(ROUTE, json=added, headers=own)).json()['id']}"
    item = (await http.get(f"{path}/items", headers=own)).json()["data"][0]["id"]
    requests: tuple[tuple[str, str, Any], ...] = (
        ("GET", path, None),
        ("POST", path, {"metadata": {}}),
        ("GET", f"{path}/items", None),
        ("POST", f"{path}/items", added),
        ("GET", f"{path}/items/{item}", None),
        ("DELETE", f"{path}/items/{item}", None),
        ("DELETE", path, None),
    )
    for method, url, body in requests:
        assert (await http.request(method, url, json=body, headers=other)).status_code == 404
    bobs = (await http.post(ROUTE, json={}, headers=other)).json()["id"]
    assert (await http.get(f"{ROUTE}/{bobs}/items/{item}", headers=other)).status_code == 404
    for method, url, body in requests:
        assert (await http.request(method, url, json=body, headers=own)).status_code == 200


async def test_routes_can_be_given_back_to_upstream(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.on("*", whole_json({"answered": "upstream"}))
    settings = settings_for(tmp_path, upstream_url=upstream.url, readback=False)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        for method, path in (("POST", ""), ("GET", "/conv_x"), ("DELETE", "/conv_x/items/y"), ("GET", "/conv_x/items")):
            assert (await http.request(method, ROUTE + path, json={})).json() == {"answered": "upstream"}
