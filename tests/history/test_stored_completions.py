"""Stored chat completions, read back with the OpenAI SDK from what was recorded."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionDeleted, ChatCompletionStoreMessage
from pydantic import BaseModel, ValidationError

from proxy.ids import uuid7
from proxy.storage import exchange_store
from proxy.storage.exchange import Exchange, Outcome, SessionRef
from proxy.storage.write_batch import write_batch
from proxy.wire.chat_reply import Completion
from proxy.wire.sse import Event
from tests.chats import Chats
from tests.engines import connected, on_both_engines, rows_of
from tests.fake_upstream import (
    FakeUpstream,
    chat_chunk,
    chat_completion,
    event,
    events_of,
    sse,
    whole_json,
)
from tests.serving import running_proxy, settings_for
from tests.stored import problems_of

pytestmark = on_both_engines

ROUTE = "/v1/chat/completions"
HELLO = {"role": "user", "content": "hello"}
STREAMS = {
    path.name: path.read_bytes() for path in sorted((Path(__file__).parent.parent / "streams").glob("default_chat*"))
}
RECORDED = [name for name, sent in STREAMS.items() if b'"choices"' in sent]
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture
async def http(upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings = settings_for(tmp_path, upstream_url=upstream.url)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, timeout=20) as client:
        yield client


@pytest.fixture
async def sdk(http: httpx.AsyncClient) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{http.base_url}/v1".replace("//v1", "/v1"), api_key="any", max_retries=0
    ) as client:
        yield client


async def chat(http: httpx.AsyncClient, *messages: Any, headers: Any = None, **body: Any) -> Any:
    asked = {"model": "m", "messages": list(messages) or [HELLO], **body}
    response = await http.post(ROUTE, json=asked, headers=headers)
    assert response.status_code == 200, response.text
    return response


async def stored(http: httpx.AsyncClient, path: str = "", **query: Any) -> Any:
    response = await http.get(ROUTE + path, params=query)
    assert response.status_code == 200, response.text
    return response.json()


def wrong_in(model: type[BaseModel], value: Any) -> list[str]:
    """Where a value is not what the SDK's model says, strictly."""
    try:
        model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as exc:
        return sorted(".".join(map(str, error["loc"])) for error in exc.errors())
    return []


