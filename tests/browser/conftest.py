"""One browser for a module's tests, and a page that notes what must never be: messages, and requests to elsewhere."""

import os
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from tests.browser.chromium import CHROMIUM, chromium

REASON = (
    f"there is no browser at {CHROMIUM}: apt-get install chromium"
    if not CHROMIUM.exists()
    else "playwright or axe is not installed"
    if find_spec("playwright") is None or find_spec("axe_playwright_python") is None
    else ""
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if REASON and os.environ.get("BROWSER_TESTS") == "required":
        raise pytest.UsageError(f"the tests in a browser are required: {REASON}")
    for item in items:
        if REASON and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=REASON))


class Watched:
    """A page of the browser, and what it said and asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.messages: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("dialog", lambda dialog: self.messages.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def assert_quiet(self, url: str) -> None:
        """No message, and no request to anyone else."""
        assert not self.messages
        assert self.hosts <= {urlsplit(url).netloc, ""}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started_browser() -> AsyncIterator[Any]:
    async with chromium() as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def browser(started_browser: Any) -> AsyncIterator[Any]:
    yield started_browser
    for context in started_browser.contexts:  # a page that stays open goes on asking its server
        await context.close()


@pytest_asyncio.fixture(loop_scope="module")
async def watched(browser: Any) -> Watched:
    context = await browser.new_context(viewport={"width": 1100, "height": 800})
    return Watched(await context.new_page())
