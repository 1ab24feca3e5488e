"""`python -m tests.browser.screenshots`: the pictures of the history page in the documentation, from invented chats.

With a folder as argument, every page in every form, to look at.
"""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.browser.chromium import chromium
from tests.browser.invented import tell, tell_growing, tell_of_days
from tests.serving import REPOSITORY, running_proxy, settings_for
from tests.stored import opened, worker

WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 360, "height": 720}


async def take_all(folder: Path, *, everything: bool) -> None:
    """Take the pictures into a folder."""
    with tempfile.TemporaryDirectory() as place:
        with opened(Path(place) / "stellarchat.db") as connection:
            sessions = tell(connection)
            tell_of_days(connection)
        database = Path(place) / "stellarchat.db"
        with worker(database) as worker_id, opened(database) as connection:
            sessions["growing"] = tell_growing(connection, worker_id)
            await _take_pages(Path(place), sessions, folder, everything=everything)


async def _take_pages(place: Path, sessions: dict[str, str], folder: Path, *, everything: bool) -> None:
    async with running_proxy(settings_for(place)) as url, chromium() as browser:
        for scheme in ("light", "dark"):
            for form, size in (("wide", WIDE), ("narrow", NARROW)):
                context = await browser.new_context(viewport=size, color_scheme=scheme)
                page = await context.new_page()
                for name, path in _pages(sessions).items():
                    if everything or (name, scheme, form) in _SHOWN:
                        await _take(page, url + path, folder / f"{name}-{scheme}-{form}.png")
                if everything:
                    await _take_exchange(page, url, sessions, folder / f"exchange-{scheme}-{form}.png")
                await context.close()


_SHOWN = {
    ("sessions", "light", "wide"),
    ("conversation", "light", "wide"),
    ("conversation", "dark", "narrow"),
    ("search", "dark", "wide"),
    ("usage", "light", "wide"),
}


def _pages(sessions: dict[str, str]) -> dict[str, str]:
    return {
        "sessions": "/ui",
        "conversation": f"/ui/s/{sessions['trip']}",
        "growing": f"/ui/s/{sessions['growing']}",
        "tools": f"/ui/s/{sessions['tools']}",
        "picture": f"/ui/s/{sessions['picture']}",
        "code": f"/ui/s/{sessions['code']}",
        "responses": f"/ui/s/{sessions['responses']}",
        "anthropic": f"/ui/s/{sessions['anthropic']}",
        "completion": f"/ui/s/{sessions['completion']}",
        "failed": f"/ui/s/{sessions['failed']}",
        "cut": f"/ui/s/{sessions['cut']}",
        "long": f"/ui/s/{sessions['long']}",
        "search": "/ui/search?q=clock",
        "usage": "/ui/usage",
        "keys": "/ui/keys",
        "upstreams": "/ui/upstreams",
        "rename": f"/ui/s/{sessions['trip']}/rename",
        "delete": f"/ui/s/{sessions['trip']}/delete",
        "missing": "/ui/nowhere",
        "first": "/ui?user=nobody",
    }


async def _take(page: Any, url: str, file: Path) -> None:
    await page.goto(url)
    for rich in await page.locator("[data-rich]").all():
        await rich.locator(".rich").wait_for()
    await page.screenshot(path=str(file))


async def _take_exchange(page: Any, url: str, sessions: dict[str, str], file: Path) -> None:
    await page.goto(f"{url}/ui/s/{sessions['trip']}")
    await page.locator(".menu summary").last.click()
    await page.get_by_role("link", name="Open the exchange").last.click()
    await page.wait_for_timeout(300)
    await page.screenshot(path=str(file), full_page=True)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "docs" / "images"
    target.mkdir(parents=True, exist_ok=True)
    asyncio.run(take_all(target, everything=len(sys.argv) > 1))