def rows(folder: Path, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    return rows_of(folder / "stellarchat.db", query, parameters)


def is_counted_right(folder: Path) -> bool:
    """Whether each session counts what it has, and ends where it ends."""
    return not rows(
        folder,
        """
        SELECT session_id FROM sessions AS s
        WHERE message_count <> (SELECT COUNT(*) FROM messages AS m WHERE m.session_id = s.session_id)
           OR tokens <> (SELECT COALESCE(SUM(tokens), 0) FROM messages AS m WHERE m.session_id = s.session_id)
           OR (leaf_no IS NULL) <> (message_count = 0)
           OR (leaf_no IS NOT NULL AND leaf_no NOT IN (SELECT message_no FROM messages AS m
                                                       WHERE m.session_id = s.session_id))
        """,
    ) and not problems_of(folder / "stellarchat.db")


def store_many(folder: Path, count: int, *, user_id: str = "default_user", **request: Any) -> str:
    """Exchanges of one session, without a server; its id."""
    connection = connected(folder / "stellarchat.db")
    session_id = uuid7()
    with write_batch(connection) as rows:
        for number in range(count):
            metadata = {"number": str(number), "parity": "odd" if number % 2 else "even"}
            exchange = Exchange(
                user_id=user_id,
                session=SessionRef(session_id, "test"),
                endpoint=ROUTE,
                request_id=f"r{number}",
                request={"model": "m", "messages": [HELLO], "metadata": metadata, **request},
            )
            body = chat_completion(10_000 + number, [{"role": "assistant", "content": f"answer {number}"}])
            reply = Completion.from_body(json.dumps(body).encode())
            outcome = Outcome(status="completed", http_status=200, reply=reply)
            exchange_store.finish(rows, exchange, outcome)
    connection.close()
    return session_id


def without_nulls(value: Any) -> Any:
    """JSON without the keys that say nothing."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


# --- one completion


@pytest.mark.parametrize("name", RECORDED)
async def test_completion_is_as_upstream_sent_it(http: httpx.AsyncClient, upstream: FakeUpstream, name: str) -> None:
    is_stream = name.endswith(".sse")
    if is_stream:
        events = events_of(STREAMS[name])
        upstream.on(ROUTE, sse(events))
        folded = Completion()
        for each in events:
            folded.feed(Event(each, each.removeprefix(b"data: ").strip()))
        sent = folded.to_json_dict()
    else:
        sent = json.loads(STREAMS[name])
        upstream.on(ROUTE, whole_json(sent))
    await chat(http, stream=is_stream, temperature=0.5)
    shown = await stored(http, f"/{sent['id']}")
    said = without_nulls(sent)
    assert without_nulls({key: shown[key] for key in said}) == said
    assert (shown["temperature"], shown["status"]) == (0.5, "completed")
    assert wrong_in(ChatCompletion, shown) == []


async def test_retrieve_shows_parameters_and_metadata(http: httpx.AsyncClient, sdk: AsyncOpenAI) -> None:
    made = await sdk.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "hi"}],
        metadata={"topic": "tests"},
        seed=7,
        user="me",
        tools=[TOOL],
        extra_headers={"X-User-Id": "default_user"},
    )
    shown = await sdk.chat.completions.retrieve(made.id)
    assert (shown.id, shown.usage) == (made.id, made.usage)
    assert [choice.message for choice in shown.choices] == [choice.message for choice in made.choices]
    extra = shown.model_extra or {}
    assert (extra["seed"], extra["input_user"], extra["tools"], extra["top_p"]) == (7, "me", [TOOL], None)
    sessions = (await http.get("/v1/sessions")).json()["sessions"]
    assert shown.metadata == {"topic": "tests", "session_id": sessions[0]["session_id"]}


async def test_metadata_that_is_not_text_is_shown_as_text(http: httpx.AsyncClient) -> None:
    reply = (await chat(http, metadata={"a": 1, "b": True, "c": {"d": None}})).json()
    metadata = (await stored(http, f"/{reply['id']}"))["metadata"]
    assert {key: metadata[key] for key in "abc"} == {"a": "1", "b": "true", "c": '{"d":null}'}
    odd = (await chat(http, metadata="no object")).json()
    assert list((await stored(http, f"/{odd['id']}"))["metadata"]) == ["session_id"]


async def test_unknown_completion_is_not_found(sdk: AsyncOpenAI) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: sdk.chat.completions.retrieve("chatcmpl-none"),
        lambda: sdk.chat.completions.update("chatcmpl-none", metadata={}),
        lambda: sdk.chat.completions.delete("chatcmpl-none"),
        lambda: sdk.chat.completions.messages.list("chatcmpl-none"),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError) as caught:
            await call()
        assert caught.value.type == "not_found_error"


async def test_cut_reply_has_no_finish_reason_and_says_so(http: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    deltas: tuple[Any, ...] = ({"role": "assistant", "content": ""}, {"content": "half"})
    events = [event(chat_chunk(1, delta)) for delta in deltas]
    upstream.on(ROUTE, sse(events, die_after=2))
    with pytest.raises(httpx.RemoteProtocolError):
        await http.post(ROUTE, json={"model": "m", "messages": [HELLO], "stream": True})
    [shown] = (await stored(http))["data"]
    assert shown["status"] == "incomplete"
    assert shown["choices"][0]["finish_reason"] is None
    assert shown["choices"][0]["message"]["content"] == "half"
    assert wrong_in(ChatCompletion, shown) == ["choices.0.finish_reason"]


async def test_reply_cut_before_its_first_word_has_an_empty_choice(
    http: httpx.AsyncClient, upstream: FakeUpstream
) -> None:
    upstream.on(ROUTE, sse([b": nothing yet\n\n"], die_after=1))
    with pytest.raises(httpx.RemoteProtocolError):
        await http.post(ROUTE, json={"model": "m", "messages": [HELLO], "stream": True})
    [shown] = (await stored(http))["data"]
    assert shown["id"].startswith("chatcmpl-")
    assert shown["choices"][0]["message"] == {"role": "assistant", "content": None}
    assert await stored(http, f"/{shown['id']}") == shown


async def test_refused_chats_are_no_completions(http: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    upstream.on(ROUTE, whole_json({"error": {"message": "no"}}, status=400))
    assert (await http.post(ROUTE, json={"model": "m", "messages": [HELLO]})).status_code == 400
    assert await stored(http) == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


async def test_id_that_was_used_again_is_the_newest_ones(http: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    for text in ("first", "second"):
        upstream.on(ROUTE, whole_json(chat_completion(1, [{"role": "assistant", "content": text}])))
        await chat(http)
    both = (await stored(http))["data"]
    assert [each["choices"][0]["message"]["content"] for each in both] == ["first", "second"]
    assert both[1]["id"] == "chatcmpl-1" != both[0]["id"]
    for each in both:
        assert await stored(http, f"/{each['id']}") == each


async def test_id_of_another_form_is_replaced_by_ours(http: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    reply = chat_completion(1, [{"role": "assistant", "content": "x"}]) | {"id": "gen-1"}
    upstream.on(ROUTE, whole_json(reply))
    await chat(http)
    [shown] = (await stored(http))["data"]
    assert shown["id"].startswith("chatcmpl-")
    assert await stored(http, f"/{shown['id']}") == shown


async def test_several_choices_are_shown_in_order(http: httpx.AsyncClient) -> None:
    reply = (await chat(http, n=3)).json()
    shown = await stored(http, f"/{reply['id']}")
    assert without_nulls(shown["choices"]) == without_nulls(reply["choices"])
    assert [choice["index"] for choice in shown["choices"]] == [0, 1, 2]


# --- the list


async def test_many_completions_are_listed_to_the_end(sdk: AsyncOpenAI, tmp_path: Path) -> None:
    store_many(tmp_path, 400)
    expected = [f"answer {number}" for number in range(400)]
    oldest = [each.choices[0].message.content async for each in sdk.chat.completions.list(limit=100)]
    assert oldest == expected
    newest = [each.choices[0].message.content async for each in sdk.chat.completions.list(order="desc", limit=99)]
    assert newest == expected[::-1]
    first = await sdk.chat.completions.list()
    assert len(first.data) == 20
    assert first.has_more is True


async def test_filters_must_all_match(sdk: AsyncOpenAI, tmp_path: Path) -> None:
    session_id = store_many(tmp_path, 1100)
    store_many(tmp_path, 3, user_id="another")
    found = [each async for each in sdk.chat.completions.list(metadata={"number": "1099"})]
    assert [(each.metadata or {})["number"] for each in found] == ["1099"]
    assert [each async for each in sdk.chat.completions.list(metadata={"number": "4", "parity": "odd"})] == []
    odd = [each async for each in sdk.chat.completions.list(metadata={"parity": "odd"}, limit=100, order="desc")]
    assert [(each.metadata or {})["number"] for each in odd] == [str(number) for number in range(1099, 0, -2)]
    assert len((await sdk.chat.completions.list(model=odd[0].model, limit=50)).data) == 50
    assert (await sdk.chat.completions.list(model="another")).data == []
    mine = {"session_id": session_id, "number": "5"}
    assert len((await sdk.chat.completions.list(metadata=mine)).data) == 1
    assert (await sdk.chat.completions.list(metadata={"session_id": "none"})).data == []


async def test_session_is_a_list_of_completions(http: httpx.AsyncClient, sdk: AsyncOpenAI) -> None:
    first = await chat(http, headers={"X-Session-Id": "mine"})
    second = await chat(http, headers={"X-Session-Id": "mine"})
    await chat(http)
    session_id = first.headers["x-session-id"]
    for id_ in ("mine", session_id, f"conv_{session_id}"):
        listed = [each.id async for each in sdk.chat.completions.list(metadata={"session_id": id_}, limit=1)]
        assert listed == [first.json()["id"], second.json()["id"]]


@pytest.mark.parametrize(
    ("query", "param"),
    (
        ({"limit": "-1"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "chatcmpl-none"}, "after"),
        ({"model": ""}, "model"),
    ),
)
async def test_wrong_query_is_named(http: httpx.AsyncClient, query: Any, param: str) -> None:
    response = await http.get(ROUTE, params=query)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


# --- messages


async def test_messages_are_those_of_the_request(http: httpx.AsyncClient, sdk: AsyncOpenAI) -> None:
    parts = [
        {"type": "text", "text": "what is"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5000}},
    ]
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    asked: list[Any] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    reply = (await chat(http, *asked)).json()
    told = {"role": "assistant", "content": reply["choices"][0]["message"]["content"]}
    later = (await chat(http, *asked, told, HELLO)).json()
    assert [each["role"] for each in (await stored(http, f"/{later['id']}/messages"))["data"]] == [
        *(message["role"] for message in asked),
        "assistant",
        "user",
    ]
    shown = (await stored(http, f"/{reply['id']}/messages"))["data"]
    assert [message["id"] for message in shown] == [f"{reply['id']}-{number}" for number in range(4)]
    assert [message["role"] for message in shown] == [message["role"] for message in asked]
    assert (shown[1]["content"], shown[1]["content_parts"]) == ("what is", parts)
    assert (shown[2]["tool_calls"], shown[3]["tool_call_id"]) == ([call], "c1")
    for message in shown:
        # The SDK's type is the assistant's message for every role.
        assert wrong_in(ChatCompletionStoreMessage, message | {"role": "assistant"}) == []
    pages = [each.content async for each in sdk.chat.completions.messages.list(later["id"], limit=2)]
    assert pages == ["be brief", "what is", None, "sunny", told["content"], "hello"]
    backwards = [each.content async for each in sdk.chat.completions.messages.list(later["id"], limit=2, order="desc")]
    assert backwards == pages[::-1]


async def test_messages_are_those_of_the_request_not_of_the_session(http: httpx.AsyncClient) -> None:
    mine = {"X-Session-Id": "mine"}
    await http.post(ROUTE, json={"model": "m", "messages": [{"role": "user", "content": "first"}]}, headers=mine)
    asked = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "only the new turn"}]
    reply = (await http.post(ROUTE, json={"model": "m", "messages": asked}, headers=mine)).json()
    shown = (await stored(http, f"/{reply['id']}/messages"))["data"]
    assert [(message["role"], message["content"]) for message in shown] == [
        (message["role"], message["content"]) for message in asked
    ]


@pytest.mark.parametrize("after", ("x", "chatcmpl-1-", "chatcmpl-1-7", "chatcmpl-1-" + "9" * 5000))
async def test_messages_after_one_that_is_not_there_are_refused(http: httpx.AsyncClient, after: str) -> None:
    reply = (await chat(http)).json()
    response = await http.get(f"{ROUTE}/{reply['id']}/messages", params={"after": after})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "after")


# --- changes


async def test_metadata_is_set_and_the_session_stays(sdk: AsyncOpenAI) -> None:
    made = await sdk.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "x"}], metadata={"a": "b"}
    )
    before = await sdk.chat.completions.retrieve(made.id)
    assert before.metadata is not None
    after = await sdk.chat.completions.update(made.id, metadata={**before.metadata, "a": "c", "d": "e"})
    assert after.metadata == {**before.metadata, "a": "c", "d": "e"}
    assert wrong_in(ChatCompletion, after.model_dump(mode="json")) == []
    assert [each.id async for each in sdk.chat.completions.list(metadata={"a": "c"})] == [made.id]
    assert (await sdk.chat.completions.update(made.id, metadata=None)).metadata == {
        "session_id": before.metadata["session_id"]
    }


@pytest.mark.parametrize(
    ("body", "param"),
    (
        ({}, "metadata"),
        ({"metadata": {}, "model": "x"}, "model"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {"a" * 65: "b"}}, "metadata"),
        ({"metadata": {"a": "b" * 513}}, "metadata"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"metadata": {"session_id": "another"}}, "metadata.session_id"),
    ),
)
async def test_nothing_but_metadata_can_be_set(http: httpx.AsyncClient, body: Any, param: str) -> None:
    reply = (await chat(http)).json()
    response = await http.post(f"{ROUTE}/{reply['id']}", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_deleted_completion_is_gone_with_its_reply(
    http: httpx.AsyncClient, sdk: AsyncOpenAI, tmp_path: Path
) -> None:
    made = await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], n=2)
    kept = await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "y"}])
    deleted = await sdk.chat.completions.delete(made.id)
    assert wrong_in(ChatCompletionDeleted, deleted.model_dump(mode="json")) == []
    assert deleted.id == made.id
    with pytest.raises(openai.NotFoundError):
        await sdk.chat.completions.retrieve(made.id)
    assert [each.id async for each in sdk.chat.completions.list()] == [kept.id]
    assert rows(tmp_path, "SELECT content FROM messages WHERE role = 'user'") == [("x",), ("y",)]
    assert len(rows(tmp_path, "SELECT 1 FROM messages WHERE role = 'assistant'")) == 1
    assert is_counted_right(tmp_path)


@pytest.mark.parametrize("order", ("asc", "desc"))
async def test_all_completions_can_be_deleted_while_they_are_listed(
    sdk: AsyncOpenAI, tmp_path: Path, order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.history.deleted_cursors._KEPT_MAX", 3)
    store_many(tmp_path, 7)
    async for completion in sdk.chat.completions.list(limit=2, order=order):
        await sdk.chat.completions.delete(completion.id)
    assert [each async for each in sdk.chat.completions.list()] == []
    assert is_counted_right(tmp_path)


async def test_reply_that_is_gone_on_from_stays_in_the_session(http: httpx.AsyncClient, tmp_path: Path) -> None:
    first = (await chat(http, headers={"X-Session-Id": "mine"})).json()
    told = first["choices"][0]["message"]
    await chat(http, HELLO, told, {"role": "user", "content": "more"}, headers={"X-Session-Id": "mine"})
    assert (await http.delete(f"{ROUTE}/{first['id']}")).status_code == 200
    messages = (await http.get("/v1/sessions/mine/messages")).json()["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    assert is_counted_right(tmp_path)


async def test_session_goes_on_after_its_last_reply_was_deleted(http: httpx.AsyncClient, tmp_path: Path) -> None:
    for text in ("one", "two"):
        last = (await chat(http, {"role": "user", "content": text}, headers={"X-Session-Id": "mine"})).json()
    assert (await http.delete(f"{ROUTE}/{last['id']}")).status_code == 200
    assert is_counted_right(tmp_path)
    await chat(http, {"role": "user", "content": "three"}, headers={"X-Session-Id": "mine"})
    messages = (await http.get("/v1/sessions/mine/messages")).json()["messages"]
    assert [message["content"] for message in messages if message["role"] == "user"] == ["one", "two", "three"]
    assert is_counted_right(tmp_path)


def test_reply_that_a_chat_in_progress_ends_with_is_not_deleted(tmp_path: Path) -> None:
    from proxy.history import stored_completions as module  # the name is this file's own for a request

    chats = Chats(tmp_path / "stellarchat.db")
    session_id = chats.store([HELLO], {"role": "assistant", "content": "half"})
    [exchange_id] = chats.connection.execute("SELECT exchange_id FROM exchanges").fetchone()
    going_on = chats.begin([HELLO, {"role": "assistant", "content": "half"}], session=session_id)
    with write_batch(chats.connection) as rows:
        exchange_store.begin(rows, going_on, worker_id="w")
    with chats.connection.transaction():
        module.delete_completion(chats.connection, f"chatcmpl-{exchange_id}", user_id="u")
    reply = Completion.from_body(json.dumps(chat_completion(2, [{"role": "assistant", "content": "whole"}])).encode())
    with write_batch(chats.connection) as rows:
        outcome = Outcome(status="completed", http_status=200, reply=reply)
        exchange_store.finish_begun(rows, going_on, outcome)
    assert chats.texts(session_id) == ["hello", "half", "whole"]
    chats.connection.close()
    assert is_counted_right(tmp_path)


# --- who and where


async def test_completions_of_another_user_do_not_exist(http: httpx.AsyncClient) -> None:
    own, other = {"X-User-Id": "ann"}, {"X-User-Id": "bob"}
    reply = (await chat(http, headers=own)).json()
    path = f"{ROUTE}/{reply['id']}"
    requests: tuple[tuple[str, str, Any], ...] = (
        ("GET", path, None),
        ("GET", f"{path}/messages", None),
        ("POST", path, {"metadata": {}}),
        ("DELETE", path, None),
    )
    for method, url, body in requests:
        assert (await http.request(method, url, json=body, headers=other)).status_code == 404
    assert (await http.get(ROUTE, headers=other)).json()["data"] == []
    assert (await http.get(ROUTE, headers=other, params={"after": reply["id"]})).status_code == 400
    for method, url, body in requests:
        assert (await http.request(method, url, json=body, headers=own)).status_code == 200


async def test_same_id_of_two_users_is_each_ones_own(http: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    for name in ("ann", "bob"):
        upstream.on(ROUTE, whole_json(chat_completion(1, [{"role": "assistant", "content": name}])))
        await chat(http, headers={"X-User-Id": name})
    for name in ("ann", "bob"):
        [shown] = (await http.get(ROUTE, headers={"X-User-Id": name})).json()["data"]
        assert shown["id"] == "chatcmpl-1"
        found = (await http.get(f"{ROUTE}/chatcmpl-1", headers={"X-User-Id": name})).json()
        assert found["choices"][0]["message"]["content"] == name
    assert (await stored(http, "/chatcmpl-1"))["choices"][0]["message"]["content"] == "bob"


async def test_routes_can_be_given_back_to_upstream(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.on("*", whole_json({"answered": "upstream"}))
    upstream.on(ROUTE, whole_json({"answered": "upstream"}))
    settings = settings_for(tmp_path, upstream_url=upstream.url, readback=False)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        for method, path in (("GET", ROUTE), ("GET", f"{ROUTE}/chatcmpl-1"), ("DELETE", f"{ROUTE}/chatcmpl-1")):
            assert (await http.request(method, path)).json() == {"answered": "upstream"}


async def test_routes_below_that_are_upstreams_are_relayed(http: httpx.AsyncClient, upstream: FakeUpstream) -> None:
    upstream.on("*", whole_json({"answered": "upstream"}))
    assert (await http.post(f"{ROUTE}/render", json={})).json() == {"answered": "upstream"}
