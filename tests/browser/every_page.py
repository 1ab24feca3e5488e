"""`python -m tests.browser.every_page FOLDER [NAME...]`: pictures of every page of the history, to look at.

Each is taken whole, light and dark, wide and narrow: those of `tests.browser.screenshots`, the login, an empty history,
errors, words without a space, text from right to left, an admin's pages, and some without JavaScript.
"""

import argparse
import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.browser.chromium import chromium
from tests.browser.invented import Teller, picture
from tests.browser.screenshots import NARROW, WIDE, invented_history, see_markdown
from tests.serving import running_proxy, settings_for
from tests.stored import assistant, choice, opened, user
from tests.web.visiting import Site, site

_WORD = "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen" * 6
_ARABIC = "مرحبا! كيف تعمل المد والجزر؟ (the *tides*) 123"
OPEN = {
    "sessions": "/ui",
    "filtered": "/ui?model=qwen3-8b&status=failed&since=2020-01-01",
    "one-user": "/ui?user=mara",
    "no-match": "/ui?user=nobody",
    "conversation": "/ui/s/{trip}",
    "conversation-only": "/ui/s/{trip}?only=1",
    "growing": "/ui/s/{growing}",
    "tools": "/ui/s/{tools}",
    "picture": "/ui/s/{picture}",
    "code": "/ui/s/{code}",
    "responses": "/ui/s/{responses}",
    "anthropic": "/ui/s/{anthropic}",
    "completion": "/ui/s/{completion}",
    "failed": "/ui/s/{failed}",
    "cut": "/ui/s/{cut}",
    "long": "/ui/s/{long}",
    "words": "/ui/s/{words}",
    "arabic": "/ui/s/{arabic}",
    "search": "/ui/search?q=clock",
    "search-words": "/ui/search?q=Donau",
    "search-empty": "/ui/search",
    "search-nothing": "/ui/search?q=zebra",
    "hit": "/ui/s/{long}?q=brass",
    "usage": "/ui/usage",
    "usage-user": "/ui/usage?by=user",
    "usage-model": "/ui/usage?by=model",
    "usage-none": "/ui/usage?since=2020-01-01&until=2020-01-02",
    "usage-wrong": "/ui/usage?since=2026-02-01&until=2026-01-01",
    "keys-off": "/ui/keys",
    "upstreams": "/ui/upstreams",
    "rename": "/ui/s/{trip}/rename",
    "delete": "/ui/s/{trip}/delete",
    "delete-words": "/ui/s/{words}/delete",
    "missing": "/ui/nowhere",
    "exchange": "/ui/x/{trip_x}",
    "exchange-failed": "/ui/x/{failed_x}",
    "exchange-cut": "/ui/x/{cut_x}",
    "exchange-tools": "/ui/x/{tools_x}",
    "exchange-words": "/ui/x/{words_x}",
    "exchange-growing": "/ui/x/{growing_x}",
    "copy-curl": "/ui/s/{trip}/copy?m={trip_m}&as=curl",
    "copy-json": "/ui/s/{trip}/copy?m={trip_m}&as=json",
}
WITHOUT_SCRIPT = ("sessions", "conversation", "growing", "search", "copy-curl", "words")
_ADMIN = {
    "admin-keys": "/ui/keys",
    "admin-usage": "/ui/usage?by=user",
    "admin-revoke": "/ui/keys/{key}/revoke",
    "admin-sessions": "/ui",
}


async def take_every_page(folder: Path, names: list[str]) -> None:
    """Take the pictures into a folder; all, or those of some names."""
    async with chromium() as browser:
        for scheme in ("light", "dark"):
            for form, size in (("wide", WIDE), ("narrow", NARROW)):
                context: dict[str, Any] = {"viewport": size, "color_scheme": scheme}
                camera = _Camera(browser, context, folder, f"{scheme}-{form}", names)
                with tempfile.TemporaryDirectory() as place:
                    await _take_open(camera, Path(place))


class _Camera:
    """Takes the pictures of one form."""

    def __init__(self, browser: Any, context: dict[str, Any], folder: Path, form: str, names: list[str]) -> None:
        self._browser, self._context, self._folder, self._form, self._names = browser, context, folder, form, names

    @asynccontextmanager
    async def page(self, **options: Any) -> AsyncIterator[Any]:
        """A page of a context of its own."""
        context = await self._browser.new_context(**self._context, **options)
        yield await context.new_page()
        await context.close()

    async def take(self, page: Any, name: str, url: str = "") -> None:
        """The page as it is, or of an address."""
        if self._names and name not in self._names:
            return
        if url:
            await page.goto(url)
        await page.wait_for_load_state()
        if "no-script" not in name:
            await see_markdown(page)
        await page.screenshot(path=str(self._folder / f"{name}-{self._form}.png"), full_page=True)


