"""Untrusted text in a real browser: it stays text also where the page's script puts it, and in Markdown."""

from pathlib import Path
from typing import Any

import pytest

from proxy.storage import exchange_store
from proxy.storage.exchange import Exchange
from proxy.storage.sqlite_connection import SqliteConnection
from proxy.storage.write_batch import write_batch
from proxy.wire import json_text
from tests.browser.conftest import Watched
from tests.browser.screenshots import see_markdown
from tests.long import some_of
from tests.serving import running_proxy, settings_for
from tests.stored import choice, exchange, opened, outcome, say, user, worker
from tests.web.test_untrusted_text import CORPUS, tell

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the browser's connection belongs to one loop

SHORT = [text.encode("utf-8", "replace").decode() for name, text in CORPUS.items() if name != "long"]
# What no page has: elements and attributes that act, and forms and addresses of anyone else.
FOREIGN = (
    "main script, iframe, object, embed, base, body style, meta[http-equiv], link[href*='//'], main svg animate, math, "
    "[onclick], [onload], [onerror], [onmouseover], [onfocus], [onbegin], [style], [href^='javascript:' i], "
    "[href^='data:' i], [src*='evil'], [action*='//']"
)


async def assert_only_text(page: Any) -> None:
    assert await page.locator(FOREIGN).evaluate_all("(all) => all.map((each) => each.outerHTML)") == []


async def test_untrusted_text_is_text_in_the_browser_too(tmp_path: Path, watched: Watched) -> None:
    page = watched.page
    told = [tell(tmp_path / "stellarchat.db", text) for text in (*some_of(SHORT, every=3), CORPUS["long"])]
    async with running_proxy(settings_for(tmp_path)) as url:
        for ids in told:
            for path in (f"/ui/s/{ids['s']}", f"/ui/x/{ids['x']}", f"/ui/s/{ids['s']}/copy?m={ids['m']}&as=json"):
                await page.goto(url + path)
                await assert_only_text(page)
        for path in (
            "/ui",
            "/ui/usage?by=user",
            "/ui/usage?by=model",
            "/ui/search?q=alert",
            f"/ui/s/{told[0]['s']}?q=<",
        ):
            await page.goto(url + path)
            await assert_only_text(page)
            scrolls = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            assert not await page.evaluate(scrolls), path
        watched.assert_quiet(url)


async def test_untrusted_markdown_is_harmless_when_it_is_put_in(tmp_path: Path, watched: Watched) -> None:
    page = watched.page
    every = "\n\n".join(f"# {text}\n\n> {text}\n\n[x]({text}) <{text}> ![i]({text})" for text in SHORT)
    with opened(tmp_path / "stellarchat.db") as connection:
        session_id = say(connection, "Show me", reply=every)
    async with running_proxy(settings_for(tmp_path)) as url:
        await page.goto(f"{url}/ui/s/{session_id}")
        await see_markdown(page)
        assert await page.locator(".rich blockquote").count() > 0
        assert await page.locator(".rich img").count() == 0
        await assert_only_text(page)
        watched.assert_quiet(url)


async def test_untrusted_text_that_comes_live_is_text(tmp_path: Path, watched: Watched) -> None:
    """Put in by the page's script: rows of the list, a reply that grows, and hits of a search."""
    page = watched.page
    async with running_proxy(settings_for(tmp_path)) as url:
        database = tmp_path / "stellarchat.db"
        with opened(database) as connection, worker(database) as worker_id:
            say(connection, "the first")
            await page.goto(f"{url}/ui")
            ids = [tell(database, text)["s"] for text in SHORT[:4]]
            for session_id in ids:
                await page.locator(f"#s-{session_id}").wait_for()
            await assert_only_text(page)
            asked = exchange([user(SHORT[0])])
            _begin(connection, asked, worker_id)
            await page.goto(f"{url}/ui/s/{asked.session.session_id}")
            for sequence, text in enumerate((*SHORT, "the end")):
                _grow(connection, asked, sequence, text)
            await page.locator(".growing .text").get_by_text("the end").wait_for()
            await assert_only_text(page)
            with write_batch(connection) as rows:
                exchange_store.finish_begun(rows, asked, outcome(choice("\n\n".join((*SHORT, "the end")))))
            await page.locator(".message:not(.growing).assistant").wait_for()
            await see_markdown(page)
            await assert_only_text(page)
        await page.goto(f"{url}/ui/search")
        await page.get_by_label("Text").press_sequentially("alert(1)")
        await page.locator("#results .rows > li").first.wait_for()
        await assert_only_text(page)
        watched.assert_quiet(url)


def _begin(connection: SqliteConnection, asked: Exchange, worker_id: str) -> None:
    with write_batch(connection) as rows:
        exchange_store.begin(rows, asked, worker_id=worker_id)


def _grow(connection: SqliteConnection, asked: Exchange, sequence: int, text: str) -> None:
    chunk = {"model": text[:50], "choices": [{"index": 0, "delta": {"content": text}}]}
    data = f"data: {json_text.dumps(chunk)}\n\n".encode()
    with write_batch(connection) as rows:
        exchange_store.append_fragment(rows, asked.origin, exchange_id=asked.exchange_id, sequence=sequence, data=data)
