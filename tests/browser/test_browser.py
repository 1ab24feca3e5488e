"""The history page in a real browser: what is live, the keyboard, and who can use it."""

import asyncio
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.storage import exchange_store
from proxy.storage.write_batch import write_batch
from tests.browser.conftest import Watched
from tests.browser.invented import tell, tell_growing
from tests.fake_upstream import DONE, chat_chunk, event, fake_upstream, until
from tests.long import some_of
from tests.serving import running_proxy, settings_for
from tests.stored import choice, exchange, opened, outcome, say, user, worker
from tests.web.visiting import site

PATHS = (
    "/ui",
    "/ui/s/{trip}",
    "/ui/s/{trip}?only=1",
    "/ui/s/{growing}",
    "/ui/s/{tools}",
    "/ui/s/{picture}",
    "/ui/s/{long}",
    "/ui/s/{responses}",
    "/ui/s/{anthropic}",
    "/ui/s/{completion}",
    "/ui/s/{failed}",
    "/ui/s/{cut}",
    "/ui/s/{trip}/rename",
    "/ui/s/{trip}/delete",
    "/ui/search?q=clock",
    "/ui/usage",
    "/ui/usage?by=model",
    "/ui/keys",
    "/ui/upstreams",
    "/ui?status=failed",
    "/ui/nowhere",
    "/ui?user=nobody",
)
pytestmark = pytest.mark.asyncio(loop_scope="module")  # the browser's connection belongs to one loop

FORMS = (("light", 1100), ("dark", 1100), ("light", 360), ("dark", 360))


async def violations(page: Any) -> list[str]:
    """What axe-core finds, by rule and element."""
    source = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    await page.evaluate(source)
    found = await page.evaluate("async () => (await axe.run()).violations")
    return [f"{each['id']}: {node['html'][:200]}" for each in found for node in each["nodes"]]


@pytest.mark.parametrize(("scheme", "width"), some_of(FORMS, every=3))
async def test_every_page_is_quiet_and_accessible(tmp_path: Path, browser: Any, scheme: str, width: int) -> None:
    with opened(tmp_path / "stellarchat.db") as connection:
        sessions = tell(connection)
        with worker(tmp_path / "stellarchat.db") as worker_id:
            sessions["growing"] = tell_growing(connection, worker_id)
            await look_at_all(tmp_path, browser, sessions, scheme=scheme, width=width)


async def look_at_all(folder: Path, browser: Any, sessions: dict[str, str], *, scheme: str, width: int) -> None:
    async with running_proxy(settings_for(folder)) as url:
        context = await browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        watched = Watched(await context.new_page())
        page = watched.page
        await page.goto(f"{url}/ui/s/{sessions['trip']}")
        exchange_path = await page.locator('a[href^="/ui/x/"]').first.get_attribute("href")
        copy_path = await page.locator('a[href*="as=curl"]').first.get_attribute("href")
        for path in (*(each.format(**sessions) for each in PATHS), exchange_path, copy_path):
            await page.goto(url + path)
            await page.wait_for_load_state()
            assert await violations(page) == [], path
            scrolls = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            assert not await page.evaluate(scrolls), path
        # A page that is not there is said to the console by the browser itself.
        watched.messages = [each for each in watched.messages if "404" not in each]
        watched.assert_quiet(url)
        await context.close()


@pytest.mark.parametrize(("scheme", "width"), some_of(FORMS, every=3))
async def test_what_a_newcomer_and_an_admin_see_is_quiet_and_accessible(
    tmp_path: Path, browser: Any, scheme: str, width: int
) -> None:
    context = await browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    watched = Watched(await context.new_page())
    page = watched.page
    async with running_proxy(settings_for(tmp_path / "empty", demo=True)) as url:
        await page.goto(url)
        await page.get_by_text("No chats yet").wait_for()
        assert await violations(page) == []
        watched.assert_quiet(url)
        await page.goto("about:blank")  # a page that is open goes on asking the server, also while it stops
    watched.hosts.clear()
    async with site(tmp_path) as house:
        await page.goto(house.url)
        assert await violations(page) == []
        await page.get_by_label("API key").fill(house.keys["admin"])
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/ui")
        for path in ("/ui/keys", "/ui/upstreams", "/ui/usage?by=user", f"/ui/keys/{house.ids['key']}/revoke"):
            await page.goto(house.url + path)
            for closed in await page.locator("details:not([open])").all():
                await closed.locator("summary").click()
            assert await violations(page) == [], path
            scrolls = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            assert not await page.evaluate(scrolls), path
        watched.assert_quiet(house.url)
    await context.close()


