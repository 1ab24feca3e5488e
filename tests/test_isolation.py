"""Who may read what: every route of the table, asked by everyone, for one's own things and for another's.

A new route needs a row here; without one the first test fails.
"""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import Route

from proxy.routes import route_table
from proxy.routes.resource import Resource
from proxy.settings import Settings
from proxy.storage.sqlite import connect
from proxy.web.markdown_process import MarkdownProcess
from proxy.wire.endpoints import ENDPOINTS
from tests.access.test_keys import bearer, make_key, until
from tests.dialect_upstream import events_text
from tests.fake_upstream import FakeUpstream, fake_upstream, whole_json
from tests.fake_upstream import until as until_open
from tests.long import examples
from tests.serving import running_proxy, settings_for

JSON = dict[str, Any]

REFUSED = ("no key", "bad key", "expired", "revoked")
SECRET = {"ann": "ann keeps this to herself", "bob": "bob keeps this to himself"}
COLLIDING = "same-id"  # the id that both made up
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Row:
    """One method of one route: how it is asked, and what each may expect."""

    method: str
    path: str  # as in the route table
    target: str = ""  # {session}, {item} and the like are ann's; by default the path itself
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200  # for ann
    other: int = 404  # for bob, who asks for what is ann's
    admin: int = 200
    refused: int = 401  # for those without a good key

    @property
    def asked(self) -> str:
        return self.target or self.path

    @property
    def takes_session(self) -> bool:
        return "{session}" in self.asked or "{session}" in str(self.headers)


def own(method: str, path: str, **more: Any) -> Row:
    """A row of a route below one session."""
    return Row(method, path, target=path.replace("{session_id:path}", "{session}"), **more)


def mine(method: str, path: str, **more: Any) -> Row:
    """A row of a route whose answer is the caller's own data."""
    return Row(method, path, **{"other": more.get("status", 200), "admin": more.get("status", 200), **more})


STORED = CHAT + "/chatcmpl-{id:path}"
RESPONSE = "/v1/responses/{id}"
TALK = "/v1/conversations/{session_id:path}"
SESSION, API = "/v1/sessions/{session_id:path}", "/api/sessions/{session_id:path}"
USER = "/v1/users/{user_id:path}"
MESSAGE = {"role": "user", "content": "posted by hand"}
ASKED = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}

