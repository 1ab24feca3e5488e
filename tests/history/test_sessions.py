"""The session and history routes over a real socket, in both façades."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.access.test_keys import bearer, make_key
from tests.fake_upstream import fake_upstream
from tests.long import examples
from tests.serving import running_proxy, settings_for

SESSION_KEYS = [
    "session_id",
    "user_id",
    "external_id",
    "title",
    "is_active",
    "metadata",
    "message_count",
    "tokens",
    "created_at",
    "updated_at",
]
MESSAGE_KEYS = [
    "message_id",
    "session_id",
    "parent_id",
    "exchange_id",
    "role",
    "content",
    "model",
    "tokens",
    "metadata",
    "status",
    "siblings",
    "created_at",
]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        yield http


@asynccontextmanager
async def keyed(folder: Path) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    """A client a caller."""
    keys = {name: make_key(folder, user_id=name) for name in ("alice", "bob")}
    keys["admin"] = make_key(folder, user_id="root", is_admin=True)
    async with running_proxy(settings_for(folder, auth="required")) as url:
        clients = {name: httpx.AsyncClient(base_url=url, headers=bearer(key)) for name, key in keys.items()}
        try:
            yield clients
        finally:
            for each in clients.values():
                await each.aclose()


async def make(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await http.post("/v1/sessions", json=body)
    assert response.status_code == 201, response.text
    session: dict[str, Any] = response.json()
    return session


async def say(http: httpx.AsyncClient, session_id: str, content: Any, **body: Any) -> dict[str, Any]:
    response = await http.post(f"/v1/sessions/{session_id}/messages", json={"role": "user", "content": content, **body})
    assert response.status_code == 201, response.text
    message: dict[str, Any] = response.json()
    return message


def assert_error(response: httpx.Response, status: int, *, param: str | None = None) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    if param is not None:
        assert error["param"] == param


async def test_session_is_made_with_what_is_given(client: httpx.AsyncClient) -> None:
    session = await make(client, user_id="u", title="T", session_id="mine", metadata={"a": 1})
    assert list(session) == SESSION_KEYS
    assert (session["user_id"], session["title"], session["external_id"]) == ("u", "T", "mine")
    assert session["metadata"] == {"a": 1}
    assert (session["message_count"], session["tokens"], session["is_active"]) == (0, 0, True)


async def test_session_without_anything_is_the_default_users(client: httpx.AsyncClient) -> None:
    session = await make(client)
    assert (session["user_id"], session["title"], session["metadata"]) == ("default_user", "New Conversation", {})


async def test_session_is_found_by_its_own_id_and_by_the_clients(client: httpx.AsyncClient) -> None:
    session = await make(client, session_id="mine/1")
    for path in (session["session_id"], "mine%2F1", "mine/1", "conv_mine/1"):
        assert (await client.get(f"/v1/sessions/{path}")).json() == session


async def test_session_id_that_is_taken_is_a_conflict(client: httpx.AsyncClient) -> None:
    session = await make(client, session_id="mine")
    for taken in ("mine", session["session_id"]):
        response = await client.post("/v1/sessions", json={"session_id": taken})
        assert_error(response, 409, param="session_id")
        assert response.json()["error"]["code"] == "session_exists"
    await make(client, session_id="mine", user_id="another")


async def test_sessions_are_listed_newest_activity_first(client: httpx.AsyncClient) -> None:
    ids = [(await make(client, title=str(number)))["session_id"] for number in range(5)]
    await say(client, ids[0], "again")
    listed = (await client.get("/v1/sessions")).json()
    assert [each["session_id"] for each in listed["sessions"]] == [ids[0], *reversed(ids[1:])]
    assert listed["total"] == 5


async def test_pages_of_sessions_by_offset_and_by_cursor_meet(client: httpx.AsyncClient) -> None:
    for number in range(5):
        await make(client, title=str(number))
    everything = (await client.get("/v1/sessions")).json()["sessions"]
    by_offset = [
        each
        for offset in (0, 2, 4)
        for each in (await client.get("/v1/sessions", params={"limit": 2, "offset": offset})).json()["sessions"]
    ]
    by_cursor: list[Any] = []
    while len(by_cursor) < 5:
        after = {"after": by_cursor[-1]["session_id"]} if by_cursor else {}
        by_cursor += (await client.get("/v1/sessions", params={"limit": 2, **after})).json()["sessions"]
    assert by_offset == by_cursor == everything


async def test_list_can_leave_out_what_is_not_active(client: httpx.AsyncClient) -> None:
    active, closed = await make(client), await make(client)
    await client.patch(f"/v1/sessions/{closed['session_id']}", json={"is_active": False})
    listed = (await client.get("/v1/sessions", params={"active_only": "true"})).json()
    assert [each["session_id"] for each in listed["sessions"]] == [active["session_id"]]
    assert listed["total"] == 1
    assert (await client.get("/v1/sessions")).json()["total"] == 2


async def test_list_of_an_unknown_user_is_empty(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/sessions", params={"user_id": "nobody"})
    assert response.json() == {"sessions": [], "total": 0}


@pytest.mark.parametrize("method", ("PATCH", "PUT"))
async def test_session_is_changed_where_something_is_given(client: httpx.AsyncClient, method: str) -> None:
    session = await make(client, title="T", metadata={"a": 1})
    path = f"/v1/sessions/{session['session_id']}"
    changed = (await client.request(method, path, json={"is_active": False, "metadata": {}})).json()
    assert (changed["title"], changed["is_active"], changed["metadata"]) == ("T", False, {})
    changed = (await client.request(method, path, json={"title": "新"})).json()
    assert (changed["title"], changed["is_active"]) == ("新", False)
    assert (await client.get(path)).json() == changed
    assert (await client.request(method, path, json={})).json() == changed


async def test_deleted_session_takes_its_messages_along(client: httpx.AsyncClient) -> None:
    session_id = (await make(client))["session_id"]
    await say(client, session_id, "hi")
    response = await client.delete(f"/v1/sessions/{session_id}")
    assert response.json() == {"session_id": session_id, "deleted": True}
    for path in ("", "/messages", "/exchanges"):
        assert_error(await client.get(f"/v1/sessions/{session_id}{path}"), 404)
    assert_error(await client.delete(f"/v1/sessions/{session_id}"), 404)
    assert (await client.get("/v1/sessions")).json()["total"] == 0


async def test_message_is_stored_with_all_that_was_sent(client: httpx.AsyncClient) -> None:
    session_id = (await make(client))["session_id"]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{ "a" : 1 }'}}
    body = {"role": "assistant", "tool_calls": [call], "model": "m", "tokens": 7, "metadata": {"k": [1]}, "odd": 2**70}
    response = await client.post(f"/v1/sessions/{session_id}/messages", json=body)
    assert response.status_code == 201
    message = response.json()
    assert list(message)[: len(MESSAGE_KEYS)] == MESSAGE_KEYS
    assert (message["content"], message["tool_calls"], message["odd"]) == (None, [call], 2**70)
    assert (message["model"], message["tokens"], message["metadata"]) == ("m", 7, {"k": [1]})
    assert (message["parent_id"], message["siblings"], message["status"]) == (None, 1, "completed")
    session = (await client.get(f"/v1/sessions/{session_id}")).json()
    assert (session["message_count"], session["tokens"]) == (1, 7)


CONTENTS: tuple[Any, ...] = (
    "",
    "héllo 世界",
    "a\0b",
    "\ud800 alone",
    [{"type": "text", "text": "x"}],
    [{"type": "text", "text": "\udfff"}],
    [],
)


async def test_content_comes_back_as_it_was_sent(client: httpx.AsyncClient) -> None:
    for content in CONTENTS:
        session_id = (await make(client))["session_id"]
        raw = json.dumps({"role": "user", "content": content}).encode()
        stored = await client.post(f"/v1/sessions/{session_id}/messages", content=raw)
        assert json.loads(stored.content)["content"] == content
        listed = json.loads((await client.get(f"/v1/sessions/{session_id}/messages")).content)
        assert listed["messages"][0]["content"] == content


async def test_image_comes_back_whole(client: httpx.AsyncClient) -> None:
    session_id = (await make(client))["session_id"]
    content = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5000}}]
    await say(client, session_id, content)
    for form in ({}, {"format": "openai"}):
        listed = (await client.get(f"/v1/sessions/{session_id}/messages", params=form)).json()
        assert listed["messages"][0]["content"] == content


async def test_pages_of_messages_go_both_ways(client: httpx.AsyncClient) -> None:
    session_id = (await make(client))["session_id"]
    ids = [(await say(client, session_id, str(number)))["message_id"] for number in range(5)]
    path = f"/v1/sessions/{session_id}/messages"

    async def page(**params: Any) -> list[str]:
        response = (await client.get(path, params=params)).json()
        assert response["total"] == 5
        assert response["session_info"]["session_id"] == session_id
        return [message["message_id"] for message in response["messages"]]

    assert await page() == ids
    assert await page(order="desc") == ids[::-1]
    assert await page(limit=2, offset=1) == ids[1:3]
    assert await page(limit=2, after=ids[1]) == ids[2:4]
    assert await page(limit=2, after=ids[3], order="desc") == [ids[2], ids[1]]
    assert await page(after=ids[4]) == []
    assert await page(offset=9) == []


async def test_chat_is_read_back_with_its_exchange(tmp_path: Path) -> None:
    async with (
        fake_upstream() as upstream,
        running_proxy(settings_for(tmp_path, upstream_url=upstream.url)) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        request = {"model": "fake", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.5}
        chat = await http.post("/v1/chat/completions", json=request, headers={"X-Session-Id": "mine"})
        listed = (await http.get("/v1/sessions/mine/messages")).json()["messages"]
        ready = (await http.get("/v1/sessions/mine/messages", params={"format": "openai"})).json()["messages"]
        exchanges = (await http.get("/v1/sessions/mine/exchanges")).json()
    reply = chat.json()["choices"][0]["message"]["content"]
    assert [(each["role"], each["content"]) for each in listed] == [("user", "hello"), ("assistant", reply)]
    assert ready[0] == {"role": "user", "content": "hello"}
    assert (ready[1]["role"], ready[1]["content"]) == ("assistant", reply)
    assert listed[1]["finish_reason"] == "stop"
    assert exchanges["total"] == 1
    exchange = exchanges["exchanges"][0]
    assert exchange["parameters"] == {"model": "fake", "temperature": 0.5}
    assert (exchange["status"], exchange["http_status"]) == ("completed", 200)
    assert exchange["exchange_id"] == listed[0]["exchange_id"] == listed[1]["exchange_id"]
    assert not {"leaf_no", "context", "worker_id"} & set(exchange)


async def test_history_of_a_user_holds_its_sessions_with_their_messages(client: httpx.AsyncClient) -> None:
    first, second = await make(client, user_id="u"), await make(client, user_id="u")
    await say(client, first["session_id"], "one")
    history = (await client.get("/v1/users/u/history")).json()
    assert list(history) == ["user", "sessions", "total"]
    assert list(history["user"]) == ["user_id", "username", "created_at", "last_active"]
    assert [each["session_id"] for each in history["sessions"]] == [first["session_id"], second["session_id"]]
    assert [each["content"] for each in history["sessions"][0]["messages"]] == ["one"]
    assert history["sessions"][1]["messages"] == []
    assert history["total"] == 2
    page = (await client.get("/v1/users/u/history", params={"limit": 1, "offset": 1})).json()
    assert page["sessions"] == history["sessions"][1:]


async def test_history_can_be_cut_to_a_time_span(client: httpx.AsyncClient) -> None:
    session = await make(client, user_id="u")
    now = session["updated_at"]
    for params, total in (
        ({"since": now}, 1),
        ({"until": now}, 0),
        ({"since": "2020-01-01T00:00:00+02:00", "until": "2999-01-01"}, 1),
        ({"since": "2999-01-01T00:00:00Z"}, 0),
    ):
        history = (await client.get("/v1/users/u/history", params=params)).json()
        assert (history["total"], len(history["sessions"])) == (total, total)
    assert (await client.get("/v1/users/u/history?since=2020-01-01T00:00:00+02:00")).json()["total"] == 1


async def test_history_is_streamed_a_session_a_line(client: httpx.AsyncClient) -> None:
    for number in range(12):
        session = await make(client, user_id="u")
        await say(client, session["session_id"], str(number))
    response = await client.get("/v1/users/u/history", headers={"Accept": "application/x-ndjson"})
    assert response.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert [line["messages"][0]["content"] for line in lines] == [str(number) for number in range(11, -1, -1)]
    assert lines == (await client.get("/v1/users/u/history", params={"limit": 1000})).json()["sessions"]


async def test_long_branch_is_streamed_in_pieces(client: httpx.AsyncClient) -> None:
    session = await make(client, user_id="u")
    for number in range(5):
        await say(client, session["session_id"], str(number) * 600_000)
    history = (await client.get("/v1/users/u/history")).json()
    assert [message["content"][0] for message in history["sessions"][0]["messages"]] == list("01234")


async def test_history_of_an_unknown_user_is_not_found(client: httpx.AsyncClient) -> None:
    assert_error(await client.get("/v1/users/nobody/history"), 404)


async def test_counted_pages_show_the_same_sessions(client: httpx.AsyncClient) -> None:
    made = [(await client.post("/api/sessions", json={"title": str(number)})).json() for number in range(3)]
    listed = (await client.get("/api/sessions", params={"page": 2, "size": 2})).json()
    assert {key: listed[key] for key in ("page", "size", "total")} == {"page": 2, "size": 2, "total": 3}
    assert listed["items"] == [made[0]]
    assert {"id", "title", "created_at", "updated_at", "is_active"} <= set(made[0])
    assert (await client.get(f"/v1/sessions/{made[0]['id']}")).json()["title"] == "0"


async def test_body_of_a_new_session_may_be_left_out(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/sessions")
    assert (response.status_code, response.json()["title"]) == (201, "New Conversation")


async def test_counted_session_is_read_changed_and_deleted(client: httpx.AsyncClient) -> None:
    path = "/api/sessions/" + (await client.post("/api/sessions", json={})).json()["id"]
    stored = (await client.post(f"{path}/messages", json={"role": "user", "content": "hi", "tokens": 2})).json()
    assert {"id", "session_id", "role", "content", "created_at", "tokens", "metadata"} <= set(stored)
    assert (await client.get(path)).json()["messages"] == [stored]
    listed = (await client.get(f"{path}/messages")).json()
    assert listed == {"items": [stored], "page": 1, "size": 20, "total": 1}
    assert (await client.put(path, json={"title": "new"})).json()["title"] == "new"
    assert_error(await client.put(path, json={}), 400, param="title")
    assert (await client.delete(path)).json() == {"success": True}
    assert_error(await client.get(path), 404)


BAD_QUERIES: tuple[tuple[Any, str], ...] = (
    *((f"limit={value}", "limit") for value in ("0", "1001", "-1", "a", "1_0", "٣", "", "9" * 30)),
    *((f"offset={value}", "offset") for value in ("-1", "1.5", "9" * 18)),
    ("after=nothing", "after"),
    ("after=%00", "after"),
    ("active_only=perhaps", "active_only"),
    ("user_id=%00", "user_id"),
    ("user_id=", "user_id"),
)


async def test_bad_value_of_the_session_list_is_named(client: httpx.AsyncClient) -> None:
    for query, param in BAD_QUERIES:
        assert_error(await client.get(f"/v1/sessions?{query}"), 400, param=param)


async def test_bad_value_of_any_other_query_is_named(client: httpx.AsyncClient) -> None:
    path = "/v1/sessions/" + (await make(client, user_id="u"))["session_id"]
    for query, param in (
        ("messages?order=up", "order"),
        ("messages?branch=nothing", "branch"),
        ("messages?after=nothing", "after"),
        ("messages?format=xml", "format"),
        ("exchanges?after=nothing", "after"),
    ):
        assert_error(await client.get(f"{path}/{query}"), 400, param=param)
    for value in ("yesterday", "0001-01-01T00:00:00+14:00", "", "2026-13-01"):
        assert_error(await client.get("/v1/users/u/history", params={"since": value}), 400, param="since")
    for query, param in (("page=0", "page"), ("size=1001", "size"), (f"page={10**17}", "page")):
        assert_error(await client.get(f"/api/sessions?{query}"), 400, param=param)


BAD_SESSIONS: tuple[tuple[Any, str], ...] = (
    ({"title": ""}, "title"),
    ({"title": "x" * 501}, "title"),
    ({"title": 1}, "title"),
    ({"title": "a\0"}, "title"),
    ({"title": "\ud800"}, "title"),
    ({"metadata": []}, "metadata"),
    ({"metadata": {"k": "x" * 65536}}, "metadata"),
    ({"user_id": 1}, "user_id"),
    ({"session_id": "two words"}, "session_id"),
    ({"session_id": ""}, "session_id"),
    ({"session_id": "x" * 129}, "session_id"),
)


async def test_bad_value_of_a_new_session_is_named(client: httpx.AsyncClient) -> None:
    for body, param in BAD_SESSIONS:
        assert_error(await client.post("/v1/sessions", content=json.dumps(body)), 400, param=param)


BAD_MESSAGES: tuple[tuple[Any, str], ...] = (
    ({"content": "x"}, "role"),
    ({"role": "king", "content": "x"}, "role"),
    ({"role": ["user"], "content": "x"}, "role"),
    ({"role": "user"}, "content"),
    ({"role": "assistant", "tool_calls": []}, "content"),
    ({"role": "assistant", "tool_calls": "f"}, "tool_calls"),
    ({"role": "user", "content": 1}, "content"),
    ({"role": "user", "content": ["x"]}, "content"),
    ({"role": "user", "content": "x", "tokens": -1}, "tokens"),
    ({"role": "user", "content": "x", "tokens": 2**64}, "tokens"),
    ({"role": "user", "content": "x", "tokens": True}, "tokens"),
    ({"role": "user", "content": "x", "model": 1}, "model"),
    ({"role": "user", "content": "x", "metadata": "m"}, "metadata"),
)


async def test_bad_value_of_a_new_message_is_named(client: httpx.AsyncClient) -> None:
    for body, param in BAD_MESSAGES:
        session_id = (await make(client))["session_id"]
        for facade in ("v1", "api"):
            response = await client.post(f"/{facade}/sessions/{session_id}/messages", json=body)
            assert_error(response, 400, param=param)


NO_OBJECTS: tuple[bytes, ...] = (b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"a":' * 300 + b"1" + b"}" * 300)


async def test_body_that_is_no_object_is_refused(client: httpx.AsyncClient) -> None:
    for body in NO_OBJECTS:
        path = f"/v1/sessions/{(await make(client))['session_id']}"
        assert_error(await client.post("/v1/sessions", content=body), 400)
        assert_error(await client.patch(path, content=body), 400)
        assert_error(await client.post(f"{path}/messages", content=body), 400)


async def test_method_that_is_not_there_says_which_are(client: httpx.AsyncClient) -> None:
    for path, allowed in (("/v1/sessions", "GET, POST, HEAD"), ("/v1/sessions/x/messages", "GET, POST, HEAD")):
        response = await client.delete(path)
        assert_error(response, 405)
        assert response.headers["allow"] == allowed
    assert (await client.head("/v1/sessions")).status_code == 200


async def test_id_out_of_form_is_not_found(client: httpx.AsyncClient) -> None:
    for text in ("%00", "a%00b", "%FF", "%ED%A0%80", "x" * 200, "%20", "'%20OR%201=1", "%C3%A9"):
        for path in (f"/v1/sessions/{text}", f"/v1/sessions/{text}/messages", f"/api/sessions/{text}"):
            assert_error(await client.get(path), 404)


REACHES = [
    ("GET", "", None),
    ("GET", "/messages", None),
    ("GET", "/exchanges", None),
    ("POST", "/messages", {"role": "user", "content": "x"}),
    ("PATCH", "", {"title": "x"}),
    ("PUT", "", {"title": "x"}),
    ("DELETE", "", None),
]


@pytest.mark.parametrize("facade", ("v1", "api"))
async def test_another_users_session_is_not_there(tmp_path: Path, facade: str) -> None:
    async with keyed(tmp_path) as clients:
        session = await make(clients["alice"], session_id="mine")
        assert session["user_id"] == "alice"
        for method, rest, body in REACHES:
            if facade == "api" and rest == "/exchanges":
                continue
            for id_ in (session["session_id"], "mine"):
                path = f"/{facade}/sessions/{id_}{rest}"
                assert_error(await clients["bob"].request(method, path, json=body), 404)
                forged = await clients["bob"].request(method, path, json=body, headers={"X-User-Id": "alice"})
                assert_error(forged, 404)
        assert (await clients["alice"].get("/v1/sessions/mine")).json() == session
        for who in ("alice", "admin"):
            for method, rest, body in REACHES[:-1]:
                response = await clients[who].request(method, f"/v1/sessions/{session['session_id']}{rest}", json=body)
                assert response.status_code < 300, (who, method, rest)


async def test_lists_show_the_keys_user_alone(tmp_path: Path) -> None:
    async with keyed(tmp_path) as clients:
        await make(clients["alice"])
        assert (await clients["alice"].get("/v1/sessions")).json()["total"] == 1
        assert (await clients["bob"].get("/v1/sessions")).json()["total"] == 0
        assert (await clients["bob"].get("/api/sessions")).json()["total"] == 0
        assert_error(await clients["bob"].get("/v1/sessions", params={"user_id": "alice"}), 404)
        assert_error(await clients["bob"].get("/v1/users/alice/history"), 404)
        assert_error(await clients["bob"].post("/v1/sessions", json={"user_id": "alice"}), 404)
        as_alice = {"X-User-Id": "alice"}
        assert (await clients["bob"].get("/v1/sessions", headers=as_alice)).json()["total"] == 0
        assert (await clients["admin"].get("/v1/sessions", headers=as_alice)).json()["total"] == 1
        assert (await clients["admin"].get("/v1/sessions", params={"user_id": "alice"})).json()["total"] == 1
        assert (await clients["admin"].get("/v1/users/alice/history")).json()["total"] == 1
        assert (await make(clients["admin"]))["user_id"] == "root"


async def test_without_keys_a_named_user_sees_its_own(client: httpx.AsyncClient) -> None:
    session = await make(client, user_id="alice")
    path = f"/v1/sessions/{session['session_id']}"
    assert (await client.get(path)).status_code == 200
    assert (await client.get(path, headers={"X-User-Id": "alice"})).status_code == 200
    assert_error(await client.get(path, headers={"X-User-Id": "bob"}), 404)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [
        "title",
        "is_active",
        "metadata",
        "session_id",
        "user_id",
        "role",
        "content",
        "tokens",
        "model",
        "tool_calls",
        "tool_call_id",
        "name",
    ]
)
BODIES = st.dictionaries(NAMES | st.text(max_size=4), JSON | st.sampled_from(["user", "assistant", "x"]), max_size=6)
QUERIES = st.dictionaries(
    st.sampled_from(
        [
            "limit",
            "offset",
            "after",
            "active_only",
            "user_id",
            "order",
            "branch",
            "format",
            "page",
            "size",
            "since",
            "until",
        ]
    ),
    st.sampled_from(["1", "-1", "true", "desc", "openai", "2026-01-01"]) | st.text(max_size=6),
    max_size=4,
)
PATHS = st.sampled_from(
    [
        "/v1/sessions",
        "/v1/sessions/{}",
        "/v1/sessions/{}/messages",
        "/v1/sessions/{}/exchanges",
        "/v1/users/{}/history",
        "/api/sessions",
        "/api/sessions/{}",
        "/api/sessions/{}/messages",
    ]
)


@settings(
    max_examples=examples(80),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
async def test_no_input_is_an_internal_error(client: httpx.AsyncClient, data: st.DataObject) -> None:
    path = data.draw(PATHS).format(data.draw(st.sampled_from(["known", "default_user", "x", "%00", "%FF"])))
    method = data.draw(st.sampled_from(["GET", "POST", "PATCH", "PUT", "DELETE"]))
    query = {key: value.encode("utf-8", "replace").decode() for key, value in data.draw(QUERIES).items()}
    body = json.dumps(data.draw(BODIES | JSON)).encode()
    await client.post("/v1/sessions", json={"session_id": "known"})
    response = await client.request(method, path, params=query, content=body)
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert_error(response, response.status_code)
    assert response.headers["date"]