async def _take_open(camera: _Camera, place: Path) -> None:
    with opened(place / "stellarchat.db") as connection:
        odd = _tell_odd(Teller(connection))
    async with invented_history(place) as (url, sessions):
        ids = _ids(place, sessions | odd)
        async with camera.page() as page:
            for name, path in OPEN.items():
                await camera.take(page, name, url + path.format(**ids))
            await page.goto(f"{url}/ui/s/{ids['trip']}")
            await page.locator(".menu summary").last.click()
            await camera.take(page, "menu")
            await page.keyboard.press("?")
            await camera.take(page, "keyboard")
        async with camera.page(java_script_enabled=False) as page:
            for name in WITHOUT_SCRIPT:
                await camera.take(page, f"{name}-no-script", url + OPEN[name].format(**ids))
    async with running_proxy(settings_for(place / "empty", demo=True)) as url, camera.page() as page:
        await camera.take(page, "first-visit", f"{url}/ui")
    async with site(place / "keys") as house, camera.page() as page:
        await _take_closed(camera, house, page)


async def _take_closed(camera: _Camera, house: Site, page: Any) -> None:
    await camera.take(page, "login", f"{house.url}/ui")
    await page.goto(f"{house.url}/ui")
    await _log_in(page, "sk-stellar-wrong")
    await camera.take(page, "login-wrong")
    await _log_in(page, house.keys["bob"])
    await camera.take(page, "bob-sessions", f"{house.url}/ui")
    await camera.take(page, "bob-keys", f"{house.url}/ui/keys")
    await camera.take(page, "forbidden", f"{house.url}/ui/upstreams")
    await camera.take(page, "another-user", f"{house.url}/ui/s/{house.ids['s']}")
    await page.get_by_role("button", name="Log out").click()
    await _log_in(page, house.keys["admin"])
    for name, path in _ADMIN.items():
        await camera.take(page, name, house.url + path.format(**house.ids))
    await page.goto(f"{house.url}/ui/keys")
    await page.get_by_text("Create a key").click()
    await camera.take(page, "admin-create")
    await page.get_by_label("User").last.fill("carla")
    await page.get_by_role("button", name="Create").click()
    await camera.take(page, "admin-made")
    await page.get_by_role("button", name="Log out").click()
    for _ in range(12):
        await _log_in(page, "sk-stellar-wrong")
        if not await page.get_by_label("API key").count():
            break
    await camera.take(page, "busy")


async def _log_in(page: Any, key: str) -> None:
    await page.get_by_label("API key").fill(key)
    await page.get_by_label("API key").press("Enter")
    await page.wait_for_load_state()


def _tell_odd(teller: Teller) -> dict[str, str]:
    """Words without a space everywhere, and a chat from right to left."""
    tool = {"type": "function", "function": {"name": _WORD, "parameters": {"type": "object"}}}
    call = {"id": "call_1", "type": "function", "function": {"name": _WORD, "arguments": f'{{"{_WORD}":"{_WORD}"}}'}}
    content = [{"type": "text", "text": _WORD}, {"type": "image_url", "image_url": {"url": picture()}}]
    turns = [{"role": "system", "content": _WORD * 8}, user(content), assistant(_WORD, tool_calls=[call])]
    turns.append({"role": "tool", "tool_call_id": "call_1", "content": _WORD})
    reply = choice(f"# {_WORD}\n\n`{_WORD}`\n\n| {_WORD} | b |\n|---|---|\n| 1 | 2 |\n", reasoning=_WORD)
    words = teller.chat(turns, reply, user_id=_WORD[:200], model=_WORD[:180], tools=[tool], metadata={"a": _WORD[:400]})
    return {"words": words, "arabic": teller.chat([user(_ARABIC)], choice(_ARABIC * 3), user_id="ليلى")}


def _ids(place: Path, sessions: dict[str, str]) -> dict[str, str]:
    """Sessions by name; `_x` their newest exchange and `_m` their newest message."""
    ids = dict(sessions)
    with opened(place / "stellarchat.db") as connection:
        for name, session_id in sessions.items():
            for suffix, table in (("x", "exchange"), ("m", "message")):
                row = connection.execute(
                    f"SELECT t.{table}_id FROM {table}s AS t JOIN sessions AS s USING (session_no) "
                    f"WHERE s.session_id = ? ORDER BY t.{table}_no DESC",
                    (session_id,),
                ).fetchone()
                ids[f"{name}_{suffix}"] = row[0] if row else ""
    return ids


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.browser.every_page", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(take_every_page(given.folder, given.names))
