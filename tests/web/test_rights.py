"""Who sees which page: each page for its owner, another user, an admin, and a stranger."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from proxy.routes import route_table
from proxy.settings import Settings
from proxy.web.markdown_process import MarkdownProcess
from tests.serving import running_proxy, settings_for
from tests.stored import opened, say
from tests.web.visiting import SAME, Site, dom_of, log_in, site

# What ann's pages hold that is nobody else's.
PAGES = (
    ("/ui", "what is it?"),
    ("/ui/s/{s}", "a picture of ann's"),
    ("/ui/s/{s}?m={m}", "a picture of ann's"),
    ("/ui/s/{s}?branch={r}", "a picture of ann's"),
    ("/ui/s/{s}/live?leaf={m}", "a picture of ann's"),
    ("/ui/s/{s}/rename", "what is it?"),
    ("/ui/s/{s}/delete", "what is it?"),
    ("/ui/s/{s}/export?format=markdown", "a picture of ann's"),
    ("/ui/s/{s}/copy?m={r}&as=curl", "a picture of ann"),
    ("/ui/s/{s}/copy?m={r}&as=json", "a picture of ann's"),
    ("/ui/s/{s}/m/{r}/text", "a picture of ann's"),
    ("/ui/s/{s}/m/{r}/rich", "a picture of ann's"),
    ("/ui/s/{s}/m/{m}/blob/{digest}", "PNG"),
    ("/ui/search?q=picture", "ann's"),
    ("/ui/x/{x}", "a picture of ann's"),
    ("/ui/usage", "requests"),
    ("/ui/keys", "ann's"),
    ("/ui/keys/{key}/revoke", "ann's"),
)
LISTS = frozenset({"/ui", "/ui/search?q=picture", "/ui/usage", "/ui/keys"})
ACTIONS: tuple[tuple[str, dict[str, str]], ...] = (
    ("/ui/s/{s}/rename", {"title": "taken over"}),
    ("/ui/s/{s}/delete", {}),
    ("/ui/keys/{key}/revoke", {}),
)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path) as running:
        yield running


async def get(http: httpx.AsyncClient, house: Site, path: str) -> httpx.Response:
    return await http.get(path.format(**house.ids))


@pytest.mark.parametrize(("path", "text"), PAGES, ids=[path for path, _ in PAGES])
async def test_owner_and_admin_see_a_page_and_others_do_not(house: Site, path: str, text: str) -> None:
    for name in ("ann", "admin"):
        async with house.visitor(name) as http:
            response = await get(http, house, path)
            assert response.status_code == 200
            assert text in (dom_of(response).text if "html" in response.headers["content-type"] else response.text)
    async with house.visitor("bob") as http:
        response = await get(http, house, path)
        assert response.status_code == (200 if path in LISTS else 404)
        assert "ann" not in dom_of(response).text
    async with house.visitor(None) as http:
        response = await get(http, house, path)
        assert response.status_code == 303
        assert response.headers["location"].startswith("/ui/login")
        assert not response.content


@pytest.mark.parametrize(("path", "form"), ACTIONS, ids=[path for path, _ in ACTIONS])
async def test_action_is_refused_to_others(house: Site, path: str, form: dict[str, str]) -> None:
    for name, status in (("bob", 404), (None, 303)):
        async with house.visitor(name) as http:
            response = await http.post(path.format(**house.ids), data=form, headers=SAME)
            assert response.status_code == status
    with closing(sqlite3.connect(house.path)) as connection:
        assert connection.execute("SELECT title FROM sessions WHERE user_id = 'ann'").fetchall() == [("what is it?",)]
        assert not connection.execute("SELECT 1 FROM api_keys WHERE revoked_at IS NOT NULL").fetchall()


@pytest.mark.parametrize(
    "headers",
    (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {},
    ),
)
async def test_form_of_another_site_does_nothing(house: Site, headers: dict[str, str]) -> None:
    async with house.visitor("ann") as http:
        for path, form in (*ACTIONS, ("/ui/logout", {}), ("/ui/login", {"key": house.keys["ann"]})):
            response = await http.post(path.format(**house.ids), data=form, headers=headers)
            assert response.status_code == 403
            assert "set-cookie" not in response.headers
        assert (await http.get("/ui")).status_code == 200


async def test_form_of_the_page_itself_is_known_by_its_origin_alone(house: Site) -> None:
    async with house.visitor("ann") as http:
        path = f"/ui/s/{house.ids['s']}/rename"
        response = await http.post(path, data={"title": "Ours"}, headers={"Origin": house.url})
        assert response.status_code == 303
        assert "Ours" in dom_of(await http.get("/ui")).text


async def test_only_an_admin_makes_keys(house: Site) -> None:
    for name, status in (("ann", 403), ("admin", 201)):
        async with house.visitor(name) as http:
            response = await http.post("/ui/keys", data={"user": "carl"}, headers=SAME)
            assert response.status_code == status
    secret = next(word for word in dom_of(response).text.split() if word.startswith("sk-stellar-"))
    async with httpx.AsyncClient(base_url=house.url) as http:
        assert (await log_in(http, secret)).status_code == 303
        assert "carl" in dom_of(await http.get("/ui")).text
        assert secret not in (await http.get("/ui/keys")).text


async def test_admin_chooses_whose_data_is_shown(house: Site) -> None:
    async with house.visitor("admin") as http:
        everyone = dom_of(await http.get("/ui")).text
        assert "Everyone's data is shown" in everyone
        assert "bob's question" in everyone
        bobs = dom_of(await http.get("/ui?user=bob")).text
        assert "what is it?" not in bobs
        assert "bob's question" in bobs
    async with house.visitor("ann") as http:
        assert "bob's question" not in dom_of(await http.get("/ui?user=bob")).text


async def test_cookie_opens_the_page_alone(house: Site) -> None:
    async with house.visitor("admin") as http:
        cookie = {"Cookie": f"stellarchat_web={http.cookies['stellarchat_web']}"}
    async with httpx.AsyncClient(base_url=house.url, headers=cookie) as http:
        assert (await http.get("/ui")).status_code == 200
        assert (await http.get("/v1/sessions")).status_code == 401
        assert (await http.post("/v1/chat/completions", json={"messages": []})).status_code == 401
        assert (await http.get("/api/sessions")).status_code == 401


async def test_key_in_a_header_does_not_open_the_page(house: Site) -> None:
    async with httpx.AsyncClient(base_url=house.url) as http:
        response = await http.get("/ui", headers={"Authorization": f"Bearer {house.keys['admin']}"})
        assert response.status_code == 303


async def test_login_sets_a_cookie_that_only_the_page_gets(house: Site) -> None:
    async with httpx.AsyncClient(base_url=house.url) as http:
        cookie = (await log_in(http, house.keys["ann"])).headers["set-cookie"].lower()
        for part in ("httponly", "path=/ui", "samesite=strict"):
            assert part in cookie
        assert "secure" not in cookie
        headers = {"Origin": house.url.replace("http", "https"), **SAME}
        response = await http.post("/ui/login", data={"key": house.keys["ann"]}, headers=headers)
        assert "secure" in response.headers["set-cookie"].lower()
    with closing(sqlite3.connect(house.path)) as connection:
        stored = connection.execute("SELECT token_hash, key_hash FROM web_sessions").fetchall()
    assert all(len(value) == 32 for row in stored for value in row)


async def test_revoked_key_ends_the_login_at_once(house: Site) -> None:
    async with house.visitor("ann") as ann, house.visitor("ann") as elsewhere:
        assert (await elsewhere.get("/ui")).status_code == 200
        await ann.post(f"/ui/keys/{house.ids['key']}/revoke", headers=SAME)
        for http in (ann, elsewhere):
            assert (await http.get("/ui")).status_code == 303
        refused = await log_in(ann, house.keys["ann"])
    async with house.visitor(None) as http:
        wrong = await log_in(http, "sk-stellar-wrong")
    # Within the seconds in which the key may still be held, a new login may be let in, and is of no use.
    assert refused.status_code in (303, 401)
    assert wrong.status_code == 401


@pytest.mark.parametrize(
    "statement",
    (
        "UPDATE api_keys SET expires_at = '2020-01-01T00:00:00.000Z'",
        "UPDATE api_keys SET revoked_at = '2020-01-01T00:00:00.000Z'",
        "DELETE FROM api_keys",
        "UPDATE web_sessions SET expires_at = '2020-01-01T00:00:00.000Z'",
        "DELETE FROM web_sessions",
    ),
)
async def test_login_ends_with_its_key_and_its_time(house: Site, statement: str) -> None:
    async with house.visitor("ann") as http:
        assert (await http.get("/ui")).status_code == 200
        with closing(sqlite3.connect(house.path)) as connection:
            connection.execute(statement)
            connection.commit()
        assert (await http.get("/ui")).status_code == 303


async def test_login_is_prolonged_by_use_and_not_by_a_page_that_is_left_open(house: Site) -> None:
    async with house.visitor("ann") as http, house.visitor("bob") as idle:
        with closing(sqlite3.connect(house.path)) as connection:
            connection.execute("UPDATE web_sessions SET expires_at = '2999-01-01T00:00:00.000Z'")
            connection.execute(
                "UPDATE web_sessions SET expires_at = strftime('%Y-%m-%dT%H:%M:%S.000Z', 'now', '+1 hour')"
            )
            connection.commit()
            before = connection.execute("SELECT MAX(expires_at) FROM web_sessions").fetchone()[0]
            await idle.get("/ui", headers={"X-StellarChat-Live": "1"})
            assert connection.execute("SELECT MAX(expires_at) FROM web_sessions").fetchone()[0] == before
            await http.get("/ui")
            assert connection.execute("SELECT MAX(expires_at) FROM web_sessions").fetchone()[0] > before


async def test_logout_ends_the_login_not_only_the_cookie(house: Site) -> None:
    async with house.visitor("ann") as http:
        cookie = http.cookies["stellarchat_web"]
        await http.post("/ui/logout", headers=SAME)
        response = await http.get("/ui", headers={"Cookie": f"stellarchat_web={cookie}"})
        assert response.status_code == 303


async def test_login_attempts_are_limited_and_a_right_key_then_waits_too(house: Site) -> None:
    async with house.visitor(None) as http:
        answers = [await log_in(http, f"wrong-{number}") for number in range(12)]
        assert [answer.status_code for answer in answers[:10]] == [401] * 10
        assert answers[-1].status_code == 429
        assert answers[-1].headers["retry-after"]
        assert (await log_in(http, house.keys["ann"])).status_code == 429
        assert "wrong-1" not in answers[0].text


@pytest.mark.parametrize(
    "target",
    ("https://evil.example/", "//evil.example/ui", "/ui\\@evil.example", "/v1/models", "/uix", "javascript:alert(1)"),
)
async def test_login_leads_to_no_other_site(house: Site, target: str) -> None:
    async with house.visitor(None) as http:
        assert (await log_in(http, house.keys["ann"], next=target)).headers["location"] == "/ui"


async def test_login_leads_to_the_page_that_was_asked_for(house: Site) -> None:
    async with house.visitor(None) as http:
        asked = await http.get("/ui/search?q=a%20b")
        form = dom_of(await http.get(asked.headers["location"]))
        target = next(each.get("value") for tag, each in form.tags if tag == "input" and each.get("name") == "next")
        assert (await log_in(http, house.keys["ann"], next=target or "")).headers["location"] == "/ui/search?q=a%20b"


async def test_link_from_another_site_finds_the_login(house: Site) -> None:
    """A browser sends no SameSite=Strict cookie with it; the page then loads itself once more."""
    async with house.visitor(None) as http:
        response = await http.get(f"/ui/s/{house.ids['s']}", headers={"Sec-Fetch-Site": "cross-site"})
        assert response.status_code == 200
        assert 'http-equiv="refresh" content="0"' in response.text
        assert "ann" not in response.text


async def test_every_page_has_a_row(house: Site) -> None:
    asked = [path.split("?")[0] for path, *_ in (*PAGES, *ACTIONS)]
    known = {"/", "/ui/login", "/ui/logout", "/ui/upstreams", "/ui/static/{name}", "/ui/{path:path}"}
    paths = {route.path for route in route_table(Settings(), MarkdownProcess()) if route.path.startswith("/ui")} - known
    names = {"{session_id}": "{s}", "{exchange_id}": "{x}", "{key_id}": "{key}"}
    for path in paths:
        short = path
        for name, letter in names.items():
            short = short.replace(name, letter)
        assert any(
            short in (each, each.replace("{m}", "{message_id}"), each.replace("{r}", "{message_id}")) for each in asked
        ), path


async def test_without_keys_everyone_on_this_machine_sees_everything(tmp_path: Path) -> None:
    with opened(tmp_path / "stellarchat.db") as connection:
        say(connection, "hello page")
    async with running_proxy(settings_for(tmp_path, auth="auto")) as url, httpx.AsyncClient(base_url=url) as http:
        assert "hello page" in (await http.get("/ui")).text
        assert "stellarchat keys create" in (await http.get("/ui/keys")).text
        assert (await http.post("/ui/keys", data={"user": "x"}, headers=SAME)).status_code == 403


async def test_admin_key_from_outside_logs_in_until_it_is_another(tmp_path: Path) -> None:
    given = settings_for(tmp_path, auth="auto", admin_key="outside-key")
    async with running_proxy(given) as url, httpx.AsyncClient(base_url=url) as http:
        assert (await log_in(http, "outside-key")).status_code == 303
        assert "(admin)" in (await http.get("/ui")).text
        cookie = http.cookies["stellarchat_web"]
    given = settings_for(tmp_path, auth="auto", admin_key="another-key")
    async with running_proxy(given) as url, httpx.AsyncClient(base_url=url) as http:
        headers = {"Cookie": f"stellarchat_web={cookie}"}
        assert (await http.get("/ui", headers=headers)).status_code == 303


async def test_page_that_is_off_is_no_way_in(tmp_path: Path) -> None:
    async with site(tmp_path, web=False) as house, httpx.AsyncClient(base_url=house.url) as http:
        for path in ("/ui", "/ui/login", "/ui/static/page.js", "/"):
            assert (await http.get(path, headers={"Accept": "text/html"})).status_code == 401


@pytest.mark.parametrize("path", ("/v1", "/v1/", "/docs"))
async def test_browser_is_led_from_what_people_type_to_the_page(house: Site, path: str) -> None:
    async with httpx.AsyncClient(base_url=house.url) as http:
        browser = await http.get(path, headers={"Accept": "text/html,*/*"})
        assert (browser.status_code, browser.headers["location"]) == (302, "/ui")
        assert (await http.get(path)).status_code == 401
        assert (await http.get(path + "/x", headers={"Accept": "text/html"})).status_code == 401


async def test_browser_is_led_from_the_root_to_the_page_and_a_program_is_not(house: Site) -> None:
    async with house.visitor(None) as http:
        browser = await http.get("/", headers={"Accept": "text/html,*/*"})
        assert (browser.status_code, browser.headers["location"]) == (302, "/ui")
        assert (await http.get("/")).status_code == 401
        assert (await http.post("/", headers={"Accept": "text/html"})).status_code == 401


async def test_many_pages_at_once_are_all_answered(house: Site) -> None:
    async with house.visitor("ann") as http:
        answers = await asyncio.gather(*(http.get("/ui") for _ in range(40)))
        assert {answer.status_code for answer in answers} == {200}
