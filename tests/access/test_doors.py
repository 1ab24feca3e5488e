"""The doors: names and pages where no key is asked for, and doors that stay locked through deletions and restarts."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.access.origins import Origins
from proxy.routes import route_table
from proxy.settings import Settings
from proxy.web.markdown_process import MarkdownProcess
from proxy.wire.headers import Headers
from tests.access.test_caller import files_with
from tests.access.test_keys import bearer, make_key, rows
from tests.fake_upstream import FakeUpstream, fake_upstream, head_bytes, mirror, raw
from tests.long import some_of
from tests.serving import running_proxy, server_process, settings_for

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}

OUR_HOSTS = (*("localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:80", "chat.example"),)
OTHER_HOSTS: tuple[str, ...] = (
    *("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0"),
)
OTHER_HOSTS += (*("localhost.", "[::2]", "127.0.0.2", "192.168.0.1", "xlocalhost"),)
OUR_ORIGINS = (
    *("http://localhost", "http://localhost:3000", "https://127.0.0.1:1", "http://[::1]:5", "http://chat.example"),
)
CORS_ORIGIN = "https://ui.example"
OTHER_ORIGINS: tuple[str, ...] = (
    *("http://evil.example", "null", "", "http://localhost.evil.example", "file://", "chrome-extension://a"),
)
OTHER_ORIGINS += (
    *("http://localhost@evil.example", "http://evil.example#localhost", "http://ui.example", "localhost"),
)
OUR_SITES = ("same-origin", "same-site", "none")
OTHER_SITES = ("cross-site", "Cross-Site", "", "x", "same-origin, cross-site")


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with fake_upstream() as fake:
        fake.on("*", mirror)
        yield fake


def origins() -> Origins:
    return Origins.of(Settings(allowed_hosts=("chat.example",), cors_origins=(CORS_ORIGIN,)))


def is_foreign(*headers: tuple[str, str]) -> bool:
    given: Headers = [(b"host", b"localhost:8080"), *((name.encode(), value.encode()) for name, value in headers)]
    return origins().is_foreign(given)


def test_pages_of_this_machine_and_of_cors_are_not_foreign() -> None:
    assert not is_foreign()
    for origin in (*OUR_ORIGINS, CORS_ORIGIN):
        assert not is_foreign(("origin", origin)), origin
        for site in OUR_SITES:
            assert not is_foreign(("origin", origin), ("sec-fetch-site", site)), (origin, site)
    assert not is_foreign(("origin", CORS_ORIGIN), ("sec-fetch-site", "cross-site"))
    assert not Origins.of(Settings(cors_origins=("*",))).is_foreign([(b"host", b"a"), (b"origin", b"http://b")])


def test_what_is_not_understood_is_foreign() -> None:
    for origin in OTHER_ORIGINS:
        for site in (None, *OUR_SITES, *OTHER_SITES):
            assert is_foreign(("origin", origin), *([("sec-fetch-site", site)] if site is not None else [])), (
                origin,
                site,
            )
    for site in OTHER_SITES:
        assert is_foreign(("sec-fetch-site", site)), site
        assert is_foreign(("origin", OUR_ORIGINS[0]), ("sec-fetch-site", site)), site
    assert is_foreign(("origin", OUR_ORIGINS[0]), ("origin", OUR_ORIGINS[0]))
    assert is_foreign(("sec-fetch-site", "none"), ("sec-fetch-site", "none"))


@pytest.mark.parametrize("auth", ("off", "auto"))
async def test_without_keys_only_our_names_are_answered_on_every_route(
    upstream: FakeUpstream, tmp_path: Path, auth: str
) -> None:
    settings = settings_for(tmp_path, upstream_url=upstream.url, auth=auth, allowed_hosts=("chat.example",))
    table = route_table(settings, MarkdownProcess())
    paths = [route.path.replace(":path}", "}").replace("{", "").replace("}", "") for route in table]
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        asked = [(OTHER_HOSTS[0], path) for path in (*paths, CHAT, "/v1/responses", "/v1/messages")]
        asked += [(host, CHAT) for host in OTHER_HOSTS]
        for host, path in asked:
            for method in ("GET", "POST"):
                refused = await http.request(method, path, headers={"Host": host}, json=BODY)
                assert refused.status_code == 403, (host, path, method)
        assert upstream.calls_to(CHAT) == []
        for host in OUR_HOSTS:
            assert (await http.post(CHAT, headers={"Host": host}, json=BODY)).status_code == 200, host


async def test_without_keys_another_site_s_page_changes_and_relays_nothing(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    settings = settings_for(tmp_path, upstream_url=upstream.url, cors_origins=(CORS_ORIGIN,))
    foreign = ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"})
    own: tuple[dict[str, str], ...] = (
        {},
        {"Origin": CORS_ORIGIN, "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "none"},
    )
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        for headers in foreign:
            for method, path in (
                ("POST", CHAT),
                ("POST", "/v1/responses"),
                ("POST", "/v1/sessions"),
                ("DELETE", "/v1/users/default_user"),
                ("PUT", "/api/sessions/x"),
                ("GET", "/v1/models"),
                ("OPTIONS", "/v1/embeddings"),
                ("GET", "/v1/anything"),
            ):
                refused = await http.request(method, path, headers=headers, json=BODY)
                assert refused.status_code == 403, (headers, method, path)
            # Reading changes nothing, and without CORS the page does not get to see it; a link has to work.
            assert (await http.get("/v1/sessions", headers=headers)).status_code == 200
        assert [call for call in upstream.calls if call.path != "/health"] == []
        for headers in own:
            assert (await http.post(CHAT, headers=headers, json=BODY)).status_code == 200, headers
            assert (await http.get("/v1/models", headers=headers)).status_code == 200, headers


async def test_with_keys_neither_name_nor_page_matters(upstream: FakeUpstream, tmp_path: Path) -> None:
    key = make_key(tmp_path)
    settings = settings_for(tmp_path, upstream_url=upstream.url, auth="auto")
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, headers=bearer(key)) as http:
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert (await http.post(CHAT, headers=headers, json=BODY)).status_code == 200, headers


@pytest.mark.parametrize("workers", some_of(("2", "1"), every=2))
async def test_deleting_the_user_with_the_only_key_opens_no_door(
    upstream: FakeUpstream, tmp_path: Path, workers: str
) -> None:
    key = make_key(tmp_path, is_admin=True)
    for _ in range(2):
        with server_process(tmp_path, upstream.url, STELLARCHAT_AUTH="auto", STELLARCHAT_WORKERS=workers) as server:
            async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
                assert {(await http.get("/v1/sessions")).status_code for _ in range(8)} == {401}
                if rows(tmp_path, "SELECT key_id FROM api_keys"):
                    deleted = await http.delete("/v1/users/ann", headers=bearer(key))
                    assert deleted.status_code == 200
                    assert rows(tmp_path, "SELECT key_id FROM api_keys") == []
                for _ in range(3):
                    assert {(await http.get("/v1/sessions")).status_code for _ in range(8)} == {401}
                    await asyncio.sleep(1)
            assert server.stop() == 0
    assert [line for line in server.output if "none exists: create one with" in line]


@pytest.mark.parametrize("locked", ({"admin_key": "sk-outside"}, {"auth": "required"}))
async def test_a_door_that_was_locked_otherwise_stays_locked_too(
    upstream: FakeUpstream, tmp_path: Path, locked: dict[str, str]
) -> None:
    for changes, expected in (({}, 200), (locked, 401), ({}, 401), ({"auth": "off"}, 200)):
        settings = settings_for(tmp_path, upstream_url=upstream.url, **{"auth": "auto", **changes})
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
            assert (await http.get("/v1/sessions")).status_code == expected, changes


async def test_our_key_goes_upstream_in_no_header_and_no_address(upstream: FakeUpstream, tmp_path: Path) -> None:
    key, outside = make_key(tmp_path), "s3cret-outside"
    basic = httpx.BasicAuth("me", key)._auth_header
    for auth in ("required", "off"):
        settings = settings_for(tmp_path, upstream_url=upstream.url, auth=auth, admin_key=outside)
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, headers=bearer(key)) as http:
            for name in ("api-key", "Proxy-Authorization", "X-Goog-Api-Key", "Cookie", "X-Anything"):
                for value in (key, f"Bearer {key}", f"a={key}; b", outside, basic):
                    reply = await http.post("/v1/embeddings", json={}, headers={name: value})
                    assert reply.status_code == 200
            refused = await http.post(f"/v1/embeddings?key={key}", json={})
            assert refused.status_code == 400
    for call in upstream.calls:
        for secret in (key, outside, basic.split(" ")[1]):
            assert secret.encode() not in call.head, call.head


async def test_an_admin_reaches_another_s_session_by_its_own_id_alone(upstream: FakeUpstream, tmp_path: Path) -> None:
    admin = make_key(tmp_path, user_id="root", is_admin=True)
    settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required")
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, headers=bearer(admin)) as http:
        ids = {}
        for user in ("default_user", "bob"):
            made = await http.post("/v1/sessions", json={"user_id": user, "session_id": "adm-s"})
            ids[user] = made.json()["session_id"]
        for method, path in (
            ("GET", "/v1/sessions/"),
            ("DELETE", "/v1/sessions/"),
            ("DELETE", "/v1/conversations/conv_"),
        ):
            assert (await http.request(method, path + "adm-s")).status_code == 404, (method, path)
        made = await http.post("/v1/sessions", json={"user_id": "root", "session_id": "adm-s"})
        own = await http.get("/v1/sessions/adm-s")
        assert own.json()["session_id"] == made.json()["session_id"]
        for user in ids:
            assert (await http.get(f"/v1/sessions/{ids[user]}")).json()["user_id"] == user
            named = await http.get("/v1/sessions/adm-s", headers={"X-User-Id": user})
            assert named.json()["session_id"] == ids[user]


@pytest.mark.parametrize("id_", ("a/messages", "a/exchanges", "x/items/y", "messages", "../a", "a//b", "a;b", "50%25"))
async def test_every_id_can_be_read_and_deleted_percent_encoded(
    upstream: FakeUpstream, tmp_path: Path, id_: str
) -> None:
    settings = settings_for(tmp_path, upstream_url=upstream.url)
    path = "".join(f"%{byte:02x}" for byte in id_.encode())
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        for user in ("x/history", "line\nbreak", "u"):
            made = await http.post("/v1/sessions", json={"user_id": user, "session_id": id_})
            headers = {"X-User-Id": user} if user.isprintable() else {}
            if headers:
                found = await http.get(f"/v1/sessions/{path}", headers=headers)
                assert found.json()["session_id"] == made.json()["session_id"]
                assert "messages" in (await http.get(f"/v1/sessions/{path}/messages", headers=headers)).json()
                assert (await http.delete(f"/v1/sessions/{path}", headers=headers)).status_code == 200
            user_path = "".join(f"%{byte:02x}" for byte in user.encode())
            assert (await http.get(f"/v1/users/{user_path}/history")).json()["user"]["user_id"] == user
            assert (await http.delete(f"/v1/users/{user_path}")).status_code == 200


@pytest.mark.parametrize(
    ("location", "expected"),
    (
        ("{origin}/v1/models", "/v1/models"),
        ("{origin}/v1/models?a=b", "/v1/models?a=b"),
        ("{origin}", "/"),
        ("{upper}/v1/models", "/v1/models"),
        ("//{host}/v1/models", "/v1/models"),
        ("/v1/models", "/v1/models"),
        ("https://elsewhere.example/v1", "https://elsewhere.example/v1"),
        ("http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1"),
    ),
)
@pytest.mark.parametrize("path", ("/v1/embeddings", CHAT))
async def test_a_redirect_to_upstream_leads_to_the_proxy(
    upstream: FakeUpstream, tmp_path: Path, location: str, expected: str, path: str
) -> None:
    host = upstream.url.removeprefix("http://")
    sent = location.format(origin=upstream.url, upper=f"HTTP://{host}", host=host)
    upstream.on(path, raw(head_bytes(307, (("location", sent), ("content-length", "0")))))
    settings = settings_for(tmp_path, upstream_url=upstream.url)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        reply = await http.post(path, json=BODY)
        assert (reply.status_code, reply.headers["location"]) == (307, expected)


@pytest.mark.parametrize("status", (600, 999))
@pytest.mark.parametrize("transport", ("own", "httpx"))
async def test_a_status_that_is_none_is_a_502(
    upstream: FakeUpstream, tmp_path: Path, status: int, transport: str
) -> None:
    upstream.on("*", raw(b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\n{}" % status))
    upstream.on(CHAT, raw(b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\n{}" % status))
    settings = settings_for(tmp_path, upstream_url=upstream.url, transport=transport)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        for path in (CHAT, "/v1/embeddings"):
            reply = await http.post(path, json=BODY)
            assert reply.status_code == 502
            assert str(status) in reply.json()["error"]["message"]


async def test_the_user_in_upstream_s_address_is_sent_as_basic(upstream: FakeUpstream, tmp_path: Path) -> None:
    address = upstream.url.replace("http://", "http://me:p%40ss@")
    settings = settings_for(tmp_path, upstream_url=address)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        reply = await http.post("/v1/embeddings", json={}, headers={"Authorization": "Bearer x"})
    assert [value for name, value in reply.json()["headers"] if name == "authorization"] == ["Basic bWU6cEBzcw=="]
    assert "p%40ss" not in (tmp_path / "logs").as_posix()


@pytest.mark.parametrize(
    ("address", "cause"),
    (("http://127.0.0.1:9", "refused the connection"), ("http://no-such-host.invalid:8000", "its name is not known")),
)
async def test_why_upstream_cannot_be_reached_is_said(tmp_path: Path, address: str, cause: str) -> None:
    async with (
        running_proxy(settings_for(tmp_path, upstream_url=address)) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        reply = await http.post(CHAT, json=BODY)
        assert reply.status_code == 502
        assert cause in reply.json()["error"]["message"]
    [(error,)] = rows(tmp_path, "SELECT error FROM exchanges")
    assert cause in str(error)


async def test_a_deleted_user_s_text_is_in_no_file(upstream: FakeUpstream, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, upstream_url=upstream.url, search_index=False)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        said = {**BODY, "messages": [{"role": "user", "content": "unforgettable"}]}
        assert (await http.post(CHAT, json=said, headers={"X-User-Id": "ann"})).status_code == 200
        assert (await http.delete("/v1/users/ann")).status_code == 200
        assert files_with(tmp_path, "unforgettable") == []