ALL_ROWS = (
    mine("GET", "/health", refused=200),
    mine("GET", "/ready", refused=200),
    mine("POST", CHAT, body=ASKED, headers={"X-Session-Id": "{session}"}),
    mine("POST", "/v1/responses", body=ASKED | {"input": "hello"}, headers={"X-Session-Id": "{session}"}),
    mine("POST", "/v1/messages", body=ASKED, headers={"X-Session-Id": "{session}"}),
    mine("POST", "/v1/completions", body=ASKED | {"prompt": "hello"}),  # relayed alone, unless a setting records it
    # A response that is none of the caller's is upstream's affair, which here knows everything.
    mine("GET", RESPONSE, target="/v1/responses/{response}"),
    mine("DELETE", RESPONSE, target="/v1/responses/{response}"),
    mine("GET", RESPONSE + "/input_items", target="/v1/responses/{response}/input_items"),
    mine("POST", RESPONSE + "/cancel", target="/v1/responses/{response}/cancel"),
    mine("GET", "/v1/sessions"),
    Row("GET", "/v1/sessions", "/v1/sessions?user_id={user}"),
    mine("POST", "/v1/sessions", body={"title": "new"}, status=201),
    Row("POST", "/v1/sessions", body={"title": "new", "user_id": "ann"}, status=201, admin=201),
    own("GET", SESSION),
    own("PUT", SESSION, body={"title": "changed"}),
    own("PATCH", SESSION, body={"title": "changed"}),
    own("DELETE", SESSION),
    own("GET", SESSION + "/messages"),
    Row("GET", SESSION + "/messages", "/v1/sessions/{session}/messages?format=responses"),
    Row("GET", SESSION + "/messages", "/v1/sessions/{session}/messages?format=anthropic"),
    own("POST", SESSION + "/messages", body=MESSAGE, status=201, admin=201),
    own("GET", SESSION + "/exchanges"),
    own("GET", SESSION + "/branches"),
    own("GET", SESSION + "/export"),
    mine("GET", "/v1/search", target="/v1/search?q=hello"),
    Row("GET", "/v1/search", "/v1/search?q=hello&user_id={user}"),
    Row("GET", "/v1/search", "/v1/search?q=hello&session_id={session}"),
    Row("GET", USER + "/history", "/v1/users/{user}/history"),
    Row("DELETE", USER, "/v1/users/{user}"),
    own("GET", SESSION + "/export"),
    mine("GET", "/v1/search", target="/v1/search?q=keeps"),
    Row("GET", "/v1/search", "/v1/search?q=keeps&user_id={user}"),
    mine("GET", "/api/sessions"),
    mine("POST", "/api/sessions", body={"title": "new"}, status=201),
    own("GET", API),
    own("PUT", API, body={"title": "changed"}),
    own("PATCH", API, body={"title": "changed"}),
    own("DELETE", API),
    own("GET", API + "/messages"),
    own("POST", API + "/messages", body=MESSAGE, status=201, admin=201),
    mine("GET", CHAT),
    Row("GET", CHAT, CHAT + "?after={completion}", other=400, admin=400),
    Row("GET", STORED, CHAT + "/{completion}"),
    Row("POST", STORED, CHAT + "/{completion}", body={"metadata": {"topic": "changed"}}),
    Row("DELETE", STORED, CHAT + "/{completion}"),
    Row("GET", STORED + "/messages", CHAT + "/{completion}/messages"),
    mine("POST", "/v1/conversations", body={"metadata": {"topic": "new"}}),
    own("GET", TALK),
    own("POST", TALK, body={"metadata": {"topic": "changed"}}),
    own("DELETE", TALK),
    own("GET", TALK + "/items"),
    own("POST", TALK + "/items", body={"items": [MESSAGE]}),
    Row("GET", TALK + "/items/{item_id}", "/v1/conversations/conv_{ann}/items/{item}"),
    Row("DELETE", TALK + "/items/{item_id}", "/v1/conversations/conv_{ann}/items/{item}"),
    # What is relayed: upstream's own routes are for all who have a key, those that control the engine for admins.
    mine("GET", "/v1/models"),
    mine("POST", "/{path:path}", target="/v1/embeddings", body={"input": "x"}),
    mine("POST", "/{path:path}", target="/tokenize", body={"prompt": "x"}),
    *(
        Row(method, "/{path:path}", target, status=404)
        for method, target in (
            ("POST", "/sleep"),
            ("POST", "/wake_up"),
            ("POST", "/reset_prefix_cache"),
            ("POST", "/collective_rpc"),
            ("POST", "/pause"),
            ("POST", "/resume"),
            ("POST", "/start_profile"),
            ("POST", "/v1/load_lora_adapter"),
            ("POST", "/v1/unload_lora_adapter/"),
            ("POST", "/scale_elastic_ep"),
            ("POST", "/update_weights"),
            ("POST", "/inference/v1/generate"),
            ("GET", "/docs"),
            ("GET", "/openapi.json"),
            ("GET", "/"),
            ("GET", "/HEALTH"),
        )
    ),
    *(
        Row(method, "/{path:path}", target, status=404, other=404, admin=404)
        for method, target in (("POST", "/v1/%2e%2e/sleep"), ("GET", "//health"))
    ),
)


def routes_of_table() -> set[tuple[str, str]]:
    """Every method of every route; `*` is whatever the last one relays."""
    found = {("POST", path) for path in ENDPOINTS}
    for route in route_table(Settings(web=False), MarkdownProcess()):
        assert isinstance(route, Route)
        endpoint = route.endpoint
        methods = set(endpoint._handlers) if isinstance(endpoint, Resource) else set(route.methods or {"*"})
        found |= {(method, route.path) for method in methods - {"HEAD"}}
    return found


def key_of(row: Row) -> tuple[str, str]:
    return "*" if row.path in ("/{path:path}", "/v1/models") else row.method, row.path


ROWS = tuple(row for row in ALL_ROWS if key_of(row) in routes_of_table())


def test_every_route_has_a_row() -> None:
    # /metrics is open on loopback, and test_auth.py is about it.
    assert not routes_of_table() - {key_of(row) for row in ROWS} - {("GET", "/metrics")}