async def test_chat_is_followed_from_the_list_to_its_end(tmp_path: Path, watched: Watched) -> None:
    """A real chat, through the proxy, while its pages are open."""
    page, gate = watched.page, asyncio.Event()
    texts = [
        event(chat_chunk(1, {"role": "assistant", "content": "The tide "})),
        event(chat_chunk(1, {"content": "rises"})),
    ]
    rest = [event(chat_chunk(1, {"content": " and falls."}, finish_reason="stop")), DONE]
    async with fake_upstream() as upstream:
        upstream.on("/v1/chat/completions", until(gate, texts, rest))
        settings = settings_for(tmp_path, upstream_url=upstream.url)
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, timeout=60) as http:
            await page.goto(f"{url}/ui")
            body = {"model": "m", "stream": True, "messages": [user("How do tides work?")]}
            chat = asyncio.create_task(http.post("/v1/chat/completions", json=body))
            await page.get_by_text("streaming", exact=True).first.wait_for()
            await page.get_by_role("link", name="How do tides work?").click()
            await page.locator(".growing").get_by_text("The tide rises").wait_for()
            gate.set()
            assert (await chat).status_code == 200
            await page.get_by_text("The tide rises and falls.").wait_for()
            assert await page.locator(".growing").count() == 0
            watched.assert_quiet(url)


async def test_reply_grows_while_its_page_is_open_and_new_messages_follow(tmp_path: Path, watched: Watched) -> None:
    page = watched.page
    async with running_proxy(settings_for(tmp_path)) as url:
        database = tmp_path / "stellarchat.db"
        with opened(database) as connection, worker(database) as worker_id:
            asked = exchange([user("count")])
            with write_batch(connection) as rows:
                exchange_store.begin(rows, asked, worker_id=worker_id)
            session_id = asked.session.session_id
            await page.goto(f"{url}/ui/s/{session_id}")
            for sequence, word in enumerate(("one ", "two ", "three")):
                data = f'data: {{"choices":[{{"index":0,"delta":{{"content":"{word}"}}}}]}}\n\n'.encode()
                with write_batch(connection) as rows:
                    exchange_store.append_fragment(
                        rows, asked.origin, exchange_id=asked.exchange_id, sequence=sequence, data=data
                    )
                await page.get_by_text(
                    "one two three"[: len("one two three".split(word.strip())[0] + word)].strip()
                ).wait_for()
            with write_batch(connection) as rows:
                exchange_store.finish_begun(rows, asked, outcome(choice("one two three, done")))
            await page.get_by_text("one two three, done").wait_for()
            assert await page.locator(".growing").count() == 0
            again = exchange(
                [*asked.messages, {"role": "assistant", "content": "one two three, done"}, user("more?")],
                session_id=session_id,
            )
            with write_batch(connection) as rows:
                exchange_store.finish(rows, again, outcome(choice("four")))
            await page.get_by_text("four", exact=True).wait_for()
            assert await page.locator(".message").count() == 4
        watched.assert_quiet(url)


async def test_list_of_sessions_follows_what_is_said(tmp_path: Path, watched: Watched) -> None:
    page = watched.page
    async with running_proxy(settings_for(tmp_path, demo=True)) as url:
        await page.goto(f"{url}/ui")
        await page.get_by_text("No chats yet").wait_for()
        with opened(tmp_path / "stellarchat.db") as connection:
            say(connection, "the first thing")
            await page.get_by_role("link", name="the first thing").wait_for()
            assert not await page.get_by_text("No chats yet").is_visible()
            say(connection, "the second thing")
            await page.get_by_role("link", name="the second thing").wait_for()
        watched.assert_quiet(url)


