"""`python -m tests.browser.screenshots`: the pictures of the history page in the documentation, from invented chats.

`tests.browser.every_page` takes all pages, to look at.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.browser.chromium import chromium
from tests.browser.invented import tell, tell_growing, tell_of_days
from tests.serving import REPOSITORY, running_proxy, settings_for
from tests.stored import opened, worker

WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 360, "height": 720}
_SHOWN = (
    ("sessions", "/ui", "light", "wide"),
    ("conversation", "/ui/s/{trip}", "light", "wide"),
    ("conversation", "/ui/s/{trip}", "dark", "narrow"),
    ("search", "/ui/search?q=clock", "dark", "wide"),
    ("usage", "/ui/usage", "light", "wide"),
)


@asynccontextmanager
async def invented_history(place: Path) -> AsyncIterator[tuple[str, dict[str, str]]]:
    """The address of a running proxy with invented chats, and their sessions."""
    database = place / "stellarchat.db"
    with opened(database) as connection:
        sessions = tell(connection)
        tell_of_days(connection)
        with worker(database) as worker_id:
            sessions["growing"] = tell_growing(connection, worker_id)
            async with running_proxy(settings_for(place)) as url:
                yield url, sessions


async def take_shown(folder: Path) -> None:
    """Take the pictures of the documentation."""
    with tempfile.TemporaryDirectory() as place:
        async with invented_history(Path(place)) as (url, sessions), chromium() as browser:
            for name, path, scheme, form in _SHOWN:
                size = WIDE if form == "wide" else NARROW
                context = await browser.new_context(viewport=size, color_scheme=scheme)
                page = await context.new_page()
                await page.goto(url + path.format(**sessions))
                await see_markdown(page)
                await page.screenshot(path=str(folder / f"{name}-{scheme}-{form}.png"))
                await context.close()


async def see_markdown(page: Any) -> None:
    """Wait until each message is shown as Markdown, for which it has to come into view."""
    for rich in await page.locator("[data-rich]").all():
        await rich.scroll_into_view_if_needed()
        await rich.locator(".rich").wait_for()
    await page.evaluate("scrollTo(0, 0)")


if __name__ == "__main__":
    asyncio.run(take_shown(REPOSITORY / "docs" / "images"))