@dataclass
class House:
    """A running proxy with ann, bob and an admin, each of whom has said something."""

    folder: Path
    http: httpx.AsyncClient
    upstream: FakeUpstream
    keys: dict[str, dict[str, str]]
    session_id: str = ""  # ann's
    completion_id: str = ""  # ann's
    item_id: str = ""  # ann's
    response_id: str = ""  # ann's

    async def ask(self, row: Row, caller: str, *, session: str, **more: str) -> httpx.Response:
        target = row.asked.replace("{session}", session).replace("{user}", "ann")
        target = target.replace("{completion}", self.completion_id).replace("{item}", self.item_id)
        target = target.replace("{ann}", self.session_id).replace("{response}", self.response_id)
        headers = {name: value.replace("{session}", session) for name, value in row.headers.items()}
        request = self.http.build_request(
            row.method, "/", json=row.body, headers={**headers, **self.keys[caller], **more}
        )
        path, _, query = target.partition("?")
        # As it is: no client may tidy up the path.
        request.url = request.url.copy_with(raw_path=f"{path}?{query}".rstrip("?").encode())
        return await self.http.send(request)

    async def say(self, caller: str) -> str:
        """A chat in the colliding session; its own id."""
        body = {"model": "m", "messages": [{"role": "user", "content": SECRET[caller]}]}
        reply = await self.http.post(CHAT, json=body, headers={**self.keys[caller], "X-Session-Id": COLLIDING})
        assert reply.status_code == 200
        return reply.headers["x-session-id"]

    async def respond(self, caller: str) -> str:
        """A response in the colliding session; its id."""
        content = [{"type": "output_text", "text": SECRET[caller], "annotations": []}]
        said = {"type": "message", "id": f"msg_{caller}", "role": "assistant", "content": content}
        response = {"id": f"resp_{caller}", "object": "response", "status": "completed", "output": [said]}
        self.upstream.on("/v1/responses", whole_json(response))
        body = {"model": "m", "input": SECRET[caller]}
        headers = {**self.keys[caller], "X-Session-Id": COLLIDING}
        assert (await self.http.post("/v1/responses", json=body, headers=headers)).status_code == 200
        self.upstream.on("/v1/responses", whole_json({"upstream": True}))
        return f"resp_{caller}"

    def rows_of(self, user: str) -> list[list[tuple[Any, ...]]]:
        """All that is stored of a user."""
        with closing(sqlite3.connect(self.folder / "stellarchat.db")) as connection:
            return [
                connection.execute(query, (user,)).fetchall()
                for query in (
                    "SELECT session_id, title, is_active, metadata, message_count FROM sessions"
                    " WHERE user_id = ? ORDER BY 1",
                    "SELECT m.* FROM messages m JOIN sessions s USING (session_id) WHERE s.user_id = ? ORDER BY 1",
                    "SELECT * FROM exchanges WHERE user_no = (SELECT user_no FROM users WHERE user_id = ?) ORDER BY 1",
                    "SELECT key_id FROM api_keys WHERE user_id = ? ORDER BY 1",
                )
            ]


@asynccontextmanager
async def house(folder: Path) -> AsyncIterator[House]:
    keys = {
        "no key": {},
        "bad key": bearer("sk-stellar-" + "x" * 43),
        "expired": bearer(make_key(folder, expires_at="2020-01-01T00:00:00.000Z")),
        "revoked": bearer(make_key(folder)),
        "ann": bearer(make_key(folder)),
        "bob": {"x-api-key": make_key(folder, user_id="bob")},
        "admin": bearer(make_key(folder, user_id="root", is_admin=True)),
    }
    with closing(sqlite3.connect(folder / "stellarchat.db")) as connection, connection:
        connection.execute(
            "UPDATE api_keys SET revoked_at = '2026-01-01T00:00:00.000Z' WHERE hint = ?",
            (keys["revoked"]["Authorization"][7:22],),
        )
    async with fake_upstream() as upstream:
        upstream.on("*", whole_json({"upstream": True}))
        configuration = settings_for(folder, upstream_url=upstream.url, auth="required")
        async with running_proxy(configuration) as url, httpx.AsyncClient(base_url=url, timeout=20) as http:
            made = House(folder, http, upstream, keys)
            made.session_id = await made.say("ann")
            [stored] = (await http.get(CHAT, headers=keys["ann"])).json()["data"]
            made.completion_id = stored["id"]
            items = (await http.get(f"/v1/conversations/{made.session_id}/items", headers=keys["ann"])).json()
            made.item_id = items["first_id"]
            made.response_id = await made.respond("ann")
            await made.say("bob")
            upstream.calls.clear()
            yield made


def name_of(row: Row) -> str:
    return f"{row.method} {row.asked}"


