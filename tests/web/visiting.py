"""A running proxy with keys and chats, and browsers that are logged in to its page."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx

from proxy.access.keys import NewKey, create_key
from proxy.storage import queries
from tests.serving import running_proxy, settings_for
from tests.stored import IMAGE, chat, choice, exchange, opened, outcome, user

SAME = {"Sec-Fetch-Site": "same-origin"}


@dataclass
class Site:
    """The page's address, the keys by whose they are, and what ann has."""

    url: str
    path: Path
    keys: dict[str, str]
    ids: dict[str, str]

    @asynccontextmanager
    async def visitor(self, name: str | None) -> AsyncIterator[httpx.AsyncClient]:
        """A browser: ann, bob or admin are logged in, None is not."""
        async with httpx.AsyncClient(base_url=self.url) as http:
            if name is not None:
                response = await log_in(http, self.keys[name])
                assert response.status_code == 303, response.text
            yield http


async def log_in(http: httpx.AsyncClient, key: str, **form: str) -> httpx.Response:
    """Send the login's form."""
    return await http.post("/ui/login", data={"key": key, **form}, headers=SAME)


@asynccontextmanager
async def site(folder: Path, **changes: Any) -> AsyncIterator[Site]:
    """A running proxy that wants keys; ann has a session with an image."""
    with opened(folder / "stellarchat.db") as connection:
        with connection.transaction():
            keys = {
                name: create_key(connection, NewKey(user_id=name, name=f"{name}'s", is_admin=name == "admin"))[0]
                for name in ("ann", "bob", "admin")
            }
        content = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": IMAGE}}]
        session_id = chat(connection, exchange([user(content)]), outcome(choice("a picture of ann's")))
        chat(connection, exchange([user("bob's question")], user_id="bob"), outcome(choice("bob's answer")))
        session = queries.sessions.get_session(connection, session_id)
        assert session is not None
        rows = connection.execute(
            "SELECT message_id, role FROM messages WHERE session_id = ? ORDER BY message_no", (session_id,)
        ).fetchall()
        exchange_id = connection.execute("SELECT exchange_id FROM exchanges ORDER BY exchange_no").fetchone()[0]
        digest = connection.execute("SELECT digest FROM blobs").fetchone()[0]
        key_id = queries.keys.list_keys(connection, user_id="ann")[0].key_id
    ids = {"s": session_id, "m": rows[0][0], "r": rows[1][0], "x": exchange_id, "digest": digest, "key": key_id}
    async with running_proxy(settings_for(folder, auth="required", **changes)) as url:
        yield Site(url, folder / "stellarchat.db", keys, ids)


@dataclass
class Dom(HTMLParser):
    """What a page is made of: its tags with their attributes, and its text."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        HTMLParser.__init__(self, convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += dict(attrs).get("value") or ""

    def handle_data(self, data: str) -> None:
        self.text += data


def dom_of(response: httpx.Response) -> Dom:
    """The page, parsed."""
    dom = Dom()
    dom.feed(response.text)
    return dom


_TAGS = frozenset(
    {"html", "head", "meta", "title", "link", "script", "body", "header", "main", "section", "article", "footer"}
    | {"a", "div", "nav", "ul", "ol", "li", "dl", "dt", "dd", "h1", "h2", "p", "pre", "code", "kbd", "bdi", "mark"}
    | {"form", "label", "input", "button", "select", "option", "textarea", "details", "summary", "dialog", "time"}
    | {"table", "caption", "thead", "tbody", "tr", "th", "td", "img", "svg", "rect", "g", "span", "strong"}
)


def assert_harmless(dom: Dom) -> None:
    """Nothing in the page but what our own templates make: no tag, no handler, no address of anyone else."""
    for tag, attributes in dom.tags:
        assert tag in _TAGS, tag
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcdoc")], attributes
        for name in ("href", "src", "action"):
            address = attributes.get(name)
            assert address is None or address.startswith(("/ui", "?", "#", "data:image/png;base64,")), address
        if tag == "script":
            assert (attributes.get("src") or "").startswith("/ui/static/")
