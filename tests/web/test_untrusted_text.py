"""What a model, a caller or a file says is text on every page: never a tag, a handler, an address or a header."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.storage import queries
from tests.serving import running_proxy, settings_for
from tests.stored import assistant, chat, choice, exchange, opened, outcome, user
from tests.web.visiting import assert_harmless, dom_of

CORPUS = {
    "script": "<script>alert(1)</script>",
    "closing": "</textarea></pre></div></main></body></html><script>alert(1)</script>",
    "handler": '<img src=x onerror="alert(1)">',
    "attribute": '" onmouseover="alert(1)" x=\'',
    "single": "' autofocus onfocus='alert(1)",
    "address": "javascript:alert(1)",
    "link": "[click](javascript:alert(1)) <a href='java\tscript:alert(1)'>x</a>",
    "svg": "<svg><animate onbegin=alert(1) attributeName=x /></svg><math><mtext></mtext></math>",
    "data": "<iframe src='data:text/html,<script>alert(1)</script>'></iframe>",
    "image": "![x](https://evil.example/?leak) <img src=https://evil.example/>",
    "fences": "````\n```html\n<b onclick=alert(1)>\n```\n````\n~~~\n</code></pre><script>alert(1)</script>",
    "template": "{{ 7 * 7 }}{% for x in ().__class__.__base__.__subclasses__() %}{% endfor %}",
    "comment": "<!--<script>--><![CDATA[<script>alert(1)</script>]]>",
    "meta": "<meta http-equiv=refresh content='0;url=https://evil.example'><base href=https://evil.example>",
    "style": "<style>@import 'https://evil.example'</style><link rel=stylesheet href=//evil.example>",
    "bidi": "\u202eevil\u2066 \u2067right\u202c \u200f\u061c",
    "nul": "be\0fore <\0script>alert(1)</script>",
    "control": "\x1b[31mred\x07 \x7f\x85\u2028\u2029",
    "crlf": "a\r\nSet-Cookie: x=1\r\n\r\n<script>alert(1)</script>",
    "entities": "&lt;script&gt;alert(1)&lt;/script&gt; &#60;script&#62; &amp;amp;",
    "surrogate": "half \ud83d of a pair <script>",
    "long": "<b>" + "x" * 1_000_000,
}


def visible(text: str) -> str:
    """What a page shows for a text: pictures of control characters, and no lone surrogates."""
    shown = text.encode("utf-8", "replace").decode().replace("\r\n", "\n").replace("\r", "\n")
    return "".join(
        chr(0x2400 + ord(each)) if ord(each) < 32 and each not in "\t\n" else "␡" if each == "\x7f" else each
        for each in shown
    )


def tell(path: Path, text: str) -> dict[str, str]:
    """Chats that say the text everywhere: as messages, title, model, tool, user, parameters, metadata and error."""
    storable = text.encode("utf-8", "replace").decode()
    user_id = storable[:200]
    call = {"id": text, "type": "function", "function": {"name": text, "arguments": '{"a":' + text}}
    asked = exchange(
        [
            {"role": "system", "content": text},
            user(text),
            assistant(text, reasoning=text, tool_calls=[call]),
            {"role": "tool", "tool_call_id": text, "content": text},
            {"role": storable[:100], "content": text, "name": text},
            user(
                [
                    {"type": "text", "text": text},
                    {"type": text, "x": text},
                    {"type": "image_url", "image_url": {"url": text}},
                ]
            ),
        ],
        user_id=user_id,
        temperature=text,
        metadata={text[:60]: text[:500]},
        tools=[{"type": "function", "function": {"name": text}}],
    )
    error = {"message": text, "type": text}
    with opened(path) as connection:
        reply = outcome(choice(text, finish_reason=storable[:100], reasoning=text, refusal=text), model=storable[:200])
        reply.status, reply.error = "incomplete", error
        session_id = chat(connection, asked, reply)
        with connection.transaction():
            queries.sessions.update_session(
                connection,
                session_id=session_id,
                title=storable,
                is_active=None,
                metadata=None,
                now="2999-01-01T00:00:00.000Z",
            )
        last = connection.execute("SELECT message_id FROM messages ORDER BY message_no DESC").fetchone()[0]
    return {"s": session_id, "m": last, "x": asked.exchange_id}


@pytest.fixture(params=list(CORPUS.values()), ids=list(CORPUS))
def text(request: pytest.FixtureRequest) -> str:
    given: str = request.param
    return given


@pytest.fixture
async def pages(tmp_path: Path, text: str) -> AsyncIterator[tuple[httpx.AsyncClient, dict[str, str]]]:
    ids = tell(tmp_path / "stellarchat.db", text)
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        yield http, ids


async def test_text_is_text_on_every_page(pages: tuple[httpx.AsyncClient, dict[str, str]], text: str) -> None:
    http, ids = pages
    start = visible(text[:60])
    for path, params in (
        ("/ui", {}),
        ("/ui", {"user": text[:50], "model": text[:50]}),
        ("/ui/s/{s}", {}),
        ("/ui/s/{s}", {"m": ids["m"], "q": text[:20]}),
        ("/ui/s/{s}", {"only": "1"}),
        ("/ui/s/{s}/rename", {}),
        ("/ui/s/{s}/delete", {}),
        ("/ui/s/{s}/copy", {"m": ids["m"], "as": "json"}),
        ("/ui/s/{s}/copy", {"m": ids["m"], "as": "curl"}),
        ("/ui/x/{x}", {}),
        ("/ui/search", {"q": text[:30]}),
        ("/ui/usage", {"by": "user"}),
        ("/ui/usage", {"by": "model"}),
        ("/ui/login", {"next": text[:50]}),
    ):
        encodable: dict[str, Any] = {name: value.encode("utf-8", "replace").decode() for name, value in params.items()}
        response = await http.get(path.format(**ids), params=encodable, follow_redirects=True)
        assert response.status_code == 200, path
        assert len(response.content) < 3_000_000, path
        dom = dom_of(response)
        assert_harmless(dom)
        assert not any(ord(each) < 32 and each not in "\t\n\r" for each in response.text)
        if path in ("/ui/s/{s}", "/ui/s/{s}/rename", "/ui") and not params:
            assert start in dom.text.replace("\r\n", "\n").replace("\r", "\n"), path


async def test_raw_text_and_export_may_do_nothing(pages: tuple[httpx.AsyncClient, dict[str, str]]) -> None:
    http, ids = pages
    for path in (f"/ui/s/{ids['s']}/m/{ids['m']}/text", f"/ui/s/{ids['s']}/export?format=markdown"):
        response = await http.get(path)
        assert response.status_code == 200
        assert "sandbox" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-type"].startswith(("text/plain", "text/markdown"))
        assert "set-cookie" not in response.headers
    assert response.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize(
    "url",
    (
        "data:text/html;base64," + "PHNjcmlwdD4x" * 300,
        "data:image/svg+xml;base64," + "PHN2Zz4x" * 300,
        "data:image/png,<script>" + "x" * 3000,
        "https://evil.example/" + "x" * 3000,
        "javascript:" + "x" * 3000,
    ),
    ids=("html", "svg", "unencoded", "remote", "script"),
)
async def test_only_images_that_can_do_nothing_are_drawn(tmp_path: Path, url: str) -> None:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "image_url", "image_url": {"url": url[:500]}}]
    with opened(tmp_path / "stellarchat.db") as connection:
        session_id = chat(connection, exchange([user(content)]), outcome(choice("?")))
    async with running_proxy(settings_for(tmp_path)) as base, httpx.AsyncClient(base_url=base) as http:
        dom = dom_of(await http.get(f"/ui/s/{session_id}"))
        assert_harmless(dom)
        for picture in (each["src"] or "" for tag, each in dom.tags if tag == "img" and each.get("class") == "picture"):
            assert (await http.get(picture)).status_code == 404


async def test_headers_of_a_page_allow_nothing_from_elsewhere(tmp_path: Path) -> None:
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        for path in ("/ui", "/ui/search", "/ui/usage", "/ui/keys", "/ui/nothing", "/ui/s/none"):
            headers = (await http.get(path)).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert headers["cache-control"] == "no-store"
            assert headers["referrer-policy"] == "same-origin"
            assert headers["x-content-type-options"] == "nosniff"