def in_houses(rows: Sequence[Row]) -> pytest.MarkDecorator:
    """What changes something is asked in a house of its own, all the rest in one."""
    changing = [row for row in rows if row.method != "GET" and row.path != "/{path:path}"]
    groups = {"the rest": [row for row in rows if row not in changing]}
    groups |= {f"{number} {name_of(row)}": [row] for number, row in enumerate(changing)}
    return pytest.mark.parametrize("group", groups.values(), ids=groups)


@in_houses(ROWS)
async def test_who_has_no_good_key_is_refused_and_a_stranger_finds_nothing(group: list[Row], tmp_path: Path) -> None:
    async with house(tmp_path / "a") as made:
        for row in group:
            await _assert_refused(made, row)


async def _assert_refused(made: House, row: Row) -> None:
    before, calls = made.rows_of("ann"), len(made.upstream.calls)
    for caller in REFUSED:
        for session in (made.session_id, COLLIDING):
            response = await made.ask(row, caller, session=session)
            assert response.status_code == row.refused, (name_of(row), caller, response.text)
            assert SECRET["ann"] not in response.text
            if row.refused == 401:
                assert response.headers["www-authenticate"] == "Bearer"
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
                assert len(made.upstream.calls) == calls, "relayed without a key"
    for more in ({}, {"X-User-Id": "ann"}):
        response = await made.ask(row, "bob", session=made.session_id, **more)
        assert response.status_code == row.other, (name_of(row), response.text)
        assert SECRET["ann"] not in response.text
        assert response.headers.get("x-session-id") != made.session_id
    assert made.rows_of("ann") == before, name_of(row)
    response = await made.ask(row, "ann", session=made.session_id)
    assert response.status_code == row.status, (name_of(row), response.text)


@in_houses(ROWS)
async def test_an_admin_may_do_it_for_another(group: list[Row], tmp_path: Path) -> None:
    async with house(tmp_path / "a") as made:
        for row in group:
            response = await made.ask(row, "admin", session=made.session_id)
            assert response.status_code == row.admin, (name_of(row), response.text)
        for call in made.upstream.calls:
            assert "authorization" not in call.headers


@in_houses([row for row in ROWS if row.takes_session])
async def test_an_id_that_two_users_made_up_is_each_one_s_own(group: list[Row], tmp_path: Path) -> None:
    async with house(tmp_path / "a") as made:
        for row in group:
            anns, bobs = made.rows_of("ann"), made.rows_of("bob")
            response = await made.ask(row, "bob", session=COLLIDING)
            assert response.status_code == row.status, name_of(row)
            assert SECRET["ann"] not in response.text
            assert made.session_id not in response.text
            assert made.rows_of("ann") == anns, name_of(row)
            if row.method not in ("GET", "DELETE"):
                assert made.rows_of("bob") != bobs
            bobs = made.rows_of("bob")
            response = await made.ask(row, "ann", session=COLLIDING)
            assert response.status_code == row.status, name_of(row)
            assert SECRET["bob"] not in response.text
            assert made.rows_of("bob") == bobs, name_of(row)
    async with house(tmp_path / "b") as made:
        for row in group:
            response = await made.ask(row, "admin", session=COLLIDING, **{"X-User-Id": "ann"})
            assert response.status_code == row.status, name_of(row)
            assert SECRET["bob"] not in response.text


REFERENCES: dict[str, Callable[[House], JSON]] = {
    "a response": lambda made: {"previous_response_id": made.response_id},
    "a conversation": lambda made: {"conversation": f"conv_{made.session_id}"},
    "a conversation as an object": lambda made: {"conversation": {"id": made.session_id}},
    "an item of upstream's": lambda _: {"input": [{"type": "item_reference", "id": "msg_ann"}]},
    "an item without a type": lambda _: {"input": [{"id": "msg_ann"}]},
    "an item of ours": lambda made: {"input": [{"type": "item_reference", "id": made.item_id}]},
}


@pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES)
async def test_what_a_response_refers_to_is_nothing_to_another(
    tmp_path: Path, reference: Callable[[House], JSON]
) -> None:
    async with house(tmp_path / "a") as made:
        body = {"model": "m", "input": "go on", **reference(made)}
        anns = made.rows_of("ann")
        for caller, more in (("bob", {}), ("bob", {"X-User-Id": "ann"}), ("admin", {})):
            reply = await made.http.post("/v1/responses", json=body, headers={**made.keys[caller], **more})
            assert made.upstream.calls[-1].json() == body, caller
            assert reply.headers["x-session-id"] != made.session_id
        assert made.rows_of("ann") == anns
        await made.http.post("/v1/responses", json=body, headers=made.keys["ann"])
        assert SECRET["ann"] in json.dumps(made.upstream.calls[-1].json())