async def test_search_finds_while_typing_and_opens_at_the_message(tmp_path: Path, watched: Watched) -> None:
    page = watched.page
    with opened(tmp_path / "stellarchat.db") as connection:
        tell(connection)
    async with running_proxy(settings_for(tmp_path)) as url:
        await page.goto(f"{url}/ui/search")
        await page.get_by_label("Text").press_sequentially("chapter 7")
        await page.locator(".rows > li").nth(1).wait_for()
        assert page.url.endswith("q=chapter+7&user=&role=&order=relevance")
        await page.locator(".rows .title").first.click()
        await page.locator("mark.current").wait_for()
        assert await page.locator("mark.current").is_visible()
        first = await page.locator("mark.current").bounding_box()
        await page.keyboard.press("n")
        assert await page.locator("mark.current").bounding_box() != first
        await page.keyboard.press("p")
        assert await page.locator("mark.current").count() == 1
        watched.assert_quiet(url)


async def test_branches_are_gone_through_by_their_links(tmp_path: Path, watched: Watched) -> None:
    page = watched.page
    with opened(tmp_path / "stellarchat.db") as connection:
        sessions = tell(connection)
    async with running_proxy(settings_for(tmp_path)) as url:
        await page.goto(f"{url}/ui/s/{sessions['trip']}")
        assert await page.get_by_text("2 / 2").is_visible()
        await page.get_by_role("link", name="Previous alternative").click()
        await page.get_by_text("1 / 2").wait_for()
        assert await page.locator(".message").get_by_text("Start at the harbour").is_visible()
        await page.get_by_role("link", name="Next alternative").click()
        await page.get_by_text("2 / 2").wait_for()
        watched.assert_quiet(url)


