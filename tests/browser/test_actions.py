"""What a visitor does on the history page, in a real browser: one server with invented chats for all of it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_asyncio

from tests.browser.conftest import Watched
from tests.browser.screenshots import invented_history
from tests.stored import opened, say
from tests.web.visiting import site

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the browser's connection belongs to one loop

LONG = "\n\n".join(f"**Paragraph {number}** of a long report about tides." for number in range(200))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def history(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[str, dict[str, str]]]:
    place = tmp_path_factory.mktemp("history")
    async with invented_history(place) as (url, sessions):
        with opened(place / "stellarchat.db") as connection:
            sessions["report"] = say(connection, "Write a long report.", reply=LONG)
        yield url, sessions


History = tuple[str, dict[str, str]]


async def test_list_is_filtered_and_shown_whole_again(history: History, watched: Watched) -> None:
    url, page = history[0], watched.page
    await page.goto(f"{url}/ui")
    await page.get_by_label("Status").select_option("cut")
    await page.get_by_label("User").fill("jonas")
    await page.get_by_role("button", name="Filter").click()
    await page.wait_for_url("**status=incomplete**")
    assert parse_qs(urlsplit(page.url).query) == {"user": ["jonas"], "status": ["incomplete"]}
    assert await page.locator(".rows > li").count() == 1
    assert await page.locator(".rows .state").inner_text() == "cut"
    await page.get_by_role("link", name="Clear").click()
    await page.get_by_role("link", name="How many pages has the manual?").wait_for()
    await page.locator(".rows").get_by_role("link", name="lena").first.click()
    await page.get_by_text("Only the data of lena is shown").wait_for()
    assert await page.get_by_role("link", name="I have one day").count() == 0
    watched.assert_quiet(url)


async def test_reply_is_shown_as_markdown_and_its_reasoning_on_demand(history: History, watched: Watched) -> None:
    (url, sessions), page = history, watched.page
    await page.goto(f"{url}/ui/s/{sessions['trip']}")
    await page.locator(".rich table").wait_for()
    assert await page.locator(".rich td").first.inner_text() == "9:00"
    thought = page.get_by_text("A city with a harbour")
    assert not await thought.is_visible()
    await page.get_by_text("Reasoning (").click()
    assert await thought.is_visible()
    await page.get_by_text("2 branches").click()
    await page.locator("details.card a").last.click()
    await page.locator(".message").get_by_text("Start at the harbour").wait_for()
    await page.goto(f"{url}/ui/s/{sessions['code']}")
    await page.locator(".rich pre .k").first.wait_for()
    watched.assert_quiet(url)


async def test_long_reply_is_folded_until_all_of_it_is_wanted(history: History, watched: Watched) -> None:
    (url, sessions), page = history, watched.page
    await page.goto(f"{url}/ui/s/{sessions['report']}")
    await page.locator(".rich.folded strong").first.wait_for()
    await page.get_by_role("button", name="Show the rest").click()
    assert await page.locator(".rich.folded").count() == 0
    assert await page.get_by_text("Paragraph 199").is_visible()
    watched.assert_quiet(url)


async def test_tools_images_and_ends_are_told_apart(history: History, watched: Watched) -> None:
    (url, sessions), page = history, watched.page
    await page.goto(f"{url}/ui/s/{sessions['tools']}")
    await page.get_by_text("Tool call: get_weather").click()
    assert await page.get_by_label("Arguments").inner_text() == '{\n  "day": "tomorrow"\n}'
    await page.locator(".message.tool summary").first.click()
    assert await page.locator(".message.tool .text").first.is_visible()
    await page.get_by_role("link", name="Conversation only").click()
    await page.get_by_role("link", name="Show everything").wait_for()
    assert await page.locator(".message.tool").count() == 0
    for name in ("picture", "anthropic"):
        await page.goto(f"{url}/ui/s/{sessions[name]}")
        picture = page.locator("img.picture")
        assert await picture.evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") == 240
    for name, state, words in (("cut", "cut", "the caller left"), ("failed", "failed", "maximum context length")):
        await page.goto(f"{url}/ui/s/{sessions[name]}")
        assert await page.locator(".messages .state").inner_text() == state
        assert await page.locator(".messages").get_by_text(words).is_visible()
    watched.assert_quiet(url)


async def test_long_conversation_is_read_backwards_and_forwards(history: History, watched: Watched) -> None:
    (url, sessions), page = history, watched.page
    await page.goto(f"{url}/ui/s/{sessions['long']}")
    assert await page.locator(".message").count() == 30
    await page.get_by_role("link", name="Earlier messages").click()
    await page.get_by_role("link", name="Later messages").wait_for()
    assert await page.get_by_text("Chapter 1: what happens next?").last.is_visible()
    await page.get_by_role("link", name="Later messages").click()
    await page.get_by_text("In chapter 25").wait_for()
    watched.assert_quiet(url)


@pytest.mark.parametrize(
    ("form", "ending", "part"), (("Markdown", ".md", "# I have one day"), ("JSON lines", ".jsonl", "museum of clocks"))
)
async def test_conversation_is_exported_as_a_file(
    history: History, watched: Watched, tmp_path: Path, form: str, ending: str, part: str
) -> None:
    (url, sessions), page = history, watched.page
    await page.goto(f"{url}/ui/s/{sessions['trip']}")
    async with page.expect_download() as download:
        await page.get_by_role("link", name=f"Export as {form}").click()
    file = await download.value
    assert file.suggested_filename.endswith(ending)
    await file.save_as(tmp_path / "file")
    assert part in (tmp_path / "file").read_text(encoding="utf-8")
    watched.assert_quiet(url)


async def test_menu_of_a_message_leads_to_all_that_can_be_done_with_it(history: History, watched: Watched) -> None:
    (url, sessions), page = history, watched.page
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])

    async def choose(name: str) -> None:
        await page.goto(f"{url}/ui/s/{sessions['trip']}")
        await page.locator(".menu summary").last.click()
        await page.locator(".menu").last.get_by_role("link", name=name).click()

    await choose("Permalink")
    await page.wait_for_url("**?m=*#m-*")
    assert await page.locator(".message:target").inner_text() != ""
    await choose("Copy up to here as OpenAI JSON")
    await page.get_by_role("button", name="Copy").click()
    await page.get_by_text("Copied.").wait_for()
    assert "And if it rains?" in await page.evaluate("navigator.clipboard.readText()")
    await choose("Plain text")
    await page.wait_for_url("**/text")
    assert (await page.locator("body").inner_text()).startswith("Then the glass house")
    await choose("Open the exchange")
    await page.get_by_role("heading", name="One request and its reply").wait_for()
    bars = page.locator(".waterfall rect")
    assert [float(await bar.get_attribute("width")) > 0 for bar in await bars.all()] == [True] * await bars.count()
    assert await bars.count() == 6
    assert "And if it rains?" in await page.get_by_label("Request as JSON").inner_text()
    await page.get_by_role("link", name="To the conversation").click()
    await page.wait_for_url(f"**/ui/s/{sessions['trip']}")
    watched.assert_quiet(url)


async def test_usage_is_summed_by_what_is_chosen(history: History, watched: Watched) -> None:
    url, page = history[0], watched.page
    await page.goto(f"{url}/ui/usage")
    assert await page.locator("svg.chart g").count() == 30
    await page.get_by_label("By").select_option("user")
    await page.get_by_role("button", name="Show").click()
    await page.get_by_role("rowheader", name="mara").wait_for()
    await page.get_by_label("User", exact=True).fill("jonas")
    await page.get_by_role("button", name="Show").click()
    await page.get_by_text("Only the data of jonas").wait_for()
    assert await page.get_by_role("rowheader").all_inner_texts() == ["jonas"]
    watched.assert_quiet(url)


async def test_admin_creates_a_key_that_opens_the_page_of_its_user(tmp_path: Path, watched: Watched) -> None:
    page = watched.page

    async def log_in(key: str) -> None:
        await page.get_by_label("API key").fill(key)
        await page.get_by_role("button", name="Log in").click()
        await page.get_by_role("button", name="Log out").wait_for()

    async with site(tmp_path) as house:
        await page.goto(f"{house.url}/ui/keys")
        await log_in(house.keys["admin"])
        await page.get_by_text("Create a key").click()
        await page.get_by_label("User", exact=True).fill("bob")
        await page.get_by_label("Name", exact=True).fill("bob's phone")
        await page.get_by_role("button", name="Create").click()
        secret: Any = await page.locator("#secret").inner_text()
        await page.goto(f"{house.url}/ui/keys")
        assert await page.get_by_text(secret).count() == 0
        assert await page.get_by_role("cell", name="bob's phone").is_visible()
        await page.get_by_role("button", name="Log out").click()
        await log_in(secret)
        assert await page.locator(".rows .title").all_inner_texts() == ["bob's question"]
        response = await page.goto(f"{house.url}/ui/upstreams")
        assert response.status == 403
        await page.get_by_role("heading", name="Not allowed").wait_for()
        watched.messages = [each for each in watched.messages if "403" not in each]
        watched.assert_quiet(house.url)