async def test_a_response_in_progress_is_nothing_to_another(tmp_path: Path) -> None:
    gate = asyncio.Event()
    response = {"id": "resp_live", "object": "response", "status": "in_progress", "output": []}
    events: list[JSON] = [
        {"type": "response.created", "sequence_number": 0, "response": response},
        {"type": "response.completed", "sequence_number": 1, "response": {**response, "status": "completed"}},
    ]
    async with house(tmp_path / "a") as made:
        first, last = events_text(events)
        made.upstream.on("/v1/responses", until_open(gate, [first], [last]))
        body = {"model": "m", "input": SECRET["ann"], "stream": True}
        asked = asyncio.create_task(made.http.post("/v1/responses", json=body, headers=made.keys["ann"]))
        await made.upstream.until(lambda: made.upstream.calls)
        for method, path in (
            ("GET", ""),
            ("GET", "?stream=true"),
            ("GET", "/input_items"),
            ("POST", "/cancel"),
            ("DELETE", ""),
        ):
            reply = await made.http.request(method, f"/v1/responses/resp_live{path}", headers=made.keys["bob"])
            assert reply.json() == {"upstream": True}, (method, path)
        assert not asked.done()
        gate.set()
        assert (await asked).content == first + last


async def test_lists_show_one_s_own_and_an_admin_sees_whom_it_names(tmp_path: Path) -> None:
    async with house(tmp_path / "a") as made:
        for path, key in (("/v1/sessions", "sessions"), ("/api/sessions", "items")):
            for caller, named, titles in (
                ("ann", {}, [SECRET["ann"]]),
                ("bob", {}, [SECRET["bob"]]),
                ("bob", {"X-User-Id": "ann"}, [SECRET["bob"]]),
                ("admin", {}, []),
                ("admin", {"X-User-Id": "ann"}, [SECRET["ann"]]),
            ):
                response = await made.http.get(path, headers={**made.keys[caller], **named})
                assert [session["title"] for session in response.json()[key]] == titles, (path, caller, named)


async def test_deleting_a_user_leaves_nothing_of_it_and_all_of_the_others(tmp_path: Path) -> None:
    picture = "data:image/png;base64," + "QUJD" * 1000
    async with house(tmp_path / "a") as made:
        for number in range(3):
            parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": f"turn {number}"}]
            body = {"model": "m", "messages": [{"role": "user", "content": parts}]}
            assert (await made.http.post(CHAT, json=body, headers=made.keys["ann"])).status_code == 200
        bobs = made.rows_of("bob")
        response = await made.http.delete("/v1/users/ann", headers=made.keys["ann"])
        assert response.json() == {"user_id": "ann", "deleted": True}
        assert made.rows_of("ann") == [[], [], [], []]
        assert made.rows_of("bob") == bobs
        with closing(sqlite3.connect(made.folder / "stellarchat.db")) as connection:
            assert connection.execute("SELECT COUNT(*) FROM blobs").fetchone() == (0,)
            assert connection.execute("SELECT COUNT(*) FROM message_blobs").fetchone() == (0,)
            assert connection.execute("SELECT user_id FROM users WHERE user_id = 'ann'").fetchall() == []
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert (await made.http.get("/v1/models", headers=made.keys["ann"])).status_code == 401
        assert (await made.http.delete("/v1/users/ann", headers=made.keys["admin"])).status_code == 404


async def test_deleting_a_user_takes_more_than_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.routes.users._BATCH", 2)
    async with house(tmp_path / "a") as made:
        messages = [{"role": "user" if number % 2 else "assistant", "content": str(number)} for number in range(1, 8)]
        for session in ("one", "two", "three"):
            headers = {**made.keys["ann"], "X-Session-Id": session}
            body = {"model": "m", "messages": messages}
            assert (await made.http.post(CHAT, json=body, headers=headers)).status_code == 200
        await made.http.post("/v1/sessions", json={"title": "empty"}, headers=made.keys["ann"])
        assert (await made.http.delete("/v1/users/ann", headers=made.keys["admin"])).status_code == 200
        assert made.rows_of("ann") == [[], [], [], []]