async def test_keyboard_alone_is_enough(tmp_path: Path, watched: Watched) -> None:
    page = watched.page
    with opened(tmp_path / "stellarchat.db") as connection:
        tell(connection)
    async with running_proxy(settings_for(tmp_path)) as url:
        await page.goto(f"{url}/ui")
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.textContent") == "Skip to the content"
        await page.keyboard.press("?")
        assert await page.get_by_role("dialog").is_visible()
        await page.keyboard.press("Escape")
        for key in ("j", "j", "k"):
            await page.keyboard.press(key)
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/ui/s/*")
        await page.keyboard.press("j")
        assert await page.locator(".message.current").count() == 1
        await page.keyboard.press("/")
        await page.keyboard.type("clock j?")
        assert await page.locator(".find input").input_value() == "clock j?"
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/ui/search?q=*")
        watched.assert_quiet(url)


async def test_login_logout_and_a_revoked_key(tmp_path: Path, watched: Watched) -> None:
    page = watched.page
    async with site(tmp_path) as house:
        await page.goto(f"{house.url}/ui/s/{house.ids['s']}")
        await page.get_by_label("API key").fill("sk-stellar-wrong")
        await page.get_by_role("button", name="Log in").click()
        await page.get_by_text("is not accepted").wait_for()
        await page.get_by_label("API key").fill(house.keys["ann"])
        await page.get_by_role("button", name="Log in").click()
        await page.get_by_text("a picture of ann's").wait_for()
        assert await page.evaluate("document.cookie") == ""
        await page.get_by_role("button", name="Log out").click()
        await page.get_by_label("API key").fill(house.keys["ann"])
        await page.get_by_role("button", name="Log in").click()
        await page.get_by_role("link", name="Keys").click()
        await page.get_by_role("link", name="Revoke").click()
        await page.get_by_role("button", name="Revoke the key").click()
        await page.get_by_role("button", name="Log in").wait_for()
        await page.goto(f"{house.url}/ui/s/{house.ids['s']}")
        assert await page.get_by_role("button", name="Log in").is_visible()
        # The browser itself tells the console of an answer that is an error.
        watched.messages = [each for each in watched.messages if "401" not in each]
        watched.assert_quiet(house.url)


async def test_open_page_of_a_key_that_is_revoked_leads_to_the_login(tmp_path: Path, watched: Watched) -> None:
    page = watched.page
    async with site(tmp_path) as house:
        await page.goto(f"{house.url}/ui")
        await page.get_by_label("API key").fill(house.keys["ann"])
        await page.get_by_role("button", name="Log in").click()
        await page.get_by_role("heading", name="Sessions").wait_for()
        with opened(house.path) as connection:
            connection.execute("UPDATE api_keys SET revoked_at = '2020-01-01T00:00:00.000Z'")
        await page.get_by_role("button", name="Log in").wait_for()


async def test_another_user_s_page_is_not_there(tmp_path: Path, watched: Watched) -> None:
    page = watched.page
    async with site(tmp_path) as house:
        await page.goto(f"{house.url}/ui/login")
        await page.get_by_label("API key").fill(house.keys["bob"])
        await page.get_by_role("button", name="Log in").click()
        await page.get_by_text("bob's question").wait_for()
        response = await page.goto(f"{house.url}/ui/s/{house.ids['s']}")
        assert response.status == 404
        assert "picture" not in await page.content()


async def test_rename_copy_and_delete(tmp_path: Path, watched: Watched) -> None:
    page = watched.page
    with opened(tmp_path / "stellarchat.db") as connection:
        sessions = tell(connection)
    async with running_proxy(settings_for(tmp_path)) as url:
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await page.goto(f"{url}/ui/s/{sessions['code']}")
        await page.get_by_role("link", name="Rename").click()
        await page.get_by_label("Title").fill("Lines of a file")
        await page.get_by_role("button", name="Rename").click()
        await page.get_by_role("heading", name="Lines of a file").wait_for()
        await page.get_by_role("link", name="Continue with curl").click()
        await page.get_by_role("button", name="Copy").click()
        await page.get_by_text("Copied.").wait_for()
        assert (await page.evaluate("navigator.clipboard.readText()")).startswith(f"curl {url}/v1/chat/completions")
        await page.goto(f"{url}/ui/s/{sessions['code']}/delete")
        await page.get_by_role("button", name="Delete").click()
        await page.get_by_role("heading", name="Sessions").wait_for()
        assert await page.get_by_text("Lines of a file").count() == 0
        watched.assert_quiet(url)


async def test_without_javascript_every_page_is_complete(tmp_path: Path, browser: Any) -> None:
    with opened(tmp_path / "stellarchat.db") as connection:
        sessions = tell(connection)
    async with running_proxy(settings_for(tmp_path)) as url:
        context = await browser.new_context(java_script_enabled=False)
        page = await context.new_page()
        await page.goto(f"{url}/ui")
        await page.get_by_label("Search in messages").fill("clock")
        await page.keyboard.press("Enter")
        await page.locator(".rows .title").first.click()
        assert await page.locator("mark").count() > 0
        await page.goto(f"{url}/ui/s/{sessions['trip']}")
        await page.get_by_text("Reasoning").first.click()
        assert await page.get_by_text("A city with a harbour").is_visible()
        assert await page.get_by_role("button", name="Keyboard").count() == 0
        for path in (each.format(**sessions, growing=sessions["trip"]) for each in PATHS):
            await page.goto(url + path)
            assert await page.locator("[hidden]:not([data-script]):not(ol)").count() == 0, path
            assert await page.locator("main h1").inner_text() != ""
        await page.goto(f"{url}/ui/s/{sessions['trip']}")
        await page.get_by_role("link", name="Rename").click()
        await page.get_by_label("Title").fill("A day by the sea")
        await page.get_by_role("button", name="Rename").click()
        await page.get_by_role("link", name="Continue with curl").click()
        assert "And if it rains?" in await page.locator("textarea").input_value()
        await page.goto(f"{url}/ui?user=mara")
        await page.get_by_role("link", name="A day by the sea").click()
        await page.get_by_role("link", name="Delete").click()
        await page.get_by_role("button", name="Delete").click()
        await page.get_by_role("heading", name="Sessions").wait_for()
        assert await page.get_by_text("A day by the sea").count() == 0
        await context.close()