async def test_deleting_a_user_waits_for_what_was_spilled_and_takes_it_too(tmp_path: Path) -> None:
    async with house(tmp_path / "a") as made:
        body = {"model": "m", "messages": [{"role": "user", "content": "said while the database was locked"}]}
        with closing(sqlite3.connect(made.folder / "stellarchat.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert (await made.http.post(CHAT, json=body, headers=made.keys["ann"])).status_code == 200
            assert (await made.http.delete("/v1/users/ann", headers=made.keys["ann"])).status_code == 503
            assert made.rows_of("ann")[0] != []
            other.execute("ROLLBACK")

        async def is_deleted() -> bool:
            return (await made.http.delete("/v1/users/ann", headers=made.keys["admin"])).status_code == 200

        await until(is_deleted)
        assert made.rows_of("ann") == [[], [], [], []]
        for file in made.folder.glob("stellarchat.db-spill-*"):
            assert b"while the database was locked" not in file.read_bytes()


async def test_what_a_deleted_user_said_is_in_no_file_any_more(tmp_path: Path) -> None:
    folder = tmp_path / "a"

    def files_with(text: str) -> list[str]:
        return [file.name for file in folder.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]

    async with house(folder) as made:
        for number in range(20):
            body = {"model": "m", "messages": [{"role": "user", "content": f"{SECRET['ann']} {number} " + "x" * 3000}]}
            assert (await made.http.post(CHAT, json=body, headers=made.keys["ann"])).status_code == 200
        assert files_with(SECRET["ann"])
        assert (await made.http.delete("/v1/users/ann", headers=made.keys["ann"])).status_code == 200
    assert files_with(SECRET["ann"]) == []
    assert files_with(SECRET["bob"]) == ["stellarchat.db"]
    with closing(connect(folder / "stellarchat.db")) as connection:
        assert connection.execute("PRAGMA secure_delete").fetchone() == (1,)


# What an injected query would need, and what breaks a quoting by hand.
PIECES = ("'", '"', "--", ";", "/*", "*/", "%", "_", "\\", ")", "(", " OR 1=1", " UNION SELECT ", "api_keys", "\u02bc")
ATTACKS = (
    "' OR '1'='1",
    "' OR 1=1 --",
    "'; DROP TABLE messages; --",
    '" OR ""="',
    "ann' --",
    "%",
    "_",
    "*",
    "' UNION SELECT key_hash FROM api_keys --",
    "x' OR user_id='ann",
    "-1",
    "1e309",
    "NULL",
    ":user_id",
)
attacks = st.one_of(st.sampled_from(ATTACKS), st.lists(st.sampled_from(PIECES), max_size=6).map("".join), st.text())


async def test_injected_sql_never_finds_more_than_one_s_own(tmp_path: Path) -> None:
    async with house(tmp_path / "a") as made:
        anns = made.rows_of("ann")
        loop = asyncio.get_running_loop()

        async def attack(row: Row, text: str, name: str) -> None:
            await _attack(made, row, text, name)

        rows = [row for row in ROWS if row.path not in ("/{path:path}", "/health", "/ready")]
        names = ("limit", "offset", "after", "order", "branch", "since", "until", "user_id", "page", "size", "q")

        @settings(max_examples=examples(150), deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(st.sampled_from(rows), attacks, st.sampled_from(names))
        def try_all(row: Row, text: str, name: str) -> None:
            asyncio.run_coroutine_threadsafe(attack(row, text, name), loop).result(30)

        await asyncio.to_thread(try_all)
        assert made.rows_of("ann") == anns


async def _attack(made: House, row: Row, text: str, name: str) -> None:
    """Put the text wherever the route takes one; nothing of ann's comes back, and nothing breaks."""
    safe = quote(text, safe="")
    target = row.asked.replace("{session}", safe).replace("{user}", safe).replace("{completion}", "chatcmpl-" + safe)
    target = target.replace("{ann}", safe).replace("{item}", safe)
    target += f"{'&' if '?' in target else '?'}{name}={safe}"
    body = row.body
    if isinstance(body, dict):
        body = {**body, "user_id": text, "session_id": text, "title": text, "metadata": {"session_id": text}}
    header = text.encode("ascii", "ignore").decode().replace("\r", "").replace("\n", "")
    header = "".join(character for character in header if character.isprintable()).strip()
    asked = Row(row.method, row.path, target, body=body, headers={"X-User-Id": header, "X-Session-Id": header})
    response = await made.ask(asked, "bob", session="")
    assert response.status_code < 500, (asked, response.text)
    assert SECRET["ann"] not in response.text
    assert "sqlite" not in response.text.lower()
    assert "html" not in response.headers["content-type"]
